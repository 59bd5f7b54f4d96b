"""OutputEdgeInferer and InputEdgeInferer against autograd on networks that have the edge with weight 0."""

import numpy as np
import pandas as pd
import pytest
import torch
from inferer_contract import EdgeInfererContract, batches, small_data, small_graph, small_model
from test_first_order import projected

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.InputEdgeInferer import InputEdgeInferer
from gsnn.optim.OutputEdgeInferer import OutputEdgeInferer

C = 3


class TestOutputEdgeInferer(EdgeInfererContract):
    member = "OutputEdgeInferer"
    etype = EDGE_TYPES[2]
    missing_edges = (("f0", "y0"), ("f7", "y0"), ("f2", "y1"))
    rivals = (("f7", "y0"), ("f1", "y0"))
    kept_edge = ("f6", "y1")

    def make(self, model, data):
        return OutputEdgeInferer(model, data)

    def fit(self, inferer, model, x, y):
        inferer.fit(batches(x, y), verbose=False)


class TestInputEdgeInferer(EdgeInfererContract):
    member = "InputEdgeInferer"
    etype = EDGE_TYPES[1]
    missing_edges = (("a", "f3"), ("b", "f3"), ("c", "f0"))
    rivals = (("b", "f3"), ("a", "f3"))
    kept_edge = ("a", "f0")

    def make(self, model, data):
        return InputEdgeInferer(model, data)

    def fit(self, inferer, model, x, y):
        inferer.fit(batches(x, y), verbose=False)


OPTIONS = [
    {},
    {"norm": "none", "nonlin": torch.nn.Tanh, "layers": 3},
    {"residual": False, "layers": 2},
    {"learn_residual": False, "node_mlp": True, "norm": "rms"},
]


def trained(graph, **options):
    """A model whose residual gates differ from block to block, one of them closed in part."""
    model = small_model(graph, **options)
    with torch.no_grad():
        for k, block in enumerate(model.ResBlocks):
            if isinstance(block.residual_weight, torch.nn.Parameter):
                block.residual_weight.fill_(0.4 + 0.3 * k)
            block.lin_out.bias.normal_(std=0.2)
    return model.eval()


def with_edge(model, pair, graph, **options):
    """The same network with one edge more, of weight 0 and with the same outputs; and that flat edge."""
    larger_graph = graph.with_edges([pair])
    (etype,) = [
        e for e in EDGE_TYPES if larger_graph.edge_index_dict[e].shape != graph.edge_index_dict[e].shape
    ]
    larger = small_model(larger_graph, **options).eval()
    place = {EDGE_TYPES[1]: larger.input_edge_mask, EDGE_TYPES[2]: larger.output_edge_mask}[etype]
    new = int(place.nonzero()[-1])  # the last of its type
    state = dict(model.state_dict())
    target = larger.edge_index[1, new]
    degree = int((larger.edge_index[1] == target).sum())
    for k, block in enumerate(larger.ResBlocks):
        # An output divides by the root of its in-degree: what it had must be larger to say the same.
        size = torch.ones(larger.E, dtype=torch.float64)
        if etype == EDGE_TYPES[2]:
            size[larger.edge_index[1] == target] = (degree / (degree - 1)) ** 0.5
        for side, row in (("lin_in", 0), ("lin_out", 1)):
            edge = getattr(block, side).indices[row]
            values = torch.zeros(len(edge), dtype=torch.float64)
            values[edge != new] = state[f"ResBlocks.{k}.{side}.values"]
            state[f"ResBlocks.{k}.{side}.values"] = values * (size[edge] if side == "lin_out" else 1.0)
        bias = torch.zeros(larger.E, dtype=torch.float64)
        bias[torch.arange(larger.E) != new] = state[f"ResBlocks.{k}.lin_out.bias"]
        state[f"ResBlocks.{k}.lin_out.bias"] = bias * size
    larger.load_state_dict(state)
    return larger, new


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "kind, pairs",
    [
        (OutputEdgeInferer, [("f0", "y0"), ("f2", "y1")]),
        (InputEdgeInferer, [("b", "f1"), ("a", "f3")]),
    ],
)
def test_effects_are_the_gradient_at_an_edge_that_has_weight_0(kind, pairs, options):
    graph, (x, y) = small_graph(), small_data()
    model = trained(graph, **options)
    inferer = kind(model, graph)
    assert inferer.fit(batches(x, y, 32), verbose=False) == len(x)
    effects = inferer.effects()
    assert len(effects) == model.layers
    for pair in pairs:
        larger, new = with_edge(model, pair, graph, **options)
        torch.testing.assert_close(larger(x), model(x), rtol=1e-10, atol=1e-12)
        ((larger(x) - y).square().mean()).backward()
        i, j = (
            names.index(name)
            for names, name in zip((inferer.kept.sources, inferer.kept.targets), pair, strict=True)
        )
        for place, block in enumerate(larger.ResBlocks):
            side = block.lin_in if kind is InputEdgeInferer else block.lin_out
            row = 0 if kind is InputEdgeInferer else 1
            grad = side.values.grad[side.indices[row] == new]
            size = max(float(grad.abs().max()), 1e-3)
            torch.testing.assert_close(effects[place, i, j].flatten(), grad, rtol=0, atol=1e-10 * size)
    assert float(effects.abs().max()) > 1e-4


