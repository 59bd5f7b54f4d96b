"""Callbacks that write losses to TensorBoard, MLflow or Weights & Biases, each behind the extra of its name.

They log ``train_loss``, ``val_loss`` (where there is validation data) and ``lr`` after each epoch, with
names that begin with ``member0/`` and so on where several networks are trained. They close no run of yours,
and hold nothing that cannot be copied or pickled, so that they survive ``sklearn.base.clone``.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from gsnn.train.callbacks import EpochState


def _needed(module: str, who: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as err:
        raise ImportError(f"{who} needs the extra {extra}: pip install 'gsnn[{extra}]' ({err})") from None


class TensorBoard:
    """Scalars over epochs for ``tensorboard --logdir folder`` (extra ``tensorboard``).

    Args:
        folder: where the event file goes; made at the first epoch.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _needed("torch.utils.tensorboard", "TensorBoard", "tensorboard")
        self.folder = os.fspath(folder)
        self._writer: Any = None

    def on_epoch(self, state: EpochState) -> None:
        """Write the losses, and see to it that they are in the file."""
        if self._writer is None:
            self._writer = import_module("torch.utils.tensorboard").SummaryWriter(self.folder)
        for name, value in state.metrics().items():
            self._writer.add_scalar(name, value, state.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file. Another epoch opens a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}


class MLflow:
    """Metrics over epochs of an MLflow run (extra ``mlflow``).

    Args:
        run_id: of the run; by default the active one, and a new one where none is active.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(self, run_id: str | None = None) -> None:
        _needed("mlflow", "MLflow", "mlflow")
        self.run_id = run_id

    def on_epoch(self, state: EpochState) -> None:
        """Log the losses at the step ``state.epoch``."""
        import_module("mlflow").log_metrics(state.metrics(), step=state.epoch, run_id=self.run_id)


class WandB:
    """Metrics of the active Weights & Biases run (extra ``wandb``), with ``epoch`` to draw them over.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self) -> None:
        _needed("wandb", "WandB", "wandb")

    def on_epoch(self, state: EpochState) -> None:
        """Log the losses.

        Raises:
            RuntimeError: no run is active.
        """
        run = import_module("wandb").run
        if run is None:
            raise RuntimeError("WandB needs an active run: call wandb.init() before the fit")
        run.log({**state.metrics(), "epoch": state.epoch})
