"""Kept samples against numpy on all of them, whatever way they came in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.stats.moments import CoMoments, correlation, partial_correlation
from gsnn.stats.samples import Collector, Samples, as_moments, joined

P, N = 2, 12
ALL = torch.arange(N)


def draw(n, seed=0, mean=3.0):
    """Correlated features (P, n, N) away from zero."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(P, n, 1))
    x = mean + rng.normal(size=(P, n, N)) + common
    y = mean + rng.normal(size=(P, n, N)) - 0.7 * common
    return torch.from_numpy(x), torch.from_numpy(y)


def collected(x, y, cuts=()):
    collector = Collector()
    for a, b in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        collector.add(x[:, a:b], y[:, a:b])
    return collector.result()


def same_as_numpy(state, x, y, atol=1e-10):
    """Means, squares, cross products and Gram rows are those of the whole samples."""
    assert state.n == x.shape[1]
    x, y = x.numpy(), y.numpy()
    dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    some = torch.tensor([5, 0, 7])
    for pair in range(P):
        for got, want in (
            (state.mean_x[pair], x[pair].mean(0)),
            (state.mean_y[pair], y[pair].mean(0)),
            (state.m_x[pair], np.square(dx[pair]).sum(0)),
            (state.m_y[pair], np.square(dy[pair]).sum(0)),
            (state.cross(some)[pair], dx[pair].T @ dy[pair][:, some]),
            (state.gram(pair, some), dx[pair][:, some].T @ dx[pair]),
        ):
            np.testing.assert_allclose(got.numpy(), want, atol=atol)


def test_the_smaller_form_is_kept():
    assert Collector().result() is None
    for n, form in ((1, Samples), (N - 1, Samples), (N, CoMoments), (300, CoMoments), (301, CoMoments)):
        x, y = draw(n)
        for cuts in ((), (n // 2,), (0, n // 3)):
            state = collected(x, y, cuts)
            assert type(state) is form
            same_as_numpy(state, x, y)


def test_a_collector_is_empty_after_its_result():
    collector = Collector()
    collector.add(*draw(5))
    found = collector.result()
    assert found is not None and found.n == 5
    assert collector.result() is None


def test_batches_are_left_as_they_are():
    x, y = draw(5)
    before = x.clone(), y.clone()
    collected(x[:, :2], y[:, :2])
    collected(x, y, (3,))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 5, 11, 12, 30, 280]), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_joining_is_seeing_all(sizes, seed):
    x, y = draw(sum(sizes), seed)
    state, start = None, 0
    for size in sizes:
        part = slice(start, start + size)
        new = collected(x[:, part], y[:, part])
        state = new if state is None else joined(state, new)
        start += size
    assert isinstance(state, Samples) == (sum(sizes) < N)
    same_as_numpy(state, x, y, atol=1e-9)


def test_as_moments():
    x, y = draw(9)
    state = collected(x, y)
    moments = as_moments(state)
    same_as_numpy(moments, x, y)
    assert as_moments(moments) is moments


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_correlations_are_corrcoef_whatever_the_scale(mean):
    x, y = draw(10, mean=mean)
    got = correlation(collected(x, y, (4,)), ALL).numpy()
    for pair in range(P):
        want = np.corrcoef((x[pair] - mean).T, (y[pair] - mean).T)[:N, N:]
        np.testing.assert_allclose(got[pair], want, atol=1e-10)


def test_constants_are_exactly_constant():
    x, y = draw(10)
    x[0, :, 2] = 0.1  # not a float that sums exactly
    y[1, :, 4] = 0.3
    first, second = collected(x[:, :6], y[:, :6]), collected(x[:, 6:], y[:, 6:])
    state = joined(first, second)
    assert isinstance(state, Samples) and state.m_x[0, 2] == 0.0 and state.m_y[1, 4] == 0.0
    want = torch.zeros(P, N, N, dtype=torch.bool)
    want[0, 2] = True
    want[1, :, 4] = True
    assert torch.equal(correlation(state, ALL).isnan(), want)


@pytest.mark.parametrize("block", [2**22, 1])
def test_partial_correlations_of_residuals(block, monkeypatch):
    monkeypatch.setattr("gsnn.stats.moments._BLOCK_ELEMENTS", block)
    x, y = draw(11, seed=4)
    targets, parents = torch.tensor([2, 0, 9]), torch.tensor([[1, 4], [4, 7], [0, 1]])
    got = partial_correlation(collected(x, y), targets, parents, ridge=0.0)
    for pair in range(P):
        for t, (j, given_) in enumerate(zip(targets.tolist(), parents.tolist(), strict=True)):
            design = np.column_stack([np.ones(11), x[pair][:, given_]])
            for i in range(N):
                if i in given_:
                    assert got[pair, i, t].isnan()
                    continue
                left = [
                    v - design @ np.linalg.lstsq(design, v, rcond=None)[0]
                    for v in (x[pair, :, i].numpy(), y[pair, :, j].numpy())
                ]
                assert float(got[pair, i, t]) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-10)
