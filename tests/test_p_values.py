"""Every p-value under the null of its docstring: uniform by Kolmogorov-Smirnov, or wrong the way it says.

Each test has about 2,000 p-values: all pairs of 46 nodes whose values are drawn independently. Two of these
pairs share a node at most, and correlations of one node with two that are independent are independent.
"""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.optim.verify import _judged
from gsnn.stats.pursuit import GroupMoments
from gsnn.stats.regression import pooled_least_squares
from gsnn.stats.samples import extended
from gsnn.stats.significance import benjamini_hochberg, fisher_p

N = 46
LEAST = 0.01  # of the Kolmogorov-Smirnov test; seeds are fixed, so that it never fails by chance


def graph(parents=0):
    """N function nodes; each is fed by the ``parents`` nodes after it."""
    between = [((j + 1 + k) % N, j) for j in range(N) for k in range(parents)]
    index = {
        EDGE_TYPES[0]: torch.tensor(between, dtype=torch.long).reshape(-1, 2).T,
        EDGE_TYPES[1]: torch.tensor([[0], [0]]),
        EDGE_TYPES[2]: torch.tensor([[1], [0]]),
    }
    names = {"input": ["i"], "function": [f"f{k}" for k in range(N)], "output": ["o"]}
    return HeteroGraph(index, names, warn=False)


def model_of(data, layers, channels=1):
    return GSNN(data.edge_index_dict, data.node_names_dict, channels, layers)


def uniform(p):
    """Probability of p-values as far from uniform as these."""
    p = np.asarray(p)[~np.isnan(p)]
    assert len(p) > 1800
    return kstest(p, "uniform").pvalue


def share(p, level=0.05):
    return (np.asarray(p)[~np.isnan(p)] <= level).mean()


def magnitudes(pairs, n, parents=0, draw="normal", equal=False, **options):
    """p-values of the inferer's table for magnitudes x and y drawn without any dependence."""
    rng = np.random.default_rng(n)
    data = graph(parents)
    inferer = MagnitudeEdgeInferer(model_of(data, pairs + 1), data)
    x, y = (rng.normal(size=(pairs, n, N)) for _ in range(2))
    if draw == "skewed":
        x, y = np.exp(x), np.exp(y)
    if equal:
        x[:], y[:] = x[:1], y[:1]
    inferer._seen = extended(None, torch.tensor(x), torch.tensor(y))
    return inferer.evaluate(score="partial" if parents else "corr", **options)["p_value"]


@pytest.mark.parametrize("n", [20, 60, 300])
@pytest.mark.parametrize("parents", [0, 4])
def test_magnitude_correlations_of_one_pair_of_layers(n, parents):
    assert uniform(magnitudes(1, n, parents)) > LEAST


@pytest.mark.parametrize("how", ["mean", "max"])
def test_magnitude_correlations_that_are_the_same_in_all_layers(how):
    assert uniform(magnitudes(3, 60, equal=True, layer_agg=how)) > LEAST


def test_the_mean_over_layers_is_conservative_and_the_largest_the_reverse():
    """Where layers say different things. The largest of P exceeds a level at most P times as often."""
    assert share(magnitudes(3, 60, layer_agg="mean")) < 0.02
    assert 0.10 < share(magnitudes(3, 60, layer_agg="max")) < 0.15


def test_skewed_magnitudes_and_few_samples_are_slightly_anti_conservative():
    few = share(magnitudes(1, 20, draw="skewed"))
    assert 0.05 < few < 0.10
    assert share(magnitudes(1, 20, draw="skewed"), 0.01) > 0.02


def first_order(places, n, parents=0):
    rng = np.random.default_rng(n)
    data = graph(parents)
    inferer = FirstOrderEdgeInferer(model_of(data, places + 1, channels=2), data)
    moments = GroupMoments(places, N, 2)
    moments.add(*(torch.tensor(rng.normal(size=(places, n, N, 2))) for _ in range(2)))
    inferer._seen = moments
    return inferer.evaluate()["p_value"]


@pytest.mark.parametrize("parents", [0, 4])
def test_score_test_of_one_pair_of_layers(parents):
    assert uniform(first_order(1, 500, parents)) > LEAST


def test_score_test_is_conservative_for_few_samples_and_several_layers():
    assert share(first_order(1, 50)) < 0.05
    several = first_order(3, 500)
    assert share(several) < 0.05 and several.mean() > 0.55


def regression(pairs, n, aggregators=("sum",), **options):
    """p-values of the online inferer for a window of magnitudes drawn without any dependence."""
    rng = np.random.default_rng(n)
    data = graph()
    regressor = MagnitudeEdgeRegressor(
        model_of(data, pairs + 1), data, aggregators=aggregators, window=n, **options
    )
    x = rng.normal(size=(N, pairs, n))
    slots = [x, *(x + 0.5 * rng.normal(size=x.shape) for _ in aggregators[1:])]
    y = rng.normal(size=(N, pairs, n)) + (rng.normal(size=(N, 1, n)) if pairs > 1 else 0.0)
    for part in np.array_split(np.concatenate([*slots, y], 1), 2, axis=2):
        regressor._recent.push(torch.tensor(part))
    regressor.steps = 1
    return regressor.evaluate()["p_value"]


@pytest.mark.parametrize("mode", ["abs", "signed"])
def test_regression_of_one_pair_of_layers(mode):
    assert uniform(regression(1, 120, score_mode=mode)) > LEAST


def test_regression_pooled_over_layers_and_aggregators():
    assert uniform(regression(3, 400, ("sum", "max"))) > LEAST


def test_regression_with_hardly_more_samples_than_nodes_is_slightly_anti_conservative():
    assert 0.05 < share(regression(1, 100, ("sum", "max"))) < 0.08


def test_gain_of_an_edge_that_is_worth_just_the_margin():
    """`verify` tests the mean over units: gains with the margin as their true mean share of the loss."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(2000):
        before = rng.gamma(4.0, size=60)
        gain = 0.01 * before + rng.normal(scale=0.3, size=60)
        p.append(_judged(gain, before, 0.01)[3])
    assert uniform(p) > LEAST
    # An edge that is worth less than the margin, as one of no use is.
    useless = [_judged(rng.normal(scale=0.3, size=60), rng.gamma(4.0, size=60), 0.01)[3] for _ in range(2000)]
    assert share(useless) < 0.04


def test_fisher_p_and_pooled_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2000, 40))
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    assert uniform(fisher_p(r, 40)) > LEAST
    fit = pooled_least_squares(rng.normal(size=(1, 90, N)), rng.normal(size=(1, 90, N)))
    for alternative in ("two-sided", "greater"):
        assert uniform(fit.p_values(alternative).ravel()) > LEAST


def test_false_discoveries_stay_below_alpha():
    """Benjamini & Hochberg: of all nulls, no more than alpha of the families have a discovery at all."""
    rng = np.random.default_rng(0)
    found = [(benjamini_hochberg(rng.random(50)) <= 0.05).any() for _ in range(2000)]
    assert 0.03 < np.mean(found) < 0.065
