"""Splits, simple models and R2: what a GSNN is compared with, and how."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gsnn.stats.baselines import Array, r2

METHODS = ("mean", "ridge", "mlp", "gsnn")
Split = tuple[np.ndarray, np.ndarray]


def make_splits(y: pd.DataFrame, groups: pd.Series | None, folds: int, seed: int) -> list[Split]:
    """(training rows, test rows) of each fold; one split with a fifth for testing where folds is 0."""
    from sklearn.model_selection import GroupShuffleSplit, KFold, PredefinedSplit, ShuffleSplit

    rows = np.arange(len(y))
    labels = None if groups is None else groups.to_numpy()
    if folds == 0:
        kind = ShuffleSplit if labels is None else GroupShuffleSplit
        splitter: Any = kind(1, test_size=0.2, random_state=seed)
    elif labels is None:
        splitter = KFold(folds, shuffle=True, random_state=seed)
    else:
        splitter, labels = PredefinedSplit(_fold_of_group(labels, folds, seed)), None
    splits = list(splitter.split(rows, groups=labels))
    for number, (train, _) in enumerate(splits, 1):
        empty = y.columns[y.iloc[train].isna().all()]
        if len(empty):
            raise ValueError(
                f"output {empty[0]!r} has no measured value among the training samples of fold {number}; "
                "use more folds, or drop it from the table and the graph"
            )
    return splits


def _fold_of_group(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (from 0) of each row: groups stay whole, folds are of about the same size.

    Groups go one by one to the fold that is smallest so far (of several, to a random one): those of similar
    size, within a factor of two, in random order, larger ones before smaller ones. So no fold is larger than
    another by more than the largest group.
    """
    group, names = pd.factorize(labels)
    size = np.bincount(group)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(names)), -np.floor(np.log2(size))))
    fold_of, rows = np.empty(len(names), dtype=int), np.zeros(folds, dtype=int)
    for g in order:
        fold_of[g] = rng.choice(np.flatnonzero(rows == rows.min()))
        rows[fold_of[g]] += size[g]
    return fold_of[group]


def scores(table: pd.DataFrame, splits: Sequence[Split], yhat: dict[str, Array]) -> dict[str, Any]:
    """R2 and mean squared error of each method.

    ``r2`` is pooled over outputs in their own units, so that those of large variance rule it;
    ``r2_standardised`` is pooled with each output in units of its standard deviation; ``r2_median`` is the
    median over outputs. ``r2_by_fold`` and ``r2_by_output`` are pooled within folds and outputs.
    """
    y, mean = table.to_numpy(), yhat["mean"]
    seen = ~np.isnan(y) & ~np.isnan(mean)
    by_output = {m: [r2(y[:, j], yhat[m][:, j], mean[:, j]) for j in range(y.shape[1])] for m in yhat}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an output with a single measured value
        spread = np.nanstd(y, axis=0)
    unit = np.where(spread > 0, spread, np.nan)
    return {
        "r2": {m: r2(y, yhat[m], mean) for m in yhat},
        "r2_median": {m: float(np.nanmedian(by_output[m])) for m in yhat},
        "r2_standardised": {m: r2(y / unit, yhat[m] / unit, mean / unit) for m in yhat},
        "mse": {m: float(((y - yhat[m])[seen] ** 2).mean()) for m in yhat},
        "r2_by_fold": {m: [r2(y[t], yhat[m][t], mean[t]) for _, t in splits] for m in yhat},
        "r2_by_output": {name: {m: by_output[m][j] for m in yhat} for j, name in enumerate(table.columns)},
    }
