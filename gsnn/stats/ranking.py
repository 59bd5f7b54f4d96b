"""How well scores find the true items: AUC, average precision, ranks, MRR and hits@k.

Missing scores (NaN) lose, everywhere in this module: a NaN is below every number, and a true item whose
score is NaN is also below every false item whose score is NaN. A method gains nothing by not answering.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from gsnn._checks import one_of, whole

Array = NDArray[np.float64]
Ties = Literal["realistic", "optimistic", "pessimistic"]
TIES: tuple[Ties, ...] = get_args(Ties)


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Scores as integer levels that keep order and ties and place NaN as the module says."""
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise ValueError(f"scores and labels must be of one shape (n,), got {s.shape} and {y.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1 (or bool)")
    y = y.astype(bool)
    if y.all() or not y.any():
        raise ValueError(f"labels must hold both true and false items, got {int(y.sum())} true of {y.size}")
    missing = np.isnan(s)
    levels = np.where(y, -2, -1).astype(np.int64)
    levels[~missing] = np.unique(s[~missing], return_inverse=True)[1]
    return levels, y


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the share of (true, false) couples in the right order, ties one half.

    The Mann-Whitney statistic over its maximum; scores and labels are (n,).
    """
    levels, y = _checked(scores, labels)
    ranks = rankdata(levels)
    true = int(y.sum())
    return float((ranks[y].sum() - true * (true + 1) / 2) / (true * (y.size - true)))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the true items of the precision at their score; tied items enter together.

    The step-wise area under the precision-recall curve; scores and labels are (n,).
    """
    levels, y = _checked(scores, labels)
    order = np.argsort(-levels, kind="stable")
    levels, y = levels[order], y[order]
    last = np.flatnonzero(np.append(np.diff(levels) != 0, True))  # last item of each run of ties
    found = np.cumsum(y)[last]
    precision = found / (last + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / found[-1])


def ranks(
    scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None = None, ties: Ties = "realistic"
) -> Array:
    """Rank (1 is best) of one candidate per query: (Q,).

    Args:
        scores: (Q, M) score of each candidate in each query, larger is better.
        targets: (Q,) index of the candidate whose rank is asked.
        known: (Q, M) bool, candidates to leave out of a query: None for the *raw* rank; for the *filtered*
            rank of Bordes et al. 2013, all other true candidates of the query. The target itself always
            counts.
        ties: 'optimistic' places the target before candidates of the same score, 'pessimistic' after them,
            'realistic' is the mean of the two (Berrendorf et al. 2020).

    A target whose score is NaN comes after all of its competitors, however ties are handled.
    """
    s = np.asarray(scores, dtype=np.float64)
    t = np.asarray(targets)
    if s.ndim != 2 or t.shape != s.shape[:1]:
        raise ValueError(f"scores must be (Q, M) and targets (Q,), got {s.shape} and {t.shape}")
    if t.size and not (np.issubdtype(t.dtype, np.integer) and t.min() >= 0 and t.max() < s.shape[1]):
        raise ValueError(f"targets must be integers in [0, {s.shape[1]})")
    one_of("ties", ties, TIES)
    query = np.arange(len(t))
    competes = np.ones(s.shape, dtype=bool)
    if known is not None:
        if np.shape(known) != s.shape:
            raise ValueError(f"known must be of the shape of scores {s.shape}, got {np.shape(known)}")
        competes &= ~np.asarray(known, dtype=bool)
    competes[query, t] = False
    own = s[query, t][:, None]
    # A comparison with NaN is false, which already places NaN candidates below a target with a score.
    optimistic = 1.0 + np.sum(competes & (s > own), axis=1)
    pessimistic = optimistic + np.sum(competes & (s == own), axis=1)
    worst = 1.0 + competes.sum(axis=1)
    chosen = {
        "optimistic": optimistic,
        "pessimistic": pessimistic,
        "realistic": (optimistic + pessimistic) / 2,
    }[ties]
    return np.where(np.isnan(own[:, 0]), worst, chosen)


def best_rows(scores: ArrayLike, k: int, eligible: ArrayLike) -> NDArray[np.int64]:
    """Rows of the k best entries of each column, best first: (k, T) from scores (M, T).

    Scores are finite or NaN, which comes last; ties by row. `eligible` (M, T) bool must leave at
    least k rows in every column. The cost is that of finding the k-th best and of sorting k rows, not M.
    """
    s = np.asarray(scores, dtype=np.float64).T
    key = np.where(np.isnan(s), np.inf, -s)  # (T, M), contiguous, smallest first
    key[~np.asarray(eligible, dtype=bool).T] = np.nan  # which sorts after infinity, and equals nothing
    worst = np.partition(key, k - 1, axis=1)[:, k - 1 : k]
    chosen = key < worst
    tied = key == worst
    room = k - chosen.sum(1, keepdims=True)
    many = np.flatnonzero(tied.sum(1) > room[:, 0])
    tied[many] &= np.cumsum(tied[many], axis=1) <= room[many]
    rows = np.nonzero(chosen | tied)[1].reshape(len(key), k)
    order = np.argsort(np.take_along_axis(key, rows, 1), axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1).T


def mrr(ranks: ArrayLike) -> float:
    """Mean of 1 / rank over queries (Q,)."""
    return float(np.mean(1.0 / _positive(ranks)))


def hits(ranks: ArrayLike, k: int) -> float:
    """Share of queries (Q,) whose rank is at most k (hits@k)."""
    k = whole("k", k)
    return float(np.mean(_positive(ranks) <= k))


def _positive(ranks: ArrayLike) -> Array:
    r = np.asarray(ranks, dtype=np.float64)
    if r.size == 0:
        raise ValueError("ranks must hold at least one rank, got none")
    if not (r >= 1).all():
        raise ValueError("ranks must be at least 1")
    return r
