"""Fisher's z and Benjamini-Hochberg against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gsnn.stats.significance import benjamini_hochberg, fisher_p


def test_fisher_p_is_the_normal_tail_of_z():
    r = np.array([-0.9, -0.1, 0.0, 0.3, 0.95])
    for n, k in ((10, 0), (50, 4), (2000, 1)):
        np.testing.assert_allclose(
            fisher_p(r, n, k), stats.norm.sf(np.arctanh(r) * np.sqrt(n - 3 - k)), rtol=1e-12
        )
    assert fisher_p(0.0, 20) == 0.5


def test_fisher_p_has_its_size_under_independence():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4000, 30))
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    assert stats.kstest(fisher_p(r, 30), "uniform").pvalue > 0.01


def test_fisher_p_at_the_edges():
    assert fisher_p([1.0, -1.0], 20).tolist() == [0.0, 1.0]
    assert np.isnan(fisher_p(np.nan, 20))
    assert np.isnan(fisher_p([0.5, 1.0, -1.0], 3)).all()
    # conditioning broadcasts over sources, and takes the degrees of its own column only
    p = fisher_p(np.full((2, 3), 0.4), 10, np.array([0, 6, 7]))
    assert np.isfinite(p[:, :2]).all() and np.isnan(p[:, 2]).all()
    assert (p[:, 0] < p[:, 1]).all()
    strong = fisher_p([0.8, 0.9, 0.95], 300)  # far in the tail and still told apart
    assert (np.diff(strong) < 0).all() and strong[-1] > 0
    with pytest.raises(ValueError, match=r"r must be in \[-1, 1\], got 1.5"):
        fisher_p([0.0, 1.5], 20)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 1e-12, 0.01, 0.04, 0.2, 0.2000001, 0.7, 1.0]), min_size=1, max_size=40))
def test_benjamini_hochberg_is_scipys(p):
    np.testing.assert_allclose(
        benjamini_hochberg(p), stats.false_discovery_control(p, method="bh"), rtol=1e-12
    )


def test_benjamini_hochberg_ignores_missing_tests_and_keeps_shape():
    p = np.array([[0.01, np.nan, 0.02], [0.5, 0.03, np.nan]])
    q = benjamini_hochberg(p)
    finite = ~np.isnan(p)
    np.testing.assert_allclose(q[finite], stats.false_discovery_control(p[finite]))
    assert np.isnan(q[~finite]).all()
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()
    assert benjamini_hochberg([]).shape == (0,)


def test_benjamini_hochberg_of_some_in_a_family():
    p = np.array([0.2, 0.001, 0.04, np.nan, 0.04, 0.9])
    np.testing.assert_array_equal(
        benjamini_hochberg(p[[1, 4, 3]], family=p), benjamini_hochberg(p)[[1, 4, 3]]
    )
    with pytest.raises(ValueError, match="family must contain every value of p"):
        benjamini_hochberg([1e-5], family=p)
    for odd in (1.5, -0.5):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
            benjamini_hochberg([0.2], family=[0.2, odd, 0.4])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_benjamini_hochberg_in_slices(size, monkeypatch):
    rng = np.random.default_rng(size)
    p = np.concatenate([rng.uniform(size=40) ** 3, [0.5, 0.5, 0.999, 1.0, 0.0]])
    want = stats.false_discovery_control(p)
    family = p.copy()
    monkeypatch.setattr("gsnn.stats.significance._SLICE", size)
    np.testing.assert_allclose(benjamini_hochberg(p, family), want, rtol=1e-12)
    np.testing.assert_array_equal(family, p)  # worked on as a copy


def test_benjamini_hochberg_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
        benjamini_hochberg([0.5, 1.2])
