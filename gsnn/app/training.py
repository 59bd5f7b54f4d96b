"""How every network of a run is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gsnn.app.settings import Options
from gsnn.data.tables import Data
from gsnn.models.GSNN import GSNN
from gsnn.train.history import History
from gsnn.train.loop import fit


def train_one(
    model: GSNN,
    data: Data,
    options: Options,
    train: np.ndarray,
    watch: np.ndarray | None,
    seed: int,
    verbose: bool | str,
    state: Path | None = None,
) -> History:
    """Fit to the rows ``train``; the loss on the rows ``watch`` is recorded, never acted upon.

    ``state`` is the file that an interrupted fit goes on from, written every twentieth of the epochs.
    """
    assert options.epochs is not None
    x, y = data.x.to_numpy(), data.y.to_numpy()
    if watch is not None and np.isnan(y[watch]).all():
        watch = None
    return fit(
        model,
        x[train],
        y[train],
        validation=None if watch is None else (x[watch], y[watch]),
        restore_best=False,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        standardize=True,
        seed=seed,
        device=options.device,
        verbose=verbose,
        checkpoint_path=state,
        checkpoint_every=max(1, options.epochs // 20),
    )
