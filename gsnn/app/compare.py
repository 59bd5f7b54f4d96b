"""Splits, simple models and R2: what a GSNN is compared with, and how."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, np.dtype[np.float64]]
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


def baseline(kind: str, x: Array, y: Array, x_test: Array, seed: int) -> Array:
    """Predictions of ridge regression or an MLP of scikit-learn that see all inputs, (B_test, N_out).

    Both work on standardised columns. Outputs measured in the same samples share one MLP; an output
    with gaps is fitted on its measured rows. Ridge chooses its penalty for each output by leave-one-out;
    the MLP has two layers of 64 and the weight penalty that did best on the data sets of the benchmarks.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import RidgeCV
    from sklearn.neural_network import MLPRegressor

    x_mean, x_scale = x.mean(0), x.std(0)
    x_scale[x_scale <= 1e-9 * np.abs(x_mean)] = 1.0
    y_mean, y_scale = np.nanmean(y, 0), np.nanstd(y, 0)
    y_scale[y_scale <= 1e-9 * np.abs(y_mean)] = 1.0
    x, x_test, y = (x - x_mean) / x_scale, (x_test - x_mean) / x_scale, (y - y_mean) / y_scale
    together: dict[bytes, list[int]] = {}
    for j in range(y.shape[1]):
        together.setdefault((~np.isnan(y[:, j])).tobytes(), []).append(j)
    out = np.zeros((len(x_test), y.shape[1]))
    for pattern, columns in together.items():
        rows = np.frombuffer(pattern, dtype=bool)
        target = y[rows][:, columns]
        if rows.sum() < 2:  # too few to fit anything but the mean
            continue
        if kind == "ridge":
            model: Any = RidgeCV(np.logspace(-3, 4, 15), alpha_per_target=True)
        else:
            model = MLPRegressor(
                hidden_layer_sizes=(64, 64),
                alpha=3.0,
                learning_rate_init=3e-3,
                max_iter=500,
                n_iter_no_change=20,
                random_state=seed,
            )
        with warnings.catch_warnings():  # a baseline cut off after 500 epochs is good enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[rows], target if len(columns) > 1 else target[:, 0])
        out[:, columns] = model.predict(x_test).reshape(len(x_test), -1)
    return out * y_scale + y_mean


def r2(y: Array, yhat: Array, mean: Array) -> float:
    """``1 - sum (y - yhat)^2 / sum (y - mean)^2`` over the measured cells, mean = the training fold's."""
    seen = ~np.isnan(y) & ~np.isnan(yhat)
    total = float(((y - mean)[seen] ** 2).sum())
    return 1.0 - float(((y - yhat)[seen] ** 2).sum()) / total if total > 0 else math.nan


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
