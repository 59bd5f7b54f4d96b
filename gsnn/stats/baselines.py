"""Simple models that see all inputs and no graph, and R2: what a network is compared with."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, get_args

import numpy as np

from gsnn._checks import one_of

Array = np.ndarray[Any, np.dtype[np.float64]]

Baseline = Literal["ridge", "mlp"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

# scikit-learn before 1.9 takes a direction of the inputs that varies as much as its column of ones for the
# intercept, and does not fit along it. Standardised columns of a balanced design vary just so; in these
# units they do not, and the penalties are the same in theirs.
_UNIT = 1 / math.pi


def baseline(kind: Baseline, x: Array, y: Array, x_test: Array, seed: int) -> Array:
    """Predictions of ridge regression or an MLP of scikit-learn that see all inputs, (B_test, N_out).

    Both work on standardised columns. Outputs measured in the same samples share one MLP; an output
    with gaps is fitted on its measured rows. Ridge chooses its penalty for each output by leave-one-out;
    the MLP has two layers of 64 and the weight penalty that did best on the data sets of the benchmarks.

    Args:
        kind: ``ridge`` or ``mlp``.
        x: (B, N_in) to fit on.
        y: (B, N_out), NaN where nothing was measured.
        x_test: (B_test, N_in).
        seed: of the MLP's initial weights and batches.

    Raises:
        ValueError: another kind.
    """
    one_of("kind", kind, BASELINES)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import RidgeCV
    from sklearn.neural_network import MLPRegressor

    x_mean, x_scale = x.mean(0), x.std(0)
    x_scale[x_scale <= 1e-9 * np.abs(x_mean)] = 1.0
    y_mean, y_scale = np.nanmean(y, 0), np.nanstd(y, 0)
    y_scale[y_scale <= 1e-9 * np.abs(y_mean)] = 1.0
    x, x_test, y = (x - x_mean) / x_scale, (x_test - x_mean) / x_scale, (y - y_mean) / y_scale
    if kind == "ridge":
        x, x_test = _UNIT * x, _UNIT * x_test
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
            model: Any = RidgeCV(_UNIT**2 * np.logspace(-3, 4, 15), alpha_per_target=True)
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