KINDS = [OutputEdgeInferer, InputEdgeInferer]


def by_hand(kind, model, x, y):
    """h and g of every block, without the constants that whitening and ranking within a target do not see."""
    x = x.clone().requires_grad_()
    for block in model.ResBlocks:
        block._store_activations = True
    prediction = model(x)
    captured = [(b._last_pre_norm_activation, b._last_activation) for b in model.ResBlocks]
    for block in model.ResBlocks:
        block._store_activations = False
    loss = (prediction - y).square().sum() / y.shape[1]
    if kind is OutputEdgeInferer:
        (g,) = torch.autograd.grad(loss, [prediction])
        return [h.detach().numpy().reshape(len(x), -1, C) for _, h in captured], [g.numpy()[..., None]] * len(
            captured
        )
    slopes = torch.autograd.grad(loss, [z for z, _ in captured])
    return [x.detach().numpy()[..., None]] * len(captured), [d.numpy().reshape(len(x), -1, C) for d in slopes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["omp", "whitened"])
def test_scores_are_least_squares(kind, score):
    """No residual learnt and one in-degree, so that the constants are known: 1 / sqrt(L (d + 1)) and 1."""
    graph, (x, y) = small_graph(), small_data()
    model = small_model(graph, learn_residual=False, layers=3).eval()
    inferer = kind(model, graph)
    inferer.fit(batches(x, y, 32), verbose=False)
    h, g = by_hand(kind, model, x, y)
    constant = np.ones(len(inferer.kept.targets))
    if kind is OutputEdgeInferer:
        constant = 1 / np.sqrt(3 * (np.array([1, 2]) + 1))  # y0 has one edge, y1 two
    table = inferer.evaluate(score=score)
    for row in table.itertuples():
        given = inferer.parents_by_target[row.dst_idx] if score == "omp" else []
        if row.src_idx in given:
            assert np.isnan(row.score) and row.has_edge
            continue
        wanted = projected(h, g, row.src_idx, row.dst_idx, given, 0.05) * constant[row.dst_idx]
        assert row.score == pytest.approx(wanted, abs=1e-9 * table.score.max())
        assert row.n_cond == len(given)


def tiny(kind):
    """Four inputs, functions and outputs side by side; the truth has one edge more than the graph."""
    names = {"input": list("abcd"), "function": list("fghi"), "output": list("uvwx")}
    four = torch.arange(4)
    index = {EDGE_TYPES[0]: torch.empty(2, 0, dtype=torch.long), EDGE_TYPES[1]: torch.stack([four, four])}
    graph = HeteroGraph({**index, EDGE_TYPES[2]: torch.stack([four, four])}, names)
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    if kind is OutputEdgeInferer:
        y[:, 2] += x[:, 0]  # f -> w
        return graph, x, y, ("f", "w")
    y[:, 3] += x[:, 1]  # b -> i
    return graph, x, y, ("b", "i")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["omp", "whitened", "gradient"])
def test_a_missing_edge_comes_first(kind, score):
    graph, x, y, missing = tiny(kind)
    torch.manual_seed(0)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=4, layers=2, norm="none")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    inferer = kind(model, graph)
    inferer.fit([(x, y)], verbose=False)
    table = inferer.evaluate(score=score)
    first = table[~table.has_edge].iloc[0]
    assert (first.src_func, first.dst_func) == missing
    if score == "omp":
        assert first.q_value < 1e-6
    order = inferer.greedy(2, score=score)
    assert (order.src_func[0], order.dst_func[0]) == missing
    among = inferer.greedy(9, candidates=[missing, ("nobody", missing[1]), ("a", "f")])
    assert list(zip(among.src_func, among.dst_func, strict=True)) == [missing]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_gaps(kind):
    graph, (x, y) = small_graph(), small_data()
    model = trained(graph)
    whole, parts = kind(model, graph), kind(model, graph)
    whole.fit([(x, y)], verbose=False)
    parts.partial_fit(batches(x[:31], y[:31], 7), verbose=False)
    parts.partial_fit(batches(x[31:], y[31:], 50), crit=torch.nn.functional.mse_loss, verbose=False)
    assert parts.n == whole.n == len(x)
    pd.testing.assert_frame_equal(parts.evaluate(), whole.evaluate(), rtol=1e-7)
    gaps = y.clone()
    gaps[::3] = torch.nan
    keep = ~gaps.isnan().any(1)
    parts.fit(batches(x, gaps), verbose=False)
    whole.fit([(x[keep], y[keep])], verbose=False)
    assert parts.n == whole.n == int(keep.sum())
    pd.testing.assert_frame_equal(parts.evaluate(), whole.evaluate(), rtol=1e-7)


def test_models_that_cannot_be_inferred_from():
    graph = small_graph()
    names = {**graph.node_names_dict}
    for kind, side in ((OutputEdgeInferer, "output"), (InputEdgeInferer, "input")):
        turned = HeteroGraph(graph.edge_index_dict, {**names, side: list(names[side])[::-1]}, warn=False)
        with pytest.raises(ValueError, match=f"data must have the model's . {side} nodes in the same order"):
            kind(small_model(graph), turned)
        model = small_model(graph)
        del model.ResBlocks[0].residual_weight
        with pytest.raises(TypeError, match="ResBlocks with residual_weight, a scalar tensor or None"):
            kind(model, graph)
