"""Splits, simple models and R2: what a GSNN is compared with, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gsnn.stats.baselines import Array, r2

METHODS = ("mean", "ridge", "mlp", "gsnn")
Split = tuple[np.ndarray, np.ndarray]


def make_splits(y: pd.DataFrame, groups: pd.Series | None, folds: int, seed: int) -> list[Split]:
    """(training rows, test rows) of each fold; one split with a fifth for testing where folds is 0."""
    from sklearn.model_selection import GroupKFold, GroupShuffleSplit, KFold, ShuffleSplit

    rows = np.arange(len(y))
    labels = None if groups is None else groups.to_numpy()
    if folds == 0:
        kind = ShuffleSplit if labels is None else GroupShuffleSplit
        splitter: Any = kind(1, test_size=0.2, random_state=seed)
    elif labels is None:
        splitter = KFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = GroupKFold(folds)
    splits = list(splitter.split(rows, groups=labels))
    for number, (train, _) in enumerate(splits, 1):
        empty = y.columns[y.iloc[train].isna().all()]
        if len(empty):
            raise ValueError(
                f"output {empty[0]!r} has no measured value among the training samples of fold {number}; "
                "use more folds, or drop it from the table and the graph"
            )
    return splits


def scores(table: pd.DataFrame, splits: Sequence[Split], yhat: dict[str, Array]) -> dict[str, Any]:
    """R2 and mean squared error of each method: pooled, by fold and by output."""
    y, mean = table.to_numpy(), yhat["mean"]
    seen = ~np.isnan(y) & ~np.isnan(mean)
    return {
        "r2": {m: r2(y, yhat[m], mean) for m in yhat},
        "mse": {m: float(((y - yhat[m])[seen] ** 2).mean()) for m in yhat},
        "r2_by_fold": {m: [r2(y[t], yhat[m][t], mean[t]) for _, t in splits] for m in yhat},
        "r2_by_output": {
            name: {m: r2(y[:, j], yhat[m][:, j], mean[:, j]) for m in yhat}
            for j, name in enumerate(table.columns)
        },
    }
