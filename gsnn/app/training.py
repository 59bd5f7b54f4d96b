"""How every network of a run is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from gsnn.app.settings import Options, new_model
from gsnn.data.tables import Data
from gsnn.estimator.stopping import choose_epochs
from gsnn.models.GSNN import GSNN
from gsnn.train.history import History
from gsnn.train.loop import fit


def length(
    data: Data, options: Options, train: np.ndarray, seed: int, verbose: bool | str
) -> tuple[Options, str]:
    """``options`` with the number of epochs for the rows ``train``, and the reason where it was "auto".

    Only those rows are looked at.
    """
    if options.epochs != "auto":
        return options, ""
    chosen = choose_epochs(
        lambda at: new_model(data, options, at),
        data.x.to_numpy()[train],
        data.y.to_numpy()[train],
        groups=None if data.groups is None else data.groups.to_numpy()[train],
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        standardize=True,
        device=options.device,
        seed=seed,
        verbose=verbose,
    )
    return replace(options, epochs=chosen.epochs), chosen.why


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
    assert isinstance(options.epochs, int)
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
