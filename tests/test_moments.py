"""Streaming co-moments against numpy on the whole sample, partial correlations against least squares."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.stats.moments import CoMoments, add_samples, aggregate, correlation, merge, partial_correlation

P, N = 2, 5
ALL = torch.arange(N)


def draw(n, seed=0, mean=3.0, sd=1.0):
    """Correlated features (P, n, N) away from zero."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(P, n, 1))
    x = mean + sd * (rng.normal(size=(P, n, N)) + common)
    y = mean + sd * (rng.normal(size=(P, n, N)) - 0.7 * common)
    return torch.from_numpy(x), torch.from_numpy(y)


def moments_of(x, y, cuts=()):
    state = CoMoments.empty(*x.shape[::2])
    for a, b in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        add_samples(state, x[:, a:b], y[:, a:b])
    return state


def numpy_correlation(x, y):
    return np.stack([np.corrcoef(a.T, b.T)[:N, N:] for a, b in zip(x.numpy(), y.numpy(), strict=True)])


def residual_correlation(x, y, i, j, parents):
    """corr of the residuals of x_i and y_j after regression on an intercept and the parents."""
    design = np.column_stack([np.ones(len(x)), x[:, parents]])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x[:, i], y[:, j])]
    return np.corrcoef(*left)[0, 1]


def same_moments(a, b, rtol=1e-12):
    assert a.n == b.n
    for name in ("mean_x", "mean_y", "m_x", "m_y", "m_xy", "m_xx"):
        left, right = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(left, right, rtol=rtol, atol=rtol * float(right.abs().max()))


def test_moments_are_the_centred_sums():
    x, y = draw(40)
    state = moments_of(x, y, cuts=(7, 8, 30))
    for p in range(P):
        xc, yc = x[p] - x[p].mean(0), y[p] - y[p].mean(0)
        torch.testing.assert_close(state.mean_x[p], x[p].mean(0))
        torch.testing.assert_close(state.m_x[p], xc.square().sum(0))
        torch.testing.assert_close(state.m_y[p], yc.square().sum(0))
        torch.testing.assert_close(state.m_xy[p], xc.T @ yc)
        torch.testing.assert_close(state.m_xx[p], xc.T @ xc)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    split=st.integers(0, 60),
)
def test_cutting_and_merging_change_nothing(seed, n, cuts, split):
    x, y = draw(n, seed)
    whole = moments_of(x, y)
    same_moments(moments_of(x, y, sorted(min(c, n) for c in cuts)), whole)
    split = min(split, n)
    parts = [moments_of(x[:, :split], y[:, :split]), moments_of(x[:, split:], y[:, split:])]
    same_moments(merge(parts), whole)
    same_moments(merge(parts[::-1]), whole)


def test_merge_of_many_and_of_none():
    x, y = draw(50)
    states = [moments_of(x[:, k::5], y[:, k::5]) for k in range(5)]
    same_moments(merge([*states, CoMoments.empty(P, N)]), moments_of(x, y))
    assert merge([CoMoments.empty(P, N)]).n == 0
    with pytest.raises(ValueError, match="at least one CoMoments, got none"):
        merge([])
    with pytest.raises(ValueError, match="one shape"):
        merge([states[0], CoMoments.empty(P, N + 1)])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(P=2, B, N=5\), got \(2, 3, 4\) and \(2, 3, 5\)"):
        add_samples(CoMoments.empty(P, N), torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("mean, sd", [(0.0, 1.0), (1e8, 1.0), (1e-3, 1e-30), (1e6, 1e-3)])
def test_correlation_is_corrcoef_whatever_the_scale(mean, sd):
    x, y = draw(200, mean=0.0)
    x, y = mean * (sd if mean == 1e-3 else 1.0) + sd * x, mean * (sd if mean == 1e-3 else 1.0) + sd * y
    got = correlation(moments_of(x, y, cuts=(13, 64, 65)), ALL).numpy()
    # What the shifted numbers still hold of the spread is the reference, so shift back exactly.
    want = numpy_correlation(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True))
    np.testing.assert_allclose(got, want, atol=1e-10 if mean < 1e8 else 1e-7)


def test_some_targets_only():
    x, y = draw(30)
    state = moments_of(x, y)
    torch.testing.assert_close(
        correlation(state, torch.tensor([3, 1])), correlation(state, ALL)[:, :, [3, 1]], rtol=0, atol=0
    )


