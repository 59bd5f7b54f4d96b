"""Explanations against derivatives, single occlusions and planted paths."""

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gsnn.data.scaling import Scaling
from gsnn.explain import Subgraph, attribute, contrast, subgraph
from gsnn.explain.attribution import _integrated
from gsnn.graph import HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.plot import explanation
from gsnn.train import fit, predict

captum = pytest.importorskip("captum", reason="attributions need the extra explain")


def small_graph():
    """Two chains i0 -> a -> b -> o0, i1 -> c -> d -> o1, a bridge a -> d, and e, which nobody feeds."""
    names = {"input": ["i0", "i1"], "function": ["a", "b", "c", "d", "e"], "output": ["o0", "o1"]}
    index = {
        ("function", "to", "function"): torch.tensor([[0, 2, 0, 4], [1, 3, 3, 3]]),
        ("input", "to", "function"): torch.tensor([[0, 1], [0, 2]]),
        ("function", "to", "output"): torch.tensor([[1, 3], [0, 1]]),
    }
    return HeteroGraph(index, names, warn=False)


def small_model(seed=0, **options):
    torch.manual_seed(seed)
    graph = small_graph()
    options = {"channels": 3, "layers": 4, "norm": "none", "init": "normal", **options}
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, **options).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(6, 2))


def test_integrated_gradients_of_a_linear_network_are_derivative_times_way(x):
    model = small_model(nonlin=torch.nn.Identity)
    jacobian = torch.autograd.functional.jacobian(model, torch.zeros(1, 2, dtype=torch.float64))[0, 1, 0]
    found = attribute(model, x, "o1", baseline=0.5, per_sample=True)
    np.testing.assert_allclose(found.to_numpy(), (x - 0.5) * jacobian.numpy(), atol=1e-10)
    assert list(found.columns) == ["i0", "i1"]


def test_gradient_is_the_jacobian(x):
    model = small_model()
    want = [
        torch.autograd.functional.jacobian(model, torch.as_tensor(row)[None])[0, 1, 0].numpy() for row in x
    ]
    found = attribute(model, x, 1, method="gradient", per_sample=True)
    np.testing.assert_allclose(found.to_numpy(), want, atol=1e-12)


@pytest.mark.parametrize("of", ["inputs", "nodes", "edges"])
def test_occlusion_takes_one_part_away_at_a_time(of, x):
    model = small_model()
    given = torch.as_tensor(x)
    full = model(given)[:, 1]
    n = {"inputs": 2, "nodes": 5, "edges": model.E if hasattr(model, "E") else model.edge_index.shape[1]}[of]
    want = []
    for k in range(n):
        if of == "inputs":
            less = given.clone()
            less[:, k] = 0
            want.append(full - model(less)[:, 1])
        else:
            mask = torch.ones(model.num_nodes if of == "nodes" else n, dtype=torch.float64)
            mask[k] = 0
            want.append(full - model(given, **{f"{of[:-1]}_mask": mask})[:, 1])
    found = attribute(model, x, "o1", method="occlusion", of=of, per_sample=True)
    np.testing.assert_allclose(found.to_numpy(), torch.stack(want, 1).detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("of", ["inputs", "nodes", "edges"])
@pytest.mark.parametrize("norm", ["none", "layer", "groupbatch"])
def test_scores_sum_to_the_difference_of_the_predictions(of, norm, x):
    model = small_model(norm=norm).eval()
    given = torch.as_tensor(x)
    silent = {
        "inputs": lambda: model(torch.zeros_like(given)),
        "nodes": lambda: model(given, node_mask=torch.zeros(model.num_nodes, dtype=torch.float64)),
        "edges": lambda: model(given, edge_mask=torch.zeros(model.edge_index.shape[1], dtype=torch.float64)),
    }[of]()
    gap = (model(given) - silent)[:, 1].detach().numpy()
    found = attribute(model, x, "o1", of=of, per_sample=True)
    np.testing.assert_allclose(found.sum(axis=1), gap, atol=0.01 * np.sqrt(np.mean(gap**2)))
    assert found.attrs["completeness"]["error"] < 0.01


def test_a_narrow_kink_on_the_way_is_integrated():
    """f = tanh(2000 (x0 - k)) + x1^2 with a k for each sample, whose integrals are known apart."""
    kinks = torch.tensor([0.37, 0.5, 0.9137], dtype=torch.float64)
    end = torch.tensor([[1.0, 2.0], [1.0, -1.0], [1.0, 0.5]], dtype=torch.float64)

    def f(z, k):
        return torch.tanh(2000 * (z[:, 0] - k)) + z[:, 1] ** 2

    scores, completeness = _integrated(captum.attr, f, torch.zeros_like(end), end, (kinks,))
    wanted = torch.stack([torch.full((3,), 2.0, dtype=torch.float64), end[:, 1] ** 2], 1)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=0.02)
    assert completeness["error"] < 0.005 and completeness["steps"] < 1000


