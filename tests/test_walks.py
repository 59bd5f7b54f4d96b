"""Random walks against transition probabilities written down by hand, and window pairs against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gsnn.optim.walks import Transitions, random_walks, window_pairs

# Node 0 has a heavy and two light edges, 1 goes straight on, 2 is a dead end, 3 has a self edge.
SOURCE = np.array([3, 0, 0, 1, 0, 3])
TARGET = np.array([0, 1, 2, 3, 3, 3])
WEIGHT = np.array([1.0, 0.7, 0.1, 5.0, 0.2, 3.0])
EXACT = np.array([[0, 0.7, 0.1, 0.2], [0, 0, 0, 1], [0, 0, 0, 0], [0.25, 0, 0, 0.75]])


def small():
    return Transitions.of(SOURCE, TARGET, WEIGHT, 4)


def probabilities(table):
    """(N, N) transition probabilities that the tables of a Transitions stand for."""
    n = len(table.degree)
    out = np.zeros((n, n))
    for i in range(n):
        for e in range(table.start[i], table.start[i] + table.degree[i]):
            out[i, table.node[2 * e]] += table.keep[e] / table.degree[i]
            out[i, table.node[2 * e + 1]] += (1 - table.keep[e]) / table.degree[i]
    return out


def test_tables_hold_the_exact_probabilities():
    np.testing.assert_allclose(probabilities(small()), EXACT, atol=1e-15)


@st.composite
def weighted_graphs(draw):
    n = draw(st.integers(1, 9))
    m = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = {
        "uniform": lambda: rng.random(m),
        "equal": lambda: np.full(m, 0.3),
        "integers": lambda: rng.integers(0, 4, m).astype(float),
        "skewed": lambda: rng.exponential(size=m) ** 6,
        "any size": lambda: 10.0 ** rng.uniform(-300, 300, m),
    }[draw(st.sampled_from(["uniform", "equal", "integers", "skewed", "any size"]))]()
    return rng.integers(0, n, m), rng.integers(0, n, m), weight, n


@settings(max_examples=200, deadline=None)
@given(weighted_graphs())
def test_tables_are_weights_over_their_row_sum(graph):
    source, target, weight, n = graph
    want = np.zeros((n, n))
    for i in range(n):
        row = source == i
        if weight[row].any():
            share = weight[row] / weight[row].max()
            np.add.at(want[i], target[row], share / share.sum())
    table = Transitions.of(source, target, weight, n)
    np.testing.assert_allclose(probabilities(table), want, atol=1e-12)
    assert ((table.keep >= 0) & (table.keep <= 1)).all()


def test_steps_match_the_exact_probabilities():
    walks = random_walks(small(), np.repeat([0, 1, 3], 4000), 6, np.random.default_rng(1))
    for i in (0, 1, 3):
        at, step = np.nonzero(walks[:, :-1] == i)
        count = np.bincount(walks[at, step + 1], minlength=4)
        possible = EXACT[i] > 0
        assert count[~possible].sum() == 0
        if possible.sum() > 1:
            assert chisquare(count[possible], EXACT[i][possible] * count.sum()).pvalue > 1e-3
    # The same samples reject weights that are a little off, so that the test above can fail.
    at, step = np.nonzero(walks[:, :-1] == 3)
    count = np.bincount(walks[at, step + 1], minlength=4)
    assert chisquare(count[[0, 3]], np.array([0.28, 0.72]) * count.sum()).pvalue < 1e-3


def test_successive_steps_are_independent():
    walks = random_walks(small(), np.full(20000, 3), 2, np.random.default_rng(2))
    paths, count = np.unique(walks, axis=0, return_counts=True)
    want = [EXACT[a, b] * EXACT[b, c] for a, b, c in paths]
    assert len(paths) == 5 and sum(want) == pytest.approx(1.0)
    assert chisquare(count, np.array(want) * 20000).pvalue > 1e-3


def test_hubs_and_many_walkers():
    rng = np.random.default_rng(3)
    weight = rng.exponential(size=300) ** 3
    table = Transitions.of(np.zeros(300, int), np.arange(1, 301), weight, 301)
    walks = random_walks(table, np.zeros(60000, int), 1, rng)
    count = np.bincount(walks[:, 1], minlength=301)[1:]
    expected = weight / weight.sum() * 60000
    seen = expected >= 5
    count, expected = (np.append(v[seen], v[~seen].sum()) for v in (count, expected))
    assert chisquare(count, expected).pvalue > 1e-3


def test_dead_ends_stop_a_walk():
    walks = random_walks(small(), [2, 0, 0, 0, 1] * 50, 9, np.random.default_rng(0))
    assert walks.dtype == np.int32 and walks.shape == (250, 10)
    assert (walks[::5, 1:] == -1).all() and (walks[::5, 0] == 2).all()
    for walk in walks:
        ends = np.flatnonzero(walk == 2)
        if len(ends):
            assert (walk[ends[0] + 1 :] == -1).all() and (walk[: ends[0]] >= 0).all()
        else:
            assert (walk >= 0).all()
    assert 20 < (walks == 2).any(1).sum() - 50 < 200


def test_the_seed_decides_bit_for_bit():
    starts = np.repeat(np.arange(4), 3000)  # more than one group of walkers
    first, again, other = (
        random_walks(small(), starts, 5, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()
    shuffled = np.random.default_rng(0).permutation(6)
    same = Transitions.of(SOURCE[shuffled], TARGET[shuffled], WEIGHT[shuffled], 4)
    assert random_walks(same, starts, 5, np.random.default_rng(7)).tobytes() == first.tobytes()


def test_walks_draw_from_nothing_but_their_generator():
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    random_walks(small(), [0, 1], 5, np.random.default_rng(0))
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def test_graphs_without_edges_and_walks_without_steps():
    empty = np.array([], dtype=int)
    table = Transitions.of(empty, empty, np.array([]), 3)
    assert random_walks(table, [0, 2], 2, np.random.default_rng(0)).tolist() == [[0, -1, -1], [2, -1, -1]]
    assert random_walks(small(), [0, 3], 0, np.random.default_rng(0)).tolist() == [[0], [3]]
    assert random_walks(small(), empty, 4, np.random.default_rng(0)).shape == (0, 5)


def loop_pairs(walks, window, along=None):
    out = []
    for w, walk in enumerate(walks):
        for a in range(len(walk)):
            for b in range(a + 1, min(a + window, len(walk) - 1) + 1):
                if walk[b] >= 0 and (along is None or along[w][a:b].all()):
                    out.append((walk[a], walk[b]))
    return sorted(out)


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_window_pairs(window):
    rng = np.random.default_rng(0)
    walks = random_walks(small(), np.repeat(np.arange(4), 4), 4, rng)
    assert sorted(zip(*window_pairs(walks, window), strict=True)) == loop_pairs(walks, window)
    along = rng.random((16, 4)) < 0.7
    pairs = window_pairs(walks, window, along)
    assert sorted(zip(*pairs, strict=True)) == loop_pairs(walks, window, along)
    assert len(pairs[0]) > 5


def test_window_pairs_of_single_nodes():
    earlier, later = window_pairs(np.array([[1], [2]], dtype=np.int32), 2)
    assert len(earlier) == len(later) == 0


@pytest.mark.parametrize(
    "source, target, weight, message",
    [
        ([0, 1], [1], [1.0, 1.0], r"must be of one shape \(E,\), got \(2,\), \(1,\) and \(2,\)"),
        ([0], [1], [-1.0], "weight must be non-negative and finite"),
        ([0], [1], [np.nan], "weight must be non-negative and finite"),
        ([0], [3], [1.0], r"target must be integers in \[0, 3\)"),
        ([-1], [0], [1.0], r"source must be integers in \[0, 3\)"),
        ([0.0], [1], [1.0], r"source must be integers in \[0, 3\)"),
    ],
)
def test_bad_edges(source, target, weight, message):
    with pytest.raises(ValueError, match=message):
        Transitions.of(source, target, weight, 3)


def test_more_edges_than_the_places_of_a_walk_can_count_are_refused():
    """As they would be read from a place that is the rest after division by 2**32."""
    node, weight = (np.broadcast_to(np.array(1, kind), 2**30) for kind in (np.int64, np.float64))
    with pytest.raises(ValueError, match=r"must have fewer than 2\*\*30 edges to walk on, got 1073741824"):
        Transitions.of(node, node, weight, 3)