def test_constant_features_give_nan_and_nothing_else_does():
    x, y = draw(30)
    x[0, :, 2] = 0.1  # not a float that sums exactly
    y[1, :, 4] = 0.0
    state = moments_of(x, y, cuts=(7, 19))
    assert state.m_x[0, 2] == 0.0 and state.mean_x[0, 2] == 0.1
    r = correlation(state, ALL)
    want = torch.zeros(P, N, N, dtype=torch.bool)
    want[0, 2, :] = True
    want[1, :, 4] = True
    assert torch.equal(r.isnan(), want)


def test_the_floor_follows_the_precision_of_the_features():
    x, y = draw(30)
    x[:, :, 0] = 1.0 + 1e-7 * x[:, :, 1]  # a spread that float32 could not have carried
    state = moments_of(x, y)
    assert not correlation(state, ALL)[:, 0].isnan().any()
    assert correlation(state, ALL, eps=2.0**-23)[:, 0].isnan().all()


@pytest.mark.parametrize("parents", [[1], [0, 3], [1, 2, 4]])
def test_partial_correlation_is_that_of_residuals(parents):
    x, y = draw(80, seed=3)
    state = moments_of(x, y, cuts=(33,))
    sets = torch.tensor([parents, parents])
    targets = torch.tensor([2, 0])
    got = partial_correlation(state, targets, sets, ridge=0.0)
    for p in range(P):
        for i in range(N):
            for t, j in enumerate(targets.tolist()):
                if i in parents:
                    assert got[p, i, t].isnan()
                else:
                    want = residual_correlation(x[p].numpy(), y[p].numpy(), i, j, parents)
                    assert abs(float(got[p, i, t]) - want) < 1e-10


def test_partial_correlation_with_fewer_parents_for_some():
    x, y = draw(80, seed=3)
    state = moments_of(x, y)
    got = partial_correlation(state, torch.tensor([2, 0]), torch.tensor([[1, -1, -1], [0, 3, 4]]), ridge=0.0)
    for p in range(P):
        for t, (j, parents) in enumerate([(2, [1]), (0, [0, 3, 4])]):
            want = [residual_correlation(x[p].numpy(), y[p].numpy(), i, j, parents) for i in range(N)]
            want = [np.nan if i in parents else value for i, value in enumerate(want)]
            np.testing.assert_allclose(got[p, :, t], want, rtol=0, atol=1e-10)


def test_partial_correlation_without_parents_is_the_correlation():
    state = moments_of(*draw(30))
    none = torch.zeros((N, 0), dtype=torch.long)
    torch.testing.assert_close(partial_correlation(state, ALL, none), correlation(state, ALL))


def test_partial_correlation_is_free_of_units():
    x, y = draw(60)
    sets = torch.tensor([[0, 1]])
    j = torch.tensor([3])
    want = partial_correlation(moments_of(x, y), j, sets)
    units = 10.0 ** torch.tensor([-9.0, 4.0, 0.0, 7.0, -3.0], dtype=torch.float64)
    got = partial_correlation(moments_of(x * units, y * 1e-30), j, sets)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-9, atol=1e-9)


def test_degenerate_parents():
    x, y = draw(60)
    x[:, :, 1] = 2.5  # constant: conditions on nothing
    x[:, :, 4] = 3.0 * x[:, :, 0] - 1.0  # a copy of parent 0
    state = moments_of(x, y)
    j = torch.tensor([2])
    alone = partial_correlation(state, j, torch.tensor([[0]]))
    with_constant = partial_correlation(state, j, torch.tensor([[0, 1]]))
    torch.testing.assert_close(with_constant[:, 2:4], alone[:, 2:4])
    assert alone[:, 4].isnan().all()  # fully explained by its copy
    for ridge in (0.0, 1e-8):  # two copies of one parent are one parent
        twice = partial_correlation(state, j, torch.tensor([[0, 4]]), ridge=ridge)
        torch.testing.assert_close(twice[:, 2:4], alone[:, 2:4], rtol=1e-6, atol=1e-6)


def test_aggregate():
    nan = np.nan
    r = torch.tensor([[0.2, nan, 0.5, nan, -0.3], [-0.6, 0.1, 0.1, nan, 0.3]], dtype=torch.float64)
    np.testing.assert_allclose(aggregate(r, "mean"), [-0.2, 0.1, 0.3, nan, 0.0])
    np.testing.assert_allclose(aggregate(r, "max"), [-0.6, 0.1, 0.5, nan, -0.3])
    with pytest.raises(ValueError, match="layer_agg must be 'mean' or 'max', got 'median'"):
        aggregate(r, cast(Any, "median"))
