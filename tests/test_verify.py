"""verify: the linearised gain against a dense least-squares problem, and what is and is not verified."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_complete import FUNCTIONS, TINY, data, graph

import gsnn
from gsnn.graph import EDGE_TYPES
from gsnn.models.GSNN import GSNN
from gsnn.optim import verify as module
from gsnn.optim._linearised import _RIDGES, Linearised
from gsnn.optim.staging import CompletionSettings, Samples, squared_errors
from gsnn.optim.verify import verify
from gsnn.stats.significance import benjamini_hochberg
from gsnn.train import fit

CANDIDATES = [("f2", "f3"), ("f1", "f3"), ("f0", "f4"), ("f4", "f5"), ("f3", "f5"), ("f0", "f5")]
COLUMNS = ["src_func", "dst_func", "gain", "gain_low", "gain_high", "p_value", "q_value", "verified"]


def trained(graph, x, y, seed=0):
    settings = CompletionSettings.of(TINY)
    model = settings.model(graph, seed)
    fit(model, x, y, epochs=60, lr=1e-2, standardize=True, seed=seed, verbose=False)
    return model


@pytest.fixture(scope="module")
def lacking():
    return trained(graph(), *data())


@pytest.fixture(scope="module")
def table(lacking):
    return verify(lacking, graph(), CANDIDATES, *data(300, seed=5))


def test_the_missing_edge_is_verified_and_no_other(table):
    assert list(table.columns) == [*COLUMNS, "placebo_gain", "alternatives"]
    assert list(zip(table.src_func, table.dst_func, strict=True)) == CANDIDATES
    assert table.verified.tolist() == [True] + [False] * 5
    # y0 = a + c + noise of variance .09, three standardised outputs: the edge explains c, 1 of 2.09 of y0,
    # of a loss of 1.09 / 2.09 + 2 * .09 / 1.09.
    assert table.gain[0] == pytest.approx((1 / 2.09) / (1.09 / 2.09 + 0.18 / 1.09), abs=0.1)
    assert (table.gain_low <= table.gain).all() and (table.gain <= table.gain_high).all()
    np.testing.assert_allclose(table.q_value, benjamini_hochberg(table.p_value), rtol=1e-12)
    assert table.placebo_gain.notna().all()


def test_really_training_each_edge_agrees(lacking, table):
    found = verify(lacking, graph(), CANDIDATES, *data(300, seed=5), how="trained")
    assert list(found.columns) == list(table.columns)
    assert found.verified.tolist() == [True] + [False] * 5
    assert found.gain[0] == pytest.approx(table.gain[0], abs=0.1)
    assert found.placebo_gain.notna().all() and (found.alternatives.map(len) == 0).all()


def test_a_trained_edge_is_judged_against_a_network_trained_as_long(lacking):
    """Written out for one edge: both networks by `fit` on one half, squared errors on the other."""
    x, y = data(80, seed=6)
    found = verify(lacking, graph(), [("f2", "f3")], x, y, how="trained", seed=3)
    samples = Samples.of(lacking, x, y)
    rng = np.random.default_rng(3)
    part = module._parts(samples, np.arange(80), 2, rng, list(graph().node_names_dict["output"]))
    lost = np.zeros((2, 80))
    for k in range(2):
        rows = np.flatnonzero(part != k)
        grown = lacking.grown([("f2", "f3")], seed=3 + k)
        for at, model in enumerate((copy.deepcopy(lacking), grown)):
            options = {"lr": 1e-3, "weight_decay": 1e-2, "standardize": lacking.scaling, "seed": 3 + k}
            fit(model, samples.x[rows], samples.y[rows], epochs=300, batch_size=64, verbose=False, **options)
            error = squared_errors(model, samples.scaled(lacking.scaling)).nansum(1).numpy()
            lost[at, part == k] = error[part == k]
    assert found.gain[0] == pytest.approx(1 - lost[1].sum() / lost[0].sum(), rel=1e-3)


def test_what_would_do_in_its_place_is_said(table):
    assert ("f5", "f3") in table.alternatives[0]  # f2 -> f5 carries the same signal on
    assert ("f1", "f3") not in table.alternatives[0]
    assert (table.alternatives[1:].map(len) == 0).all()


def test_alternatives_bring_the_same_effect_into_whatever_target():
    """y0 = a + b + c lacks b and c alike: an edge that brings b is no alternative to one that brings c."""
    x, y = data(600, seed=3)
    y[:, 0] += x[:, 1]
    model = trained(graph(), x[:300], y[:300])
    found = verify(model, graph(), [("f2", "f3"), ("f1", "f3")], x[300:], y[300:])
    assert found.verified.all()
    c, b = (set(edges) for edges in found.alternatives)
    assert {("f5", "f3"), ("f2", "f0")} <= c  # f0 -> f3 takes it there
    assert {("f4", "f3"), ("f1", "f0")} <= b
    assert {source for source, _ in c} == {"f2", "f5"} and {source for source, _ in b} == {"f1", "f4"}


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_verified_where_nothing_is_missing(seed):
    x, y = data(seed=seed, missing=0.0)
    full = trained(graph(), x, y, seed)
    edges = pd.DataFrame(CANDIDATES, columns=["source", "target"])
    found = verify(full, graph(), edges, *data(300, seed=seed + 7, missing=0.0), seed=seed)
    assert not found.verified.any()
    assert found.gain.max() < 0.02


def test_gain_is_that_of_the_closed_form(lacking):
    """Against a design matrix built from differences of outputs of a network that really has the edge."""
    x, y = data(60, seed=6)
    model = lacking.double().eval()
    samples = Samples.of(model, x, y)
    samples = Samples(samples.x.double(), samples.y.double(), samples.rows)
    fitting = np.arange(60) < 40
    linear = Linearised(model, samples, fitting, FUNCTIONS, [3])
    one = linear.h[:, :, 2]
    # J (n, P, N_out, C) by differences: a bias of z_3 in one layer moved a little.
    scaled = samples.scaled(model.scaling)
    step, C = 1e-5, model.channels
    for p, block in enumerate(model.ResBlocks[1:]):
        for c in range(C):
            outputs = []
            for sign in (1, -1):
                with torch.no_grad():
                    block.lin_in.bias[3 * C + c] += sign * step
                    outputs.append(model(scaled.x))
                    block.lin_in.bias[3 * C + c] -= sign * step
            slope = (outputs[0] - outputs[1]) / (2 * step)
            torch.testing.assert_close(linear.slopes[3][:, p, :, c], slope, rtol=1e-4, atol=1e-7)
    residual = linear._residual(3)
    design = torch.einsum("npoc,npa->nopac", linear.slopes[3], one).flatten(2)
    fitted = linear._fitted(one, 3, residual)
    X, r = design[fitting].flatten(0, 1).numpy(), residual[fitting].flatten().numpy()
    size = np.mean((X**2).sum(0))
    candidates = [
        design @ torch.tensor(np.linalg.solve(X.T @ X + k * size * np.eye(X.shape[1]), X.T @ r))
        for k in _RIDGES
    ]
    assert min(float((fitted - c).abs().max() / c.abs().max()) for c in candidates) < 1e-8
    np.testing.assert_allclose(linear.before(3), residual.square().sum(1))
    np.testing.assert_allclose(linear.after(2, 3), (residual - fitted).square().sum(1))
    model.float()


def test_gaps_rows_and_seed(lacking, table):
    x, y = data(300, seed=5)
    names = [f"s{k}" for k in range(len(x))]
    again = verify(
        lacking,
        graph(),
        CANDIDATES,
        pd.DataFrame(x, names, ["a", "b", "c"]),
        pd.DataFrame(y, names, ["y0", "y1", "y2"]).sample(frac=1.0, random_state=0),
    )
    pd.testing.assert_frame_equal(again, table)
    y[::3, 0] = np.nan
    y[::5] = np.nan
    assert verify(lacking, graph(), CANDIDATES, x, y, folds=3).verified.tolist()[0]


def test_groups_are_the_draws(lacking):
    """Every sample six times over is no new evidence: with groups, intervals are those of 50 samples."""
    x, y = data(50, seed=5)
    repeated, groups = [np.repeat(t, 6, axis=0) for t in (x, y)], np.repeat(np.arange(50), 6)
    naive = verify(lacking, graph(), CANDIDATES, *repeated)
    found = verify(lacking, graph(), CANDIDATES, *repeated, groups=[f"g{k}" for k in groups])
    width = (found.gain_high - found.gain_low) / (naive.gain_high - naive.gain_low)
    # As many standard errors over 50 units as over 300, each of variance six times that of a mean of 300.
    factor = stats.t.ppf(0.975, 49) / stats.t.ppf(0.975, 299) * np.sqrt(6 * 299 / 294)
    assert width[0] == pytest.approx(factor, rel=0.3)
    assert found.verified.tolist() == [True] + [False] * 5
    with pytest.raises(ValueError, match="groups must have one label a sample, 300, got 3"):
        verify(lacking, graph(), CANDIDATES, *repeated, groups=[1, 2, 3])
    with pytest.raises(ValueError, match="groups must have at least 5 labels a fold, 10, got 9"):
        verify(lacking, graph(), CANDIDATES, *repeated, groups=groups % 9)


def test_groups_stay_in_one_part_and_every_output_is_measured_in_each(lacking):
    samples = Samples.of(lacking, *data(40))
    units = module._units(samples, np.arange(40) // 4, 40, 2)
    assert units.tolist() == (np.arange(40) // 4).tolist()
    part = module._parts(samples, units, 2, np.random.default_rng(0), ["y0", "y1", "y2"])
    assert set(part) == {0, 1} and all(len(set(part[units == u])) == 1 for u in range(10))
    x, y = data(60, seed=8)
    y[3:, 1] = np.nan  # three values
    found = module._parts(Samples.of(lacking, x, y), np.arange(60), 2, np.random.default_rng(0), ["y1"] * 3)
    assert set(found[:3]) == {0, 1}
    y[1:, 1] = np.nan
    with pytest.raises(ValueError, match="in each of 2 parts, got too few values of 'y1'"):
        verify(lacking, graph(), CANDIDATES, x, y)


def test_a_model_that_has_the_candidates_loses_them():
    full = graph([(5, 3), (0, 4)])
    model = trained(full, *data())
    reduced = module.reduced(model, graph())
    assert reduced.graph == graph()
    x = torch.randn(20, 3)
    mask = torch.ones(model.edge_index.shape[1])
    mask[3:5] = 0.0  # the two edges at the end of the function edges
    with torch.no_grad():
        torch.testing.assert_close(reduced.eval()(x), model.eval()(x, edge_mask=mask), rtol=1e-5, atol=1e-6)
    found = verify(model, graph(), [("f5", "f3"), ("f0", "f4")], *data(300, seed=5))
    assert found.verified.tolist() == [True, False]
    errors = squared_errors(model, Samples.of(model, *data(50)).scaled(model.scaling))
    assert errors.shape == (50, 3)


def test_the_model_is_not_changed(lacking):
    before = {name: value.clone() for name, value in lacking.state_dict().items()}
    verify(lacking, graph(), CANDIDATES[:1], *data(60, seed=8))
    assert all(torch.equal(before[name], value) for name, value in lacking.state_dict().items())


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"edges": [("f0", "f3")]}, ValueError, r"edges must be missing from the graph, .*\('f0', 'f3'\)"),
        ({"edges": []}, ValueError, "edges must hold at least one edge, got none"),
        ({"edges": [("f0", "g")]}, ValueError, "edges must name function nodes, got 1 unknown: 'g'"),
        ({"margin": -0.1}, ValueError, "margin must be in \\[0, 1\\), got -0.1"),
        ({"alpha": 1}, ValueError, "alpha must be in \\[0, 1\\), got 1"),
        ({"how": "both"}, ValueError, "how must be one of 'linear', 'trained', got 'both'"),
        ({"folds": 1}, ValueError, "folds must be an int of at least 2, got 1"),
        ({"folds": 40}, ValueError, "at least 10 samples a fold, 400, got 300"),
        ({"graph": graph([(0, 1)])}, ValueError, r"edges of the model only, got 1 others: \('f0', 'f1'\)"),
        ({"graph": object()}, TypeError, "data must have edge_index_dict"),
    ],
)
def test_bad_arguments(lacking, options, error, message):
    x, y = data()
    arguments = {"model": lacking, "graph": graph(), "edges": CANDIDATES, "x": x, "y": y, **options}
    with pytest.raises(error, match=message):
        verify(**arguments)


def test_another_graph_is_refused(lacking):
    index = {etype: graph().edge_index_dict[etype] for etype in EDGE_TYPES}
    names = {**graph().node_names_dict, "function": [*FUNCTIONS[:5], "other"]}
    other = GSNN(index, names, channels=3, layers=4)
    with pytest.raises(ValueError, match="graph must have the model's nodes"):
        verify(other, graph(), CANDIDATES, *data())
    assert gsnn.verify is verify