def test_units_are_those_of_predict(x):
    model = small_model()
    model.scaling = Scaling((1.0, 2.0), (3.0, 0.5), (10.0, 20.0), (7.0, 4.0))
    found = attribute(model, x, "o0", per_sample=True)
    gap = predict(model, x)[:, 0] - predict(model, np.zeros_like(x))[:, 0]
    np.testing.assert_allclose(found.sum(axis=1), gap, atol=0.01 * np.abs(gap).max())


def test_columns_are_matched_by_name_and_rows_keep_theirs(x):
    model = small_model()
    frame = pd.DataFrame(x[:, ::-1], index=list("uvwxyz"), columns=["i1", "i0"])
    found = attribute(model, frame, "o1", per_sample=True)
    assert list(found.index) == list("uvwxyz")
    np.testing.assert_array_equal(found.to_numpy(), attribute(model, x, "o1", per_sample=True).to_numpy())


def test_the_average_is_sorted_by_what_varies(x):
    each = attribute(small_model(), x, "o1", of="edges", per_sample=True)
    table = attribute(small_model(), x, "o1", of="edges")
    assert list(table.columns) == ["source", "target", "score", "magnitude", "spread"]
    assert (np.diff(table["spread"]) <= 0).all() and table.attrs["ordered_by"] == "spread"
    assert not (np.diff(table["magnitude"]) <= 0).all()
    of: Any
    for given, of in ((x, "inputs"), (x[:1], "edges")):  # one sample has no spread
        other = attribute(small_model(), given, "o1", of=of)
        assert (np.diff(other["magnitude"]) <= 0).all() and other.attrs["ordered_by"] == "magnitude"
    for row in table.itertuples():
        column = each[(row.source, row.target)]
        assert row.score == pytest.approx(column.mean())
        assert row.magnitude == pytest.approx(column.abs().mean())
        assert row.spread == pytest.approx(column.std(ddof=0))
    unreached = table[(table["target"] == "o0") | (table["source"] == "b")]
    assert (unreached["magnitude"] == 0).all()


def test_a_constant_has_a_magnitude_and_no_spread(x):
    """Nobody feeds e, so that e -> d carries its biases only, and a linear network adds that up apart."""
    table = attribute(small_model(nonlin=torch.nn.Identity), x, "o1", of="edges").set_index(
        ["source", "target"]
    )
    assert table["magnitude"]["e", "d"] > 1e-3
    assert table["spread"]["e", "d"] < 1e-9
    assert table["spread"]["c", "d"] > 1e-3


def test_with_a_target_the_squared_error_is_explained(x):
    model = small_model()
    y = np.linspace(-1, 1, len(x))
    found = attribute(model, x, "o1", target=y, per_sample=True)
    yhat, silent = (model(torch.as_tensor(v))[:, 1].detach().numpy() for v in (x, np.zeros_like(x)))
    gap = (yhat - y) ** 2 - (silent - y) ** 2
    np.testing.assert_allclose(found.sum(axis=1), gap, atol=0.01 * np.abs(gap).max())


