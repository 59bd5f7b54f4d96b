"""Least squares pooled over slots that share their samples, and its significance."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.special import stdtr
from torch import Tensor

from gsnn._checks import one_of

Array = NDArray[np.float64]

_SINGULAR = 1e-10  # eigenvalues of the features' Gram matrix below this share of the largest count as 0
_UNDETERMINED = 1e-6  # share of a feature's direction in the null space from which it has no coefficient


class PooledFit(NamedTuple):
    """Coefficients (N, T), their standard errors (N, T) and the residual degrees of freedom (T,)."""

    coef: Array
    se: Array
    degrees: Array

    def p_values(self, alternative: Literal["two-sided", "greater"] = "two-sided") -> Array:
        """(N, T) of Student's t test of coef = 0, against 'two-sided' (coef != 0) or 'greater' (coef > 0)."""
        one_of("alternative", alternative, ("two-sided", "greater"))
        with np.errstate(invalid="ignore", divide="ignore"):
            t = self.coef / self.se
        if alternative == "two-sided":
            return 2.0 * stdtr(self.degrees, -np.abs(t))
        return stdtr(self.degrees, -t)


def centred(values: Array, groups: NDArray[np.int64] | None = None) -> Array:
    """values (R, n, K) less the mean over the samples of each group; `groups` (n,), by default one."""
    if groups is None:
        return values - values.mean(1, keepdims=True)
    out = np.empty_like(values)
    for group in np.unique(groups):
        members = groups == group
        out[:, members] = centred(values[:, members])
    return out


def squared_error(weights: Tensor, x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum over everything of (weights' x_a - y)^2, and its gradient (N, T) with respect to `weights` (N, T).

    x (N, A, R): A descriptions of each feature in R rows; all of them predict the same y (T, R). `mask`
    (N, T) multiplies the weights. Both results are sums over rows, so those of several processes add up.
    """
    flat = x.flatten(1)
    masked = weights if mask is None else weights * mask
    residual = (masked.T @ flat).view(len(y), *x.shape[1:]).sub_(y[:, None])
    grad = (flat @ residual.flatten(1).T).mul_(2)
    return residual.square().sum(), grad if mask is None else grad.mul_(mask)


def pooled_least_squares(x: Array, y: Array, groups: NDArray[np.int64] | None = None) -> PooledFit:
    """One (N, T) coefficient matrix that predicts y[r] from x[r] in each of R slots, and its standard errors.

    The slots hold the same n samples measured in R ways, so the R residuals of a sample depend on each
    other; samples do not. Each slot has an intercept of its own, for each group of samples.

    Args:
        x: (R, n, N) features.
        y: (Q, n, T) targets, R a multiple of Q: slot r predicts y[r % Q].
        groups: (n,) group of each sample, by default all in one.

    Method: ordinary least squares of all R n rows. With F_r the centred features of slot r, H_r = F_r G^-1,
    G = sum_r F_r' F_r, and S_rs = e_r . e_s / d the covariance of one target's residuals in slots r and s,
    the variance of its coefficient of feature i is sum_rs S_rs (H_r' H_s)_ii, that of a least-squares
    estimate under correlated errors (as for systems of equations, Zellner 1962). d = n - groups - v takes off
    the degrees spent, v = sum_rs S_rs trace(H_r F_s') / sum_r S_rr, which makes the total residual variance
    unbiased; the t test has d degrees. With one slot v = N, and this is the textbook t test of regression
    with an intercept. Slots that repeat each other count once.

    NaN where a feature or a target is constant, where other features determine the feature, and everywhere
    if no degree of freedom is left.
    """
    slots, n, features = x.shape
    intercepts = 1 if groups is None else len(np.unique(groups))
    x, y = centred(x, groups), centred(y, groups)
    size = np.sqrt(np.square(x).sum((0, 1)))
    moving = size > 0
    x = x[..., moving] / size[moving]  # unit columns, so that the rank does not depend on the features' units
    rows = x.reshape(-1, x.shape[2])
    inverse, determined = _inverse(rows.T @ rows)
    h = (rows @ inverse).reshape(x.shape)
    together = x.reshape(-1, *y.shape[:2], x.shape[2]).sum(0)  # (Q, n, N), as they predict the same
    coef = inverse @ np.tensordot(together, y, ((0, 1), (0, 1)))  # (N, T)
    residual = (rows @ coef).reshape(-1, *y.shape)
    residual = np.subtract(y, residual, out=residual).reshape(slots, n, -1)
    s = np.einsum("rbj,sbj->rsj", residual, residual, optimize=True)
    spent_by = np.einsum("rbi,sbi->rs", h, x, optimize=True)
    k = np.einsum("rbi,sbi->rsi", h, h, optimize=True)
    total = np.einsum("rrj->j", s)
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = n - intercepts - np.tensordot(spent_by, s, 2) / total
        degrees[~(degrees > 1e-9)] = np.nan  # also for a constant target, whose residuals are all 0
        variance = np.tensordot(k, s, ((0, 1), (0, 1))) / degrees
        error = np.sqrt(np.where(variance > 0, variance, np.nan))
    found, se = (np.full((features, y.shape[2]), np.nan) for _ in range(2))
    known = np.flatnonzero(moving)[determined]
    found[known] = coef[determined] / size[known, None]
    se[known] = error[determined] / size[known, None]
    return PooledFit(found, se, degrees)


def _inverse(gram: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Pseudoinverse of a Gram matrix (N, N) of unit columns; of each, whether others leave it undetermined.

    By Cholesky where that shows that no eigenvalue is below the floor, which takes a tenth of the time.
    """
    if not len(gram):
        return gram, np.zeros(0, dtype=bool)
    factor, failed = lapack.dpotrf(gram, lower=1)
    if not failed:
        lower, failed = lapack.dpotri(factor, lower=1)
    if not failed:
        inverse = np.tril(lower) + np.tril(lower, -1).T
        # The norm is at least the inverse of the smallest eigenvalue, the trace at least the largest.
        if _SINGULAR * np.linalg.norm(inverse) * np.trace(gram) < 1.0:
            return inverse, np.ones(len(gram), dtype=bool)
    w, v = np.linalg.eigh(gram)
    good = w > _SINGULAR * w[-1]
    return (v[:, good] / w[good]) @ v[:, good].T, np.square(v[:, ~good]).sum(1) < _UNDETERMINED
