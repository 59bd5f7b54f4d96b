"""Gates by a context, against node masks given by hand to the same network without one."""

import numpy as np
import pytest
import torch
from inferer_contract import small_graph

import gsnn
from gsnn.captures import Captures
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.models.SideBySide import side_by_side

N = 9


def build(context=("b", "c"), seed=0, **options):
    graph = small_graph()
    options = {"channels": 3, "layers": 3, "share_layers": False, **options}
    torch.manual_seed(seed)
    return GSNN(graph.edge_index_dict, graph.node_names_dict, context=context, **options).double()


def opened(model, seed=0):
    """Gates that differ."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.gate.parameters():
            param.copy_(torch.randn(param.shape, generator=rng, dtype=torch.float64))
    return model


def masks(model, x):
    """(B, num_nodes), the gates written out."""
    linear = model.gate.linear
    gates = 2 / (1 + torch.exp(-(x[:, [1, 2]] @ linear.weight.T + linear.bias)))
    return torch.cat([gates, torch.ones(len(x), model.num_nodes - N, dtype=x.dtype)], 1)


def without(model):
    """The same network without a context."""
    plain = build((), **{name: model.config[name] for name in ("norm", "node_mlp", "share_layers")})
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("gate.")})
    return plain


@pytest.fixture
def x():
    return torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_without_a_context_nothing_is_there(x):
    graph = small_graph()
    torch.manual_seed(0)
    bare = GSNN(graph.edge_index_dict, graph.node_names_dict, 3, 3, share_layers=False).double()
    after = torch.get_rng_state()
    off = build(())
    assert off.gate is None and list(off.state_dict()) == list(bare.state_dict())
    assert torch.equal(off(x), bare(x)) and torch.equal(torch.get_rng_state(), after)
    gated = build()  # and one that begins with open gates has drawn nothing more
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(gated(x), bare(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{}, {"norm": "groupbatch"}, {"node_mlp": True, "norm": "none"}, {"checkpoint": True}]
)
def test_gates_are_node_masks_that_learn(options, x):
    model = opened(build(**options))
    plain = without(model)
    mask = masks(model, x)
    torch.testing.assert_close(model(x), plain(x, node_mask=mask), rtol=1e-10, atol=1e-12)
    model(x).square().sum().backward()
    found = [param.grad.clone() for param in model.gate.parameters()]
    assert all(float(grad.abs().max()) > 1e-3 for grad in found)
    model.zero_grad()
    plain(x, node_mask=masks(model, x)).square().sum().backward()
    for grad, param in zip(found, model.gate.parameters(), strict=True):
        torch.testing.assert_close(grad, param.grad, rtol=1e-8, atol=1e-10)
    both = torch.rand(len(x), model.num_nodes, dtype=torch.float64)
    torch.testing.assert_close(
        model(x, node_mask=both), plain(x, node_mask=both * mask), rtol=1e-10, atol=1e-12
    )


def test_captures_are_what_the_edges_read(x):
    model = opened(build()).eval()
    plain = without(model).eval()
    parts = []
    for network, given in ((model, {}), (plain, {"node_mask": masks(model, x)})):
        captures = Captures(network)
        with captures.recording():
            network(x, **given)
            parts.append([h.detach() for h in captures.activations()])
    gates = masks(model, x)[:, :N].detach().repeat_interleave(3, 1)
    for mine, ungated in zip(*parts, strict=True):
        torch.testing.assert_close(mine, ungated * gates, rtol=1e-10, atol=1e-12)


def test_files_growth_and_networks_side_by_side(tmp_path, x):
    models = [opened(build(seed=k, norm="groupbatch"), k) for k in range(2)]
    side = side_by_side(models)
    for k, model in enumerate(models):
        torch.testing.assert_close(side(x)[:, k], model(x), rtol=1e-10, atol=1e-12)
    model = models[0].eval()
    gsnn.save(model, tmp_path / "model.gsnn")
    loaded = gsnn.load(tmp_path / "model.gsnn")
    assert loaded.config == model.config and torch.equal(loaded(x), model(x))
    new = model.grown([("f0", "f4")])
    assert new.config["context"] == ["b", "c"]
    torch.testing.assert_close(new(x), model(x), rtol=1e-10, atol=1e-12)


def switched():
    """y = tanh(drug) in line A and 0 in line B; the lines have no edges."""
    names = {"input": ["drug", "A", "B"], "function": ["p", "q"], "output": ["y"]}
    index = {
        EDGE_TYPES[0]: torch.tensor([[0], [1]]),
        EDGE_TYPES[1]: torch.tensor([[0], [0]]),
        EDGE_TYPES[2]: torch.tensor([[1], [0]]),
    }
    rng = np.random.default_rng(0)
    line = rng.integers(2, size=400)
    x = np.column_stack([rng.normal(size=400), line == 0, line == 1]).astype(float)
    y = np.tanh(x[:, :1]) * x[:, 1:2] + 0.05 * rng.normal(size=(400, 1))
    return HeteroGraph(index, names, warn=False), x, y


@pytest.mark.parametrize("context, enough", [(["A", "B"], True), ([], False)])
def test_what_a_line_switches_off_is_learnt(context, enough):
    graph, x, y = switched()
    torch.manual_seed(0)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, 4, 3, norm="none", context=context)
    gsnn.fit(model, x[:300], y[:300], epochs=60, lr=2e-2, standardize=True, verbose=False)
    error = np.square(gsnn.predict(model, x[300:]) - y[300:]).mean() / y[300:].var()
    assert error < 0.1 if enough else error > 0.3


def test_a_context_that_was_never_seen_leaves_the_gates_alone():
    graph, x, y = switched()
    x = np.column_stack([x[:, 0], x[:, 1], np.zeros(400)])
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, 4, 3, context=["A", "B"])
    gsnn.fit(model, x, y, epochs=3, standardize=True, verbose=False)
    other = x.copy()
    other[:, 2] = 1.0
    np.testing.assert_array_equal(gsnn.predict(model, other), gsnn.predict(model, x))


@pytest.mark.parametrize(
    "context, error, message",
    [
        ("b", TypeError, "context must be names of input nodes, got 'b'"),
        (None, TypeError, "context must be names of input nodes, got None"),
        ([1], TypeError, r"context must be names of input nodes, got \[1\]"),
        (["b", "f0"], ValueError, "context must name input nodes, got 1 unknown: 'f0'"),
        (["b", "b"], ValueError, "context must name each input once"),
    ],
)
def test_contexts_that_are_none(context, error, message):
    with pytest.raises(error, match=message):
        build(context)