@pytest.mark.parametrize("of", ["inputs", "nodes", "edges"])
def test_a_contrast_sums_to_the_difference_of_two_predictions(of, x):
    model = small_model()
    a, b = x[:3], x[3:]
    found = contrast(model, a, b, "o1", of=of, per_sample=True)
    gap = (model(torch.as_tensor(a)) - model(torch.as_tensor(b)))[:, 1].detach().numpy()
    np.testing.assert_allclose(found.sum(axis=1), gap, atol=0.02 * np.abs(gap).max())
    one = contrast(model, a[:1], b, "o1", of=of, per_sample=True)
    np.testing.assert_allclose(one.iloc[0], found.iloc[0], atol=1e-3)


def test_the_model_is_left_as_it_was(x):
    model = small_model(norm="groupbatch").train()
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.ResBlocks[0].residual_weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    attribute(model, x, "o1", of="edges")
    subgraph(model, x, "o1", size=2)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def planted():
    """Four inputs feed four chains into one hub and out; only the chain of input i2 has an effect."""
    names = {
        "input": [f"i{k}" for k in range(4)],
        "function": [f"{c}{k}" for c in "ab" for k in range(4)] + ["hub"],
        "output": ["y"],
    }
    k = torch.arange(4)
    index = {
        ("function", "to", "function"): torch.cat(
            [torch.stack([k, k + 4]), torch.stack([k + 4, k * 0 + 8])], 1
        ),
        ("input", "to", "function"): torch.stack([k, k]),
        ("function", "to", "output"): torch.tensor([[8], [0]]),
    }
    graph = HeteroGraph(index, names)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 4))
    y = np.tanh(x[:, [2]]) + 0.05 * rng.normal(size=(300, 1))
    torch.manual_seed(0)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=4, layers=4, share_layers=False)
    fit(model, x, y, epochs=40, lr=1e-2, seed=0, verbose=False, standardize=True)
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            flat = parameter.view(-1)
            flat.copy_(flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(3))])
    return model, shuffled, x


PATH = {("i2", "a2"), ("a2", "b2"), ("b2", "hub"), ("hub", "y")}


def test_the_planted_path_comes_first_and_permuted_weights_lose_it(planted):
    model, shuffled, x = planted
    for method in ("integrated_gradients", "occlusion"):
        assert attribute(model, x, "y", method=method)["name"][0] == "i2"
        edges = attribute(model, x, "y", method=method, of="edges")
        proper = edges[edges["source"] != edges["target"]].head(4)
        assert set(zip(proper["source"], proper["target"], strict=True)) == PATH

    def lead(network):
        table = attribute(network, x, "y").set_index("name")["magnitude"]
        return table["i2"] / table.drop("i2").max()

    assert lead(model) > 5 > 2 > lead(shuffled)


def test_the_subgraph_is_the_planted_path(planted):
    model, _, x = planted
    found = subgraph(model, x, "y", size=4)
    assert isinstance(found, HeteroGraph) and isinstance(found, Subgraph)
    assert set(found.edges) == PATH
    assert found.candidates == 13
    assert found.fidelity > 0.75 > max(found.random_fidelity)
    assert [found.edge_index_dict[e].shape[1] for e in found.edge_index_dict] == [2, 1, 1]
    assert subgraph(model, x, "y", share=1.0).fidelity == pytest.approx(1.0, abs=1e-6)


