"""Prediction intervals from held-out residuals, and how often intervals hold what is measured.

Source: Barber, Candes, Ramdas & Tibshirani 2021, Predictive inference with the jackknife+, Annals of
Statistics 49(1), the method CV+. Its intervals hold a new sample that is exchangeable with those of the fit
with a probability of at least about 1 - 2 alpha whatever the model is, and of about 1 - alpha in practice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Values = NDArray[np.floating[Any]]


def cross_conformal(
    predictions: Values, fold: NDArray[np.integer[Any]], residuals: Values, level: float = 0.9
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of each new sample and output, by CV+.

    Args:
        predictions: (K, B, M), of the model of each fold, which has not seen the fold.
        fold: (n,) the fold (from 0) of each sample of the fit.
        residuals: (n, M), |y - prediction| of each of them by the model of its fold; NaN where not measured.
        level: 1 - alpha.

    Returns:
        ``low``, ``high``, both (B, M): with n measured samples of an output the floor(alpha (n + 1))-th
        smallest of prediction - residual and the ceil((1 - alpha) (n + 1))-th smallest of prediction +
        residual, the prediction being that of the residual's fold. Infinite where there are too few samples.
    """
    _, samples, outputs = predictions.shape
    low, high = np.full((samples, outputs), -np.inf), np.full((samples, outputs), np.inf)
    for output in range(outputs):
        rows = np.flatnonzero(~np.isnan(residuals[:, output]))
        n = len(rows)
        # The rounding of 1 - level must not cost a rank where alpha (n + 1) is a whole number.
        rank = math.floor((1 - level) * (n + 1) + 1e-9)
        if rank < 1:
            continue
        centre = predictions[fold[rows], :, output].astype(np.float64)
        spread = residuals[rows, output, None]
        low[:, output] = np.partition(centre - spread, rank - 1, axis=0)[rank - 1]
        high[:, output] = np.partition(centre + spread, n - rank, axis=0)[n - rank]
    return low, high


def residual_quantile(residuals: Values, level: float = 0.9) -> NDArray[np.float64]:
    """Half-width of an interval that holds a new value of each output with the probability ``level``.

    Split conformal prediction (Papadopoulos et al. 2002): residuals must be of samples that the model has not
    seen, and the new sample exchangeable with those.

    Args:
        residuals: (n, M), |y - prediction|; NaN where not measured.
        level: 1 - alpha.

    Returns:
        (M,): with n measured samples of an output the ceil(level (n + 1))-th smallest of its residuals;
        infinite where there are too few samples for that.
    """
    widths = np.full(residuals.shape[1], np.inf)
    for output, column in enumerate(residuals.T):
        values = np.sort(column[~np.isnan(column)])
        # As above, with the rounding of level the other way round.
        rank = math.ceil(level * (len(values) + 1) - 1e-9)
        if 1 <= rank <= len(values):
            widths[output] = values[rank - 1]
    return widths


def held_out_widths(
    residuals: Values, fold: NDArray[np.integer[Any]], level: float = 0.9
) -> NDArray[np.float64]:
    """Half-width of an interval about each held-out prediction of a cross-validation.

    That of a fold is the :func:`residual_quantile` of the other folds, so no error has a part in its own
    interval or in those of the samples that were held out with it.

    Args:
        residuals: (n, M), |y - prediction| by networks that had not seen the sample; NaN where not measured.
        fold: (n,) the fold of each sample.
        level: 1 - alpha.

    Returns:
        (n, M); infinite where the other folds have too few samples.
    """
    widths = np.full(residuals.shape, np.inf)
    for number in np.unique(fold):
        widths[fold == number] = residual_quantile(residuals[fold != number], level)
    return widths


def spread_interval(mean: Values, std: Values, level: float = 0.9) -> tuple[Values, Values]:
    """``mean`` -+ z ``std``, as if what is measured were normal with the spread of an ensemble.

    It leaves the noise of the measurement out, so it holds too little wherever there is any; it is here to
    compare with.
    """
    z = float(norm.ppf(0.5 + level / 2))
    return mean - z * std, mean + z * std


def coverage(y: Values, low: Values, high: Values) -> dict[str, Any]:
    """How often the intervals hold what was measured.

    Args:
        y: (B, M) measured values, NaN where there is none.
        low, high: (B, M).

    Returns:
        ``coverage``, the share of the measured values inside; ``width``, their intervals' median width;
        ``n``, how many there are; ``by_output``, (M,) the share of each output, NaN without any.
    """
    measured = ~np.isnan(y)
    inside = (low <= y) & (y <= high) & measured
    counts = measured.sum(0)
    n = int(counts.sum())
    return {
        "coverage": float(inside.sum() / n) if n else math.nan,
        "width": float(np.median((high - low)[measured])) if n else math.nan,
        "n": n,
        "by_output": np.divide(inside.sum(0), counts, out=np.full(len(counts), np.nan), where=counts > 0),
    }
