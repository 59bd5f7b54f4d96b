"""Running moments against exponential averages written out, one batch after the other."""

import numpy as np
import pytest
import torch

from gsnn.stats.standardize import batch_moments, running_moments, standardized


def test_batch_moments_divide_by_the_number_of_samples():
    values = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 7))
    mean, var = batch_moments(torch.tensor(values))
    np.testing.assert_allclose(mean, values.mean(-1), rtol=1e-14)
    np.testing.assert_allclose(var, values.var(-1), rtol=1e-13)


@pytest.mark.parametrize("weight", [0.1, 0.25, 1.0])
def test_single_samples_give_the_exponentially_weighted_moments(weight):
    """Weights (1 - w)^(t - s) w of sample s, (1 - w)^t of the first: mean and variance as defined."""
    values = np.random.default_rng(1).normal(5.0, 2.0, (40, 3))
    mean, var = torch.tensor(values[0]), torch.zeros(3, dtype=torch.float64)
    for t in range(1, 40):
        new_mean, new_var = batch_moments(torch.tensor(values[t])[:, None])
        mean, var = running_moments(mean, var, new_mean, new_var, weight, between=True)
        share = weight * (1 - weight) ** np.arange(t, -1.0, -1.0)
        share[0] = (1 - weight) ** t
        assert share.sum() == pytest.approx(1.0, rel=1e-12)
        expected = share @ values[: t + 1]
        np.testing.assert_allclose(mean, expected, rtol=1e-12)
        np.testing.assert_allclose(var, share @ (values[: t + 1] - expected) ** 2, rtol=1e-10, atol=1e-14)


def test_batches_give_the_average_of_the_variances_within():
    batches = np.random.default_rng(2).normal(5.0, 2.0, (6, 3, 8))
    mean, var = batch_moments(torch.tensor(batches[0]))
    expected_mean, expected_var = batches[0].mean(-1), batches[0].var(-1)
    for batch in batches[1:]:
        mean, var = running_moments(mean, var, *batch_moments(torch.tensor(batch)), 0.3, between=False)
        expected_mean = 0.7 * expected_mean + 0.3 * batch.mean(-1)
        expected_var = 0.7 * expected_var + 0.3 * batch.var(-1)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(var, expected_var, rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_standardized_in_any_unit_and_zero_where_constant(unit):
    """Constant is a standard deviation of at most 8 eps times the root mean square."""
    values = unit * np.random.default_rng(3).normal(5.0, 2.0, (3, 30))
    values[1] = 4.0 * unit
    mean, var = values.mean(1), values.var(1)
    out = standardized(torch.tensor(values), torch.tensor(mean), torch.tensor(var), 2.0**-52).numpy()
    for row in (0, 2):
        np.testing.assert_allclose(out[row], (values[row] - mean[row]) / np.sqrt(var[row]), rtol=1e-12)
    assert not out[1].any()


@pytest.mark.parametrize(("times", "moves"), [(7.9, False), (8.1, True)])
def test_the_floor_is_eight_roundings_of_the_root_mean_square(times, moves):
    eps, mean = 1e-4, 3.0
    var = (times * eps * mean) ** 2
    x, mean_x, var_x = (torch.tensor([value], dtype=torch.float64) for value in ([4.0], mean, var))
    out = standardized(x, mean_x, var_x, eps)
    assert bool(out.any()) is moves
