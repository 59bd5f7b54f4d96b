"""Significance of correlations: Fisher's z and the false discovery rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

_SLICE = 2**20  # p-values adjusted at a time


def fisher_p(r: ArrayLike, n: int, conditioned: ArrayLike = 0) -> Array:
    """One-sided p-value (alternative r > 0) of correlations `r` over n samples.

    Fisher 1915, 1924: under independence atanh(r) * sqrt(n - 3 - k) is standard normal, k the number of
    variables conditioned on (`conditioned`, broadcast against `r`). NaN where r is NaN or where no
    degree of freedom is left (n - 3 - k <= 0); r = 1 gives 0 and r = -1 gives 1.
    """
    r = np.asarray(r, dtype=np.float64)
    if np.any(np.abs(r) > 1.0):
        raise ValueError(f"r must be in [-1, 1], got {float(np.nanmax(np.abs(r)))} in magnitude")
    degrees = n - 3.0 - np.asarray(conditioned, dtype=np.float64)
    root = np.sqrt(np.where(degrees > 0, degrees, np.nan))
    # Clipping at the last float below 1 keeps atanh finite; the two ends are then exact by assignment.
    z = np.arctanh(np.clip(r, np.nextafter(-1.0, 0.0), np.nextafter(1.0, 0.0))) * root
    p = ndtr(-z)
    return np.where(np.isnan(z), np.nan, np.where(r == 1.0, 0.0, np.where(r == -1.0, 1.0, p)))


def benjamini_hochberg(p: ArrayLike, family: ArrayLike | None = None) -> Array:
    """Adjusted p-values (q) of `p`, the method of Benjamini & Hochberg 1995; same shape as `p`.

    `family` holds the p-values of all tests that were made, by default `p` itself. Where only some
    of them are looked at (the best few of each target), the family must still be all of them: adjusting
    the chosen ones alone forgets that they were chosen. NaN is no test: it stays NaN and is not counted.
    """
    p = np.asarray(p, dtype=np.float64)
    finite = ~np.isnan(p)
    some = p[finite]
    order = np.argsort(some)
    some = some[order]  # in order, their places in the family are found at a tenth of the time
    # One sorted copy of the family, NaN last, is all that a large one costs: it is worked on in slices.
    tests = some.copy() if family is None else np.sort(np.asarray(family, dtype=np.float64), axis=None)
    tests = tests[: np.searchsorted(tests, np.nan)]
    for ends in (some[:1], some[-1:], tests[:1], tests[-1:]):
        if np.any((ends < 0.0) | (ends > 1.0)):
            raise ValueError("p must be in [0, 1]")
    q = np.full(p.shape, np.nan)
    rank = np.searchsorted(tests, some, side="right")
    if np.any(rank == 0):
        raise ValueError("family must contain every value of p")
    least = 1.0
    for start in reversed(range(0, tests.size, _SLICE)):
        part = tests[start : start + _SLICE]
        part *= tests.size / np.arange(start + 1.0, start + part.size + 1.0)
        part[-1] = min(part[-1], least)
        part[:] = np.minimum.accumulate(part[::-1])[::-1]
        least = part[0]
    adjusted = np.empty_like(some)
    adjusted[order] = tests[rank - 1]
    q[finite] = adjusted
    return q
