"""Ranking metrics against scikit-learn and against their definitions spelled out item by item."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from gsnn.stats.ranking import auc, average_precision, best_rows, hits, mrr, ranks

tied = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 0.3, 2.0, 7.0])


@st.composite
def labelled(draw):
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(tied, min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda y: any(y) and not all(y)))
    return np.array(scores), np.array(labels)


@settings(deadline=None, max_examples=80)
@given(labelled())
def test_auc_and_average_precision_are_sklearns(case):
    scores, labels = case
    finite = np.where(np.isinf(scores), -1e9, scores)  # scikit-learn takes no infinities
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, finite), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, finite), abs=1e-12
    )


def brute_rank(scores, target, known, ties):
    """PyKEEN's definitions: optimistic and pessimistic rank and their mean, by counting."""
    competitors = [s for i, s in enumerate(scores) if i != target and not known[i]]
    own = scores[target]
    optimistic = 1 + sum(s > own for s in competitors)
    pessimistic = 1 + sum(s >= own for s in competitors)
    return {
        "optimistic": optimistic,
        "pessimistic": pessimistic,
        "realistic": (optimistic + pessimistic) / 2,
    }[ties]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 12))
def test_ranks_by_definition(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, candidates)) / 3.0  # many ties
    targets = rng.integers(0, candidates, queries)
    known = rng.random((queries, candidates)) < 0.3
    for ties in ("optimistic", "pessimistic", "realistic"):
        raw = [
            brute_rank(s, t, np.zeros(candidates, bool), ties) for s, t in zip(scores, targets, strict=True)
        ]
        filtered = [brute_rank(s, t, k, ties) for s, t, k in zip(scores, targets, known, strict=True)]
        assert ranks(scores, targets, ties=ties).tolist() == raw
        assert ranks(scores, targets, known, ties=ties).tolist() == filtered
        assert ranks(scores, targets, known.astype(int).tolist(), ties=ties).tolist() == filtered


def test_a_missing_score_loses():
    nan = np.nan
    # (true, false) couples: 0.5 beats 0.1 and both NaN; the true NaN beats nothing, not even a false NaN
    scores, labels = [0.5, nan, 0.1, nan, nan], [1, 1, 0, 0, 0]
    assert auc(scores, labels) == pytest.approx(3 / 6)
    assert average_precision(scores, labels) == pytest.approx((1 / 1 + 2 / 5) / 2)
    row = [nan, 0.3, nan, -np.inf]
    assert ranks([row, row, row], [0, 1, 3]).tolist() == [4.0, 1.0, 2.0]
    assert ranks([row], [0], known=[[True, False, True, False]], ties="optimistic").tolist() == [3.0]


def test_mrr_and_hits():
    r = [1, 2.5, 4, 1]
    assert mrr(r) == pytest.approx((1 + 0.4 + 0.25 + 1) / 4)
    assert [hits(r, k) for k in (1, 2, 3, 4)] == [0.5, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: auc([1.0, 2.0], [1, 1]), "both true and false items, got 2 true of 2"),
        (lambda: average_precision([1.0], [0]), "both true and false items, got 0 true of 1"),
        (lambda: auc([1.0, 2.0], [1]), r"one shape \(n,\), got \(2,\) and \(1,\)"),
        (lambda: auc([1.0, 2.0], [1, 3]), "labels must be 0 or 1"),
        (lambda: ranks([1.0], [0]), r"scores must be \(Q, M\)"),
        (lambda: ranks([[1.0]], [1]), r"targets must be integers in \[0, 1\)"),
        (lambda: ranks([[1.0]], [0], known=[[0, 1]]), "known must be of the shape of scores"),
        (lambda: ranks([[1.0]], [0], ties=cast(Any, "mean")), "ties must be one of 'realistic'.*got 'mean'"),
        (lambda: mrr([]), "at least one rank, got none"),
        (lambda: mrr([0.5]), "ranks must be at least 1"),
        (lambda: hits([1.0], 0), "k must be a positive int, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_best_rows_are_those_of_a_stable_sort(data):
    rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    value = st.sampled_from([np.nan, -1.0, 0.0, 0.5, 0.75])
    scores = np.array([[data.draw(value) for _ in range(columns)] for _ in range(rows)])
    eligible = np.ones(scores.shape, dtype=bool)
    if rows > 1:  # as when a target is no source of its own
        eligible[[data.draw(st.integers(0, rows - 1)) for _ in range(columns)], np.arange(columns)] = False
    k = data.draw(st.integers(1, int(eligible.sum(0).min())))
    got = best_rows(scores, k, eligible)
    assert got.shape == (k, columns)
    for column in range(columns):
        key = [(np.isnan(s), -s if s == s else 0.0, row) for row, s in enumerate(scores[:, column])]
        want = [row for *_, row in sorted(key) if eligible[row, column]]
        assert got[:, column].tolist() == want[:k]
