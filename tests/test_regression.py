"""Pooled least squares against textbook regression, and its p-values where nothing depends on anything."""

from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from gsnn.stats.regression import pooled_least_squares


def textbook(x, y):
    """Coefficients, standard errors and two-sided p-values of y on x (n, N) with an intercept."""
    design = np.column_stack([np.ones(len(x)), x])
    coef, rss, *_ = np.linalg.lstsq(design, y, rcond=None)
    degrees = len(x) - design.shape[1]
    se = np.sqrt(rss[None, :] / degrees * np.diag(np.linalg.inv(design.T @ design))[:, None])
    return coef[1:], se[1:], 2 * stats.t.sf(np.abs(coef / se)[1:], degrees)


def drawn(seed=0, slots=1, n=40, features=4, targets=3, shared=0.0):
    """Independent x and y whose slots share a part of their variance."""
    rng = np.random.default_rng(seed)
    x, y = (
        np.sqrt(1 - shared) * rng.normal(size=(slots, n, k)) + np.sqrt(shared) * rng.normal(size=(1, n, k))
        for k in (features, targets)
    )
    return x, y


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
def test_one_slot_is_the_textbook(unit):
    x, y = drawn()
    x[0, :, 1] = unit * (3.0 + x[0, :, 1])
    y[0, :, 0] += 2.0 * x[0, :, 2]
    fit = pooled_least_squares(x, y)
    coef, se, p = textbook(x[0] / [1, unit, 1, 1], y[0])
    np.testing.assert_allclose(fit.coef * np.array([[1], [unit], [1], [1]]), coef, rtol=1e-8)
    np.testing.assert_allclose(fit.se * np.array([[1], [unit], [1], [1]]), se, rtol=1e-8)
    np.testing.assert_allclose(fit.p_values(), p, rtol=1e-7)
    np.testing.assert_allclose(fit.degrees, 40 - 4 - 1)
    one_sided = fit.p_values("greater")
    np.testing.assert_allclose(one_sided, np.where(coef > 0, p / 2, 1 - p / 2), rtol=1e-7)
    assert fit.p_values()[2, 0] < 1e-12


def test_slots_that_repeat_each_other_count_once():
    x, y = drawn()
    once, thrice = pooled_least_squares(x, y), pooled_least_squares(x.repeat(3, 0), y.repeat(3, 0))
    for name in ("coef", "se", "degrees"):
        np.testing.assert_allclose(getattr(thrice, name), getattr(once, name), rtol=1e-9)


def test_coefficients_are_those_of_the_stacked_rows():
    x, y = drawn(slots=3)
    centred = [part - part.mean(1, keepdims=True) for part in (x, y)]
    rows_x, rows_y = (part.reshape(-1, part.shape[-1]) for part in centred)
    fit = pooled_least_squares(x, y)
    np.testing.assert_allclose(fit.coef, np.linalg.lstsq(rows_x, rows_y, rcond=None)[0], rtol=1e-9)


def test_groups_have_intercepts_of_their_own():
    x, y = drawn()
    groups = np.repeat([5, 0, 2], [10, 18, 12])
    dummies = (groups[:, None] == [0, 2]).astype(float)
    x, y = x + groups[:, None], y - groups[:, None]
    fit = pooled_least_squares(x, y, groups)
    coef, se, p = textbook(np.column_stack([x[0], dummies]), y[0])
    np.testing.assert_allclose(fit.coef, coef[:4], rtol=1e-8)
    np.testing.assert_allclose(fit.se, se[:4], rtol=1e-8)
    np.testing.assert_allclose(fit.p_values(), p[:4], rtol=1e-7)


def p_values(shared, p_of, seeds=400):
    """One p-value for each of three targets, which have nothing to do with each other, per seed."""
    draws = (p_of(*drawn(seed, slots=4, n=60, shared=shared)) for seed in range(seeds))
    return np.concatenate([p.diagonal() for p in draws])


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
def test_uniform_under_independence(shared):
    two_sided = p_values(shared, lambda x, y: pooled_least_squares(x, y).p_values())
    assert stats.kstest(two_sided, "uniform").pvalue > 0.05
    one_sided = p_values(shared, lambda x, y: pooled_least_squares(x, y).p_values("greater"))
    assert stats.kstest(one_sided, "uniform").pvalue > 0.05


def test_rows_that_share_samples_are_no_independent_samples():
    def naive(x, y):
        return textbook(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))[2]

    assert stats.kstest(p_values(0.95, naive), "uniform").pvalue < 1e-6


def test_what_cannot_be_tested_is_nan():
    x, y = drawn(features=5)
    x[..., 1] = 0.0  # constant
    x[..., 4] = x[..., 2] - 2.0 * x[..., 3]  # determined by others
    y[..., 2] = 0.0
    fit = pooled_least_squares(x, y)
    p = fit.p_values()
    assert np.isnan(p[1:]).all() and np.isnan(p[:, 2]).all()
    np.testing.assert_allclose(p[0, :2], textbook(x[0][:, [0, 2, 3]], y[0][:, :2])[2][0], rtol=1e-7)
    short = pooled_least_squares(x[:, :3], y[:, :3])
    assert np.isnan(short.p_values()).all()


def test_bad_alternative():
    with pytest.raises(ValueError, match="alternative must be one of 'two-sided', 'greater', got 'less'"):
        pooled_least_squares(*drawn()).p_values(cast(Any, "less"))
