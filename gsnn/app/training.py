"""How every network of a run is trained: those that wait for nothing else side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gsnn.app.compare import Split
from gsnn.app.settings import Options, new_model
from gsnn.data.tables import Data
from gsnn.estimator.stopping import choose_epochs
from gsnn.models.GSNN import GSNN
from gsnn.train.history import History
from gsnn.train.side_by_side import fit_side_by_side


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


def train_side_by_side(
    models: Sequence[GSNN],
    data: Data,
    options: Sequence[Options],
    rows: Sequence[np.ndarray],
    seeds: Sequence[int],
    *,
    watched: Sequence[np.ndarray | None] | None = None,
    verbose: bool | str,
    state: Path | None = None,
) -> list[History]:
    """Fit each of ``models`` to its ``rows`` of the data.

    Args:
        options: of each network; they differ in nothing but ``epochs``.
        seeds: of each network's batches and dropout.
        watched: of each network, the rows whose loss is recorded, never acted upon; None for none.
        verbose: whether progress is shown, a text labels it.
        state: the file that an interrupted call goes on from, written every twentieth of the epochs.

    Returns:
        Their histories.
    """
    first, epochs = options[0], [own.epochs for own in options if isinstance(own.epochs, int)]
    x, y = data.x.to_numpy(), data.y.to_numpy()
    seen = [
        None if test is None or np.isnan(y[test]).all() else (x[test], y[test])
        for test in (watched or [None] * len(models))
    ]
    return fit_side_by_side(
        models,
        [(x[train], y[train]) for train in rows],
        seeds=seeds,
        validation=seen,
        restore_best=False,
        epochs=epochs,
        batch_size=first.batch_size,
        lr=first.lr,
        weight_decay=first.weight_decay,
        standardize=True,
        device=first.device,
        verbose=verbose,
        checkpoint_path=state,
        checkpoint_every=max(1, epochs[0] // 20),
    )


def train_folds(
    data: Data,
    options: Options,
    splits: Sequence[Split],
    *,
    verbose: bool,
    state: Path | None = None,
) -> tuple[list[GSNN], list[History], str]:
    """A network for each fold, which has not seen the fold's test rows, and one for all samples.

    The validation loss of a fold's network is that of its test rows: watched, never acted upon.

    Args:
        state: as in :func:`train_side_by_side`.

    Returns:
        The networks of the folds in turn and that of all samples last; their histories; and of the last, why
        it has so many epochs where that was "auto".
    """
    seeds = [*range(options.seed + 1, options.seed + 1 + len(splits)), options.seed]
    models = [new_model(data, options, seed) for seed in seeds]
    rows = [*(train for train, _ in splits), np.arange(len(data.x))]
    many = "fold" if len(splits) == 1 else f"{len(splits)} folds"
    label = verbose and f"{many} and all samples"
    own = [length(data, options, part, seed, label) for part, seed in zip(rows, seeds, strict=True)]
    histories = train_side_by_side(
        models,
        data,
        [settled for settled, _ in own],
        rows,
        seeds,
        watched=[*(test for _, test in splits), None],
        verbose=label,
        state=state,
    )
    return models, histories, own[-1][1]