def test_fidelity_is_that_of_a_hard_mask(planted):
    model, _, x = planted
    found = subgraph(model, x, "y", size=30)
    names = model.homo_names
    mask = torch.tensor(
        [
            float((names[u], names[v]) in found.edges or k >= 13)
            for k, (u, v) in enumerate(model.edge_index.t().tolist())
        ]
    )
    model.eval()
    scaled = model.scaling.scale_x(torch.as_tensor(x)).float()
    with torch.no_grad():
        full, masked = model(scaled)[:, 0], model(scaled, edge_mask=mask)[:, 0]
    want = 1 - ((masked - full) ** 2).sum() / ((full - full.mean()) ** 2).sum()
    assert found.fidelity == pytest.approx(float(want), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"output": "nobody"}, ValueError, "output must be one of 'o0', 'o1', got 'nobody'"),
        ({"output": 2}, ValueError, "output must be a column below 2, got 2"),
        ({"output": 1.5}, TypeError, "output must be the name of an output node or its column, got 1.5"),
        (
            {"method": "lime"},
            ValueError,
            "method must be one of 'integrated_gradients', 'occlusion', 'gradient'",
        ),
        ({"of": "weights"}, ValueError, "of must be one of 'inputs', 'nodes', 'edges', got 'weights'"),
        (
            {"of": "nodes", "baseline": 2},
            ValueError,
            r"baseline of nodes must be in \[0, 1\]",
        ),
        ({"baseline": [1.0]}, ValueError, "baseline must have 2 values, one per input, got 1"),
        ({"target": [1.0]}, ValueError, r"target must have shape \(6,\), got \(1,\)"),
        ({"target": [np.nan] * 6}, ValueError, "target must be finite"),
    ],
)
def test_bad_arguments_of_attribute(options, error, words, x):
    with pytest.raises(error, match=words):
        attribute(small_model(), x, **{"output": "o1", **options})


def test_the_picture_is_of_what_the_table_is_ordered_by():
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    from gsnn.plot import BLUE, VERMILLION

    table = pd.DataFrame(
        {
            "source": ["i0", "a", "c"],
            "target": ["a", "b", "d"],
            "score": [-0.1, 3.0, 0.2],
            "spread": [9, 1, 4],
        }
    )

    def widths(**attrs):
        marks: dict[Any, Any] = dict(attrs)
        table.attrs = marks
        ax = explanation(small_graph(), table, top=2)
        drawn = [(to_hex(p.get_edgecolor()), round(p.get_linewidth(), 2)) for p in ax.patches]
        assert isinstance(ax.figure, plt.Figure)
        plt.close(ax.figure)
        return sorted((c, w) for c, w in drawn if c in (BLUE.lower(), VERMILLION.lower()))

    blue, red = BLUE.lower(), VERMILLION.lower()
    assert widths() == sorted([(red, 3.6), (red, 0.8)])
    assert widths(ordered_by="spread") == sorted([(blue, 3.6), (red, round(0.6 + 3 * 4 / 9, 2))])


def test_bad_arguments_of_subgraph(x):
    model = small_model()
    with pytest.raises(ValueError, match="one of size and share must be given, got size=None and share=None"):
        subgraph(model, x, "o1")
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 2"):
        subgraph(model, x, "o1", share=2)
    with pytest.raises(ValueError, match="size must be a positive int, got 0"):
        subgraph(model, x, "o1", size=0)
    with pytest.raises(ValueError, match="the prediction of 'o1' is the same for all samples"):
        subgraph(model, x[:1], "o1", size=1)
    with pytest.raises(TypeError, match="model must be a GSNN, got Linear"):
        attribute(torch.nn.Linear(2, 2), x, "o1")


def test_picture(planted):
    import matplotlib.pyplot as plt

    model, _, x = planted
    for of in ("edges", "nodes", "inputs"):
        ax = explanation(model.graph, attribute(model, x, "y", of=of))
        assert {text.get_text() for text in ax.texts} >= {"i2", "a2", "hub", "y"}
        assert isinstance(ax.figure, plt.Figure)
        plt.close(ax.figure)
    with pytest.raises(ValueError, match="table must name nodes of the graph, got 'z'"):
        explanation(model.graph, pd.DataFrame({"name": ["z"], "score": [1.0]}))
    with pytest.raises(ValueError, match="table must have the columns"):
        explanation(model.graph, pd.DataFrame({"name": ["z"]}))
