"""Intervals against their definition by loops, coverage where the truth is known, what ensembles promise."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gsnn
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import random_signed_dag
from gsnn.stats.conformal import coverage, cross_conformal, spread_interval
from gsnn.train.uncertainty import fit_ensemble


@pytest.mark.parametrize("level, n", [(0.9, 40), (0.8, 9), (0.5, 3), (0.9, 9), (0.9, 8)])
def test_the_interval_is_that_of_cv_plus(level, n):
    """Barber et al. 2021, section 3: by sorting, one sample and output at a time."""
    rng = np.random.default_rng(0)
    predictions, fold = rng.normal(size=(3, 5, 2)), rng.integers(3, size=n)
    residuals = np.abs(rng.normal(size=(n, 2)))
    gaps = residuals.copy()
    gaps[rng.random(n) < 0.2, 1] = np.nan
    low, high = cross_conformal(predictions, fold, gaps, level)
    for sample in range(5):
        for output in range(2):
            rows = [i for i in range(n) if not np.isnan(gaps[i, output])]
            below = sorted(predictions[fold[i], sample, output] - gaps[i, output] for i in rows)
            above = sorted(predictions[fold[i], sample, output] + gaps[i, output] for i in rows)
            k = int(np.floor(round((1 - level) * (len(rows) + 1), 9)))
            m = int(np.ceil(round(level * (len(rows) + 1), 9)))
            assert low[sample, output] == (below[k - 1] if k >= 1 else -np.inf)
            assert high[sample, output] == (above[m - 1] if m <= len(rows) else np.inf)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_a_known_error_is_covered_as_often_as_asked_for(level):
    """400 calibration samples of skewed noise, 5,000 new ones."""
    rng = np.random.default_rng(1)
    noise = rng.exponential(size=(5_400, 6))
    predictions = np.zeros((4, 5_000, 6))
    low, high = cross_conformal(predictions, rng.integers(4, size=400), np.abs(noise[:400]), level)
    found = coverage(noise[400:], low, high)
    assert abs(found["coverage"] - level) < 0.02
    assert found["n"] == 30_000 and np.ptp(found["by_output"]) < 0.1


def test_coverage_by_hand():
    y = np.array([[1.0, 5.0, np.nan], [2.0, np.nan, np.nan]])
    low, high = np.zeros((2, 3)), np.array([[1.0, 4.0, 1.0], [3.0, 1.0, 1.0]])
    found = coverage(y, low, high)
    assert found["coverage"] == pytest.approx(2 / 3) and found["n"] == 3
    assert found["width"] == 3.0
    np.testing.assert_array_equal(found["by_output"], [1.0, 0.0, np.nan])
    assert np.isnan(coverage(y[:, 2:], low[:, 2:], high[:, 2:])["coverage"])


def test_a_spread_is_two_quantiles_of_a_normal():
    low, high = spread_interval(np.array([2.0]), np.array([3.0]), 0.95)
    assert low[0] == pytest.approx(2 - 3 * 1.959964, rel=1e-6)
    assert high[0] == pytest.approx(2 + 3 * 1.959964, rel=1e-6)


TRUTH = random_signed_dag(10, 0.0, "tanh", seed=0, n_inputs=3, n_outputs=4)


def network(**options):
    graph = TRUTH.full
    options = {"channels": 4, "layers": 5, "share_layers": False, "norm": "layer", **options}
    return GSNN(graph.edge_index_dict, graph.node_names_dict, **options)


@pytest.fixture(scope="module")
def fitted():
    x, x_test, y, y_test = TRUTH.sample(200, 4000, 0.3, seed=0)
    y = np.where(np.random.default_rng(0).random(y.shape) < 0.1, np.nan, y)
    before = torch.get_rng_state()
    ensemble = fit_ensemble(network(), x, y, folds=4, n_members=2, epochs=25, verbose=False)
    torch.set_rng_state(before)
    return x, y, x_test, y_test, ensemble


def test_nine_of_ten_measurements_lie_in_their_interval(fitted):
    *_, x_test, y_test, ensemble = fitted
    forecast = ensemble.predict(x_test)
    found = coverage(y_test, forecast.low, forecast.high)
    assert 0.85 <= found["coverage"] <= 0.95
    assert (found["by_output"] > 0.8).all()
    half = ensemble.predict(x_test, level=0.5)
    assert 0.45 <= coverage(y_test, half.low, half.high)["coverage"] <= 0.58
    assert (half.low >= forecast.low).all() and (half.high <= forecast.high).all()
    # Without the noise, which the spread does not know, far fewer do.
    spread = coverage(y_test, *spread_interval(forecast.mean, forecast.std, 0.9))
    assert spread["coverage"] < 0.8


def test_held_out_means_held_out(fitted):
    x, y, x_test, _, ensemble = fitted
    assert sorted(np.bincount(ensemble.fold)) == [50] * 4
    for k, own in enumerate(ensemble.members):
        rows = ensemble.fold == k
        each = np.stack([gsnn.predict(model, x[rows]) for model in own]).astype(np.float64)
        np.testing.assert_allclose(ensemble.held_out[rows], each.mean(0), rtol=1e-12)
    np.testing.assert_array_equal(ensemble.residuals, y - ensemble.held_out)
    every = np.stack([gsnn.predict(model, x_test[:7]) for own in ensemble.members for model in own])
    forecast = ensemble.predict(x_test[:7])
    np.testing.assert_allclose(forecast.mean, every.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(forecast.std, every.astype(np.float64).std(0, ddof=1), rtol=1e-6)
    assert (forecast.std > 0).all()


def test_a_network_has_not_seen_its_fold():
    """Other values in a fold change the networks of all other folds, and not those of this one."""
    x, _, y, _ = TRUTH.sample(40, 0, 0.3, seed=1)
    options: dict[str, Any] = {"folds": 4, "n_members": 1, "epochs": 2, "verbose": False}
    one = fit_ensemble(network(), x, y, **options)
    other = y.copy()
    other[one.fold == 2] += 1.0
    two = fit_ensemble(network(), x, other, **options)
    same = [
        all(torch.equal(a, b) for a, b in zip(m[0].parameters(), n[0].parameters(), strict=True))
        for m, n in zip(one.members, two.members, strict=True)
    ]
    assert same == [False, False, True, False]


def test_groups_stay_together_and_tables_go_by_name():
    x, _, y, _ = TRUTH.sample(60, 0, 0.3, seed=1)
    names = [f"s{k}" for k in range(60)]
    labels = pd.Series(np.arange(60) // 5, index=names)
    frame_x = pd.DataFrame(x, index=names, columns=TRUTH.input_nodes)
    frame_y = pd.DataFrame(y, index=names, columns=TRUTH.output_nodes)
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    options: dict[str, Any] = {"folds": 3, "n_members": 1, "epochs": 2, "verbose": False}
    ensemble = fit_ensemble(model, frame_x, frame_y.iloc[::-1], groups=labels.iloc[::-1], **options)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(len(set(ensemble.fold[labels == label])) == 1 for label in set(labels))
    plain = fit_ensemble(model, x, y, groups=labels.to_numpy(), **options)
    np.testing.assert_array_equal(plain.residuals, ensemble.residuals)
    forecast = ensemble.predict(frame_x.iloc[:4])
    for table in (forecast.mean, forecast.std, forecast.low, forecast.high):
        assert list(table.index) == names[:4] and list(table.columns) == list(TRUTH.output_nodes)
    np.testing.assert_array_equal(forecast.low, plain.predict(x[:4]).low)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"folds": 1}, "folds must be an int of at least 2, got 1"),
        ({"n_members": 0}, "n_members must be a positive int, got 0"),
        ({"folds": 31}, "folds must be at most the 30 samples, got 31"),
        ({"groups": np.arange(30) // 10}, "folds must be at most the 3 labels in groups, got 5"),
        ({"groups": [1, 2]}, r"groups must have the shape \(30,\), one label a row, got \(2,\)"),
        ({"epochs": 0}, "epochs must be a positive int, got 0"),
    ],
)
def test_bad_options(options, message):
    x, _, y, _ = TRUTH.sample(30, 0, 0.3, seed=1)
    with pytest.raises(ValueError, match=message):
        fit_ensemble(network(), x, y, verbose=False, **options)


def test_there_may_be_as_many_folds_as_groups():
    x, _, y, _ = TRUTH.sample(30, 0, 0.3, seed=1)
    labels = np.arange(30) // 10
    fold = fit_ensemble(network(), x, y, groups=labels, folds=3, n_members=1, epochs=1, verbose=False).fold
    assert (np.ptp(fold.reshape(3, 10), axis=1) == 0).all() and len(set(fold)) == 3


def test_an_output_that_is_measured_in_one_fold_only():
    x, _, y, _ = TRUTH.sample(30, 0, 0.3, seed=1)
    y[1:, 2] = np.nan
    with pytest.raises(ValueError, match="a measured value outside every fold, got none for 'o2' in one"):
        fit_ensemble(network(), x, y, epochs=1, verbose=False)
    for second in range(1, 30):  # the first in another fold; in three of five folds none is measured then
        two = y.copy() if isinstance(y, np.ndarray) else y.clone()
        two[second, 2] = 0.5
        try:
            found = fit_ensemble(network(), x, two, epochs=1, n_members=1, verbose=False)
        except ValueError:
            continue
        break
    assert found.fold[0] != found.fold[second] and np.isfinite(found.held_out).all()


def test_levels_that_are_none(fitted):
    for level in (0.0, 1.0, 90):
        with pytest.raises(ValueError, match="level must be"):
            fitted[-1].predict(fitted[2][:2], level=level)


def test_members_keep_the_signs_of_the_edges():
    x, _, y, _ = TRUTH.sample(30, 0, 0.3, seed=1)
    graph = TRUTH.partial
    signs = {etype: torch.ones(index.shape[1]) for etype, index in graph.edge_index_dict.items()}
    signs["function", "to", "function"][::2] = -1.0
    options: dict[str, Any] = {"channels": 2, "layers": 3, "norm": "none", "edge_signs": "respect"}
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, edge_weight_dict=signs, **options)
    for member in sum(fit_ensemble(model, x, y, epochs=1, n_members=1, folds=2, verbose=False).members, ()):
        for etype, value in signs.items():
            weights = member.graph.edge_weight_dict
            assert weights is not None and torch.equal(weights[etype], value)
