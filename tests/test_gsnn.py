"""GSNN against a dense float64 computation, and everything else its users read or switch."""

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from dense_oracle import BACKENDS, dense_forward, needs_scatter, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.models.config import Config
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS
from gsnn.simulate.scenarios import converging_tiers


def make(seed=0, n_function=12, dtype=torch.float64, graph=None, **arguments):
    """A model whose parameters, biases included, are all random, and an input batch."""
    generator = torch.Generator().manual_seed(seed)
    edges, names = random_graph(generator, n_function=n_function, **(graph or {}))
    arguments = {"channels": 3, "layers": 3, **arguments}
    with torch.random.fork_rng(devices=[]):  # the initial weights come from the global state
        torch.manual_seed(seed)
        model = GSNN(edges, names, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(7, len(names["input"]), generator=generator, dtype=torch.float64)
    return model.to(dtype), x.to(dtype)


def gradients(output, tensors, weight):
    return torch.autograd.grad((output * weight).sum(), tensors, allow_unused=True, materialize_grads=True)


def assert_same_gradients(model, x, forward, expected, tolerance=1e-10):
    """Relative, but for gradients that are zero in exact arithmetic and rounding noise here."""
    tensors = [x, *model.parameters()]
    weight = torch.linspace(-1, 1, expected.numel(), dtype=x.dtype).view_as(expected)
    wanted = gradients(expected, tensors, weight)
    scale = max(g.norm() for g in wanted)
    for got, want in zip(gradients(forward, tensors, weight), wanted, strict=True):
        size = want.norm()
        assert (got - want).norm() <= tolerance * (size if size > 1e-3 * scale else scale)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "one bucket": {"n_function": 6},
    "many degrees": {"n_function": 60, "graph": {"density": 0.08}},
    "unshared": {"share_layers": False},
    "norm last": {"norm_first": False},
    "node mlp": {"node_mlp": True, "share_layers": False},
    "no bias": {"bias": False, "affine": False},
    "no residual": {"residual": False},
    "fixed residual": {"learn_residual": False},
    "no self edges": {"add_function_self_edges": False},
    "tanh": {"nonlin": torch.nn.Tanh},
    "one channel, one layer": {"channels": 1, "layers": 1},
}


# The norms do not know how the products were computed: one of either kind will do for the second backend.
NORMS_AND_BACKENDS = [
    *((norm, "bucketed") for norm in NORMS),
    *(pytest.param(norm, "scatter", marks=needs_scatter) for norm in ("layer", "groupbatch")),
]


@pytest.mark.parametrize(("norm", "backend"), NORMS_AND_BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_equal_the_dense_computation(norm, backend, variant):
    model, x = make(norm=norm, backend=backend, **VARIANTS[variant])
    x.requires_grad_()
    output = model(x)
    expected, _, captures = dense_forward(model, x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    assert_same_gradients(model, x, output, expected)

    # The same with captures on, which run the steps of a block one by one.
    for block in model.ResBlocks:
        block._store_activations = True
    output = model(x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    assert_same_gradients(model, x, output, dense_forward(model, x)[0])
    for block, (pre_norm, activation) in zip(model.ResBlocks, captures, strict=True):
        torch.testing.assert_close(block._last_pre_norm_activation, pre_norm, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(block._last_activation, activation, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_function=st.integers(1, 25),
    density=st.floats(0.05, 0.9),
    norm=st.sampled_from(NORMS),
    samples=st.integers(2, 5),
)
def test_random_graphs_equal_the_dense_computation(backend, seed, n_function, density, norm, samples):
    wiring = {"density": density, "hub": n_function > 3, "isolated": n_function > 3}
    options = {"norm": norm, "channels": 2, "layers": 2, "backend": backend}
    try:
        model, _ = make(seed, n_function=n_function, graph=wiring, **options)
    except ValueError as error:
        assert "at least one edge" in str(error)
        return
    x = torch.randn(samples, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x.requires_grad_()
    output, expected = model(x), dense_forward(model, x)[0]
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    assert_same_gradients(model, x, output, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["groupbatch", "batch"])
@pytest.mark.parametrize("captures", [False, True])
def test_running_statistics_follow_torch_and_serve_eval_mode(backend, norm, captures):
    model, x = make(norm=norm, n_function=60, graph={"density": 0.08}, layers=1, backend=backend)
    block = model.ResBlocks[0]
    block._store_activations = captures
    size = 60 if norm == "groupbatch" else 60 * 3
    reference = torch.nn.BatchNorm1d(size, affine=False, dtype=torch.float64)
    for scale in (1.0, 2.0, -0.5):
        pre_norm = dense_forward(model, scale * x)[2][0][0]
        grouped = (
            pre_norm.view(7, 60, 3).transpose(1, 2).reshape(-1, 60) if norm == "groupbatch" else pre_norm
        )
        reference(grouped)
        model(scale * x)
    torch.testing.assert_close(block.norm.running_mean, reference.running_mean)
    torch.testing.assert_close(block.norm.running_var, reference.running_var)
    model.eval()
    torch.testing.assert_close(model(x), dense_forward(model, x, training=False)[0])


def test_jacobian_is_exactly_zero_where_no_path_exists():
    model, x = make(n_function=30, graph={"density": 0.06}, layers=4)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).abs().sum(1)
    reach = np.eye(model.num_nodes, dtype=bool)
    adjacency = np.zeros_like(reach)
    adjacency[tuple(model.edge_index.numpy())] = True
    for _ in range(model.num_nodes):
        reach |= (reach.astype(int) @ adjacency) > 0
    inputs = model.input_node_mask.nonzero().flatten().numpy()
    outputs = model.output_node_mask.nonzero().flatten().numpy()
    path = reach[np.ix_(inputs, outputs)].T
    assert 0 < path.sum() < path.size
    assert (jacobian.numpy()[~path] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batched", [False, True])
def test_masks_and_initial_state(backend, batched):
    model, x = make(n_function=60, graph={"density": 0.08}, backend=backend)
    generator = torch.Generator().manual_seed(1)
    lead = (7,) if batched else ()
    edge_mask = torch.rand(*lead, model.edge_index.shape[1], generator=generator, dtype=torch.float64)
    node_mask = (torch.rand(*lead, model.num_nodes, generator=generator) < 0.7).double()
    e0 = torch.randn(*lead, model.edge_index.shape[1], generator=generator, dtype=torch.float64)
    for arguments in (
        {"edge_mask": edge_mask},
        {"node_mask": node_mask},
        {"e0": e0},
        {"edge_mask": edge_mask, "node_mask": node_mask, "e0": e0},
    ):
        expected, state, _ = dense_forward(model, x, **arguments)
        torch.testing.assert_close(model(x, **arguments), expected, rtol=1e-10, atol=1e-11)
        got = model(x, ret_edge_out=True, **arguments)
        torch.testing.assert_close(got, state, rtol=1e-10, atol=1e-11)
    for block in model.ResBlocks:
        block._store_activations = True
    torch.testing.assert_close(model(x, **arguments), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["node_mask", "edge_mask", "e0"])
def test_masks_are_differentiable(backend, name):
    model, x = make(backend=backend)
    size = model.num_nodes if name == "node_mask" else model.edge_index.shape[1]
    mask = torch.rand(7, size, dtype=torch.float64).requires_grad_()
    (got,) = torch.autograd.grad(model(x, **{name: mask}).square().sum(), mask)
    (want,) = torch.autograd.grad(dense_forward(model, x, **{name: mask})[0].square().sum(), mask)
    torch.testing.assert_close(got, want)


def random_edges(n_source, n_target, count):
    pairs = torch.randperm(n_source * n_target)[:count]
    return torch.stack([pairs // n_target, pairs % n_target])


@pytest.mark.parametrize(
    ("sizes", "n_edges", "options", "expected"),
    [
        ((25, 50, 25), (25, 37, 25), {"layers": 6, "share_layers": False, "norm": "none"}, 13_980),
        ((12, 24, 12), (12, 17, 12), {"layers": 6, "share_layers": False, "norm": "groupbatch"}, 6_924),
        ((8, 12, 8), (8, 16, 8), {"layers": 4, "share_layers": True, "norm": "layer"}, 816),
    ],
)
def test_parameter_counts(sizes, n_edges, options, expected):
    n_input, n_function, n_output = sizes
    edges = {
        ("input", "to", "function"): random_edges(n_input, n_function, n_edges[0]),
        ("function", "to", "function"): random_edges(n_function, n_function, n_edges[1]),
        ("function", "to", "output"): random_edges(n_function, n_output, n_edges[2]),
    }
    names = {
        kind: [f"{kind}{k}" for k in range(size)]
        for kind, size in zip(("input", "function", "output"), sizes, strict=True)
    }
    model = GSNN(edges, names, 8, **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_flat_graph_order_and_masks():
    edges = {
        ("function", "to", "function"): torch.tensor([[2, 0], [0, 1]]),
        ("input", "to", "function"): torch.tensor([[0, 1], [2, 0]]),
        ("function", "to", "output"): torch.tensor([[1], [0]]),
    }
    names = {"input": ["x", "y"], "function": ["a", "b", "c"], "output": ["z"]}
    model = GSNN(edges, names, 2, 2)
    assert model.homo_names == ["a", "b", "c", "x", "y", "z"]
    assert model.num_nodes == 6
    assert model.edge_index.tolist() == [[2, 0, 3, 4, 1, 0, 1, 2], [0, 1, 2, 0, 5, 0, 1, 2]]
    assert model.input_node_mask.tolist() == [False] * 3 + [True, True, False]
    assert model.output_node_mask.tolist() == [False] * 5 + [True]
    assert model.function_edge_mask.tolist() == [True, True, False, False, False, True, True, True]
    assert model.input_edge_mask.tolist() == [False, False, True, True] + [False] * 4
    assert model.output_edge_mask.tolist() == [False] * 4 + [True] + [False] * 3
    block: Any = model.ResBlocks[0]
    assert block.channel_groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert (model.channels, model.layers, model.norm, model.checkpoint) == (2, 2, "layer", False)
    assert (block.lin_in.N, block.lin_in.M, block.lin_out.N, block.lin_out.M) == (8, 6, 6, 8)


def test_layers_share_weights_but_not_norms_and_residuals():
    shared, _ = make(share_layers=True)
    first, last = shared.ResBlocks[0], shared.ResBlocks[-1]
    assert first.lin_in is last.lin_in
    assert first.lin_out is last.lin_out
    assert first.norm is not last.norm
    assert first.residual_weight is not last.residual_weight
    unshared, _ = make(share_layers=False)
    assert unshared.ResBlocks[0].lin_in.values is not unshared.ResBlocks[1].lin_in.values


@pytest.mark.parametrize("backend", BACKENDS)
def test_captured_gradients_are_those_of_the_dense_computation(backend):
    model, x = make(n_function=60, graph={"density": 0.08}, norm="groupbatch", backend=backend)
    assert not model.plan.natural  # so that rows really are permuted
    for block in model.ResBlocks:
        block._store_activations = True
    output = model(x)
    captured = [b._last_pre_norm_activation for b in model.ResBlocks]
    captured += [b._last_activation for b in model.ResBlocks]
    for tensor in captured:
        tensor.retain_grad()
    output.square().sum().backward()
    expected, _, dense = dense_forward(model, x)
    wanted = torch.autograd.grad(
        expected.square().sum(), [pre for pre, _ in dense] + [act for _, act in dense], allow_unused=True
    )
    # The oracle's activations lie off its path (it reshapes them again), so only pre-norm ones compare.
    for tensor, want in zip(captured[:3], wanted[:3], strict=True):
        torch.testing.assert_close(tensor.grad, want, rtol=1e-9, atol=1e-11)
    assert all(tensor.grad is not None for tensor in captured)


def test_captures_are_off_unless_switched_on():
    model, x = make()
    model(x)
    assert all(b._last_pre_norm_activation is None and b._last_activation is None for b in model.ResBlocks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("agg", ["sum", "mean", "max", "last", "all"])
def test_node_activations(backend, agg):
    model, x = make(n_function=60, graph={"density": 0.08}, norm="groupbatch", backend=backend)
    model.train()
    model.ResBlocks[1]._store_activations = True
    model.ResBlocks[1]._last_activation = marker = torch.zeros(1)
    before = copy.deepcopy(model.state_dict())
    got = model.get_node_activations(x, agg=agg)
    assert list(got) == model.homo_names[:60]
    layers = torch.stack([a.view(7, 60, 3) for _, a in dense_forward(model, x, training=False)[2]], 1)
    wanted = {
        "sum": layers.sum(1),
        "mean": layers.mean(1),
        "max": layers.max(1).values,
        "last": layers[:, -1],
        "all": layers,
    }[agg]
    for node, name in enumerate(got):
        torch.testing.assert_close(got[name], wanted[..., node, :])
    assert model.training
    assert [b._store_activations for b in model.ResBlocks] == [False, True, False]
    assert model.ResBlocks[1]._last_activation is marker
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["layer", "groupbatch"])
def test_checkpointing_changes_neither_gradients_nor_statistics(backend, norm):
    model, x = make(norm=norm, share_layers=False, backend=backend)
    other = copy.deepcopy(model)
    other.checkpoint = True
    for network in (model, other):
        network(x).square().sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pruning_drops_what_is_small_in_every_layer(backend):
    model, x = make(share_layers=False, layers=2, backend=backend)
    with torch.no_grad():
        for k, block in enumerate(model.ResBlocks):
            block.lin_in.values[:5] = 1e-6
            block.lin_in.values[5 + k] = 1e-6  # small in one layer only
            block.lin_out.values[-3:] = -1e-6
    counts = [len(model.ResBlocks[0].lin_in.values), len(model.ResBlocks[0].lin_out.values)]
    before = model(x)
    assert model.prune(1e-4) == 8
    assert [len(model.ResBlocks[1].lin_in.values), len(model.ResBlocks[1].lin_out.values)] == [
        counts[0] - 5,
        counts[1] - 3,
    ]
    assert model.ResBlocks[0].lin_in.indices.shape == (2, counts[0] - 5)
    expected = dense_forward(model, x)[0]
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)
    x.requires_grad_()
    assert_same_gradients(model, x, model(x), dense_forward(model, x)[0])
    assert model.prune(1e-4) == 0

    twin, _ = make(seed=0, share_layers=False, layers=2, backend=backend)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share_layers", [True, False])
def test_state_dict_and_deep_copy(backend, share_layers):
    model, x = make(norm="groupbatch", share_layers=share_layers, backend=backend)
    model(x)
    model.eval()
    twin, _ = make(seed=0, norm="groupbatch", share_layers=share_layers, backend=backend)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model(x))
    clone = copy.deepcopy(model)
    assert torch.equal(clone(x), model(x))
    assert (clone.ResBlocks[0].lin_in is clone.ResBlocks[1].lin_in) == share_layers


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_smallest_network_is_finite(norm, training):
    edges = {
        ("function", "to", "function"): torch.zeros(2, 0, dtype=torch.long),
        ("input", "to", "function"): torch.tensor([[0], [0]]),
        ("function", "to", "output"): torch.tensor([[0], [0]]),
    }
    names = {"input": ["x"], "function": ["f"], "output": ["y"]}
    model = GSNN(edges, names, 1, 1, norm=norm).train(training)
    output = model(torch.ones(1, 1))
    output.sum().backward()
    assert output.shape == (1, 1)
    assert output.isfinite().all()
    tensors = [p.grad for p in model.parameters()] + [b for b in model.buffers() if b.is_floating_point()]
    assert all(t is not None and t.isfinite().all() for t in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_seed_same_run_to_the_bit(backend):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        model, x = make(dtype=torch.float32, dropout=0.3, norm="groupbatch", backend=backend)
        output = model(x)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("captures", [False, True])
def test_dropout_zeroes_channels_or_doubles_them(captures):
    model, x = make(channels=1, layers=1, norm="none", dropout=0.5, residual=False, bias=False)
    model.ResBlocks[0]._store_activations = captures
    torch.manual_seed(0)
    functions = model.function_edge_mask.nonzero().flatten()
    states = torch.stack([model(x, ret_edge_out=True)[:, functions] for _ in range(200)])
    model.eval()
    undropped = model(x, ret_edge_out=True)[:, functions]
    kept = states != 0
    torch.testing.assert_close(states[kept], (2 * undropped).expand_as(states)[kept])
    share = kept.double().mean(0)[undropped != 0]
    assert share.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("captures", [False, True])
def test_gradcheck_to_second_order(norm, captures):
    model, x = make(n_function=5, channels=2, layers=2, norm=norm, nonlin=torch.nn.Tanh)
    for block in model.ResBlocks:
        block._store_activations = captures
    x = x[:3].requires_grad_()
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradgradcheck(model, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_order_of_the_whole_stack(backend):
    model, x = make(n_function=5, channels=2, layers=2, backend=backend)
    assert torch.autograd.gradgradcheck(model, x[:3].requires_grad_())


@pytest.mark.parametrize("backend", BACKENDS)
def test_function_transforms(backend):
    model, x = make(backend=backend)
    got = torch.func.jacrev(model)(x)
    want = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(got, want)


def test_hooks_on_blocks_fire():
    model, x = make()
    seen = []
    handle = model.ResBlocks[1].register_forward_hook(lambda *_: seen.append(1))
    hooked = model(x)
    handle.remove()
    assert seen == [1]
    assert torch.equal(hooked, model(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_parameters_get_no_gradient(backend):
    model, x = make(share_layers=False, backend=backend)
    frozen = model.ResBlocks[1].lin_in.values
    frozen.requires_grad_(False)
    model(x).sum().backward()
    assert frozen.grad is None
    assert model.ResBlocks[0].lin_in.values.grad is not None


def test_state_of_the_optimizer_step_equals_the_dense_one():
    model, x = make(dtype=torch.float64, share_layers=True)
    twin = copy.deepcopy(model)
    for network, forward in ((model, model), (twin, lambda v: dense_forward(twin, v)[0])):
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            forward(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"channels": 0}, ValueError, "channels must be a positive int, got 0"),
        ({"channels": 2.5}, ValueError, "channels must be a positive int, got 2.5"),
        ({"layers": 0}, ValueError, "layers must be a positive int, got 0"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"norm": "bach"}, ValueError, "norm must be one of 'layer', 'rms', .*, got 'bach'"),
        ({"backend": "dense"}, ValueError, "backend must be one of bucketed, scatter, got 'dense'"),
        ({"init": "glorot"}, ValueError, "init must be one of 'xavier_uniform', .*, got 'glorot'"),
        ({"nonlin": torch.nn.ELU()}, TypeError, "nonlin must be a module class"),
        ({"node_mlp_hidden": -1}, ValueError, "node_mlp_hidden must be a positive int, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


def test_bad_inputs():
    model, x = make()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 5\).*got \(7, 4\)"):
        model(x[:, :4])
    with pytest.raises(ValueError, match=r"x must have shape \(B, 5\).*got \(5,\)"):
        model(x[0])
    with pytest.raises(TypeError, match="x must have the model's dtype torch.float64, got torch.float32"):
        model(x.float())
    x[2, 3] = float("nan")
    with pytest.raises(ValueError, match="x must not contain NaN, got it in 1 columns: 'input3'"):
        model(x)
    x = x.nan_to_num()
    with pytest.raises(ValueError, match="edge_mask must have shape"):
        model(x, edge_mask=torch.ones(3))
    with pytest.raises(ValueError, match="node_mask must have shape"):
        model(x, node_mask=torch.ones(6, model.num_nodes))
    with pytest.raises(ValueError, match="e0 must have shape"):
        model(x, e0=torch.ones(1, 2, 3))
    with pytest.raises(
        ValueError, match="agg must be one of 'sum', 'mean', 'max', 'last', 'all', got 'median'"
    ):
        model.get_node_activations(x, agg="median")
    with pytest.raises(ValueError, match="threshold must be a non-negative number, got -1"):
        model.prune(-1)


def test_a_graph_without_edges_is_refused():
    none = torch.zeros(2, 0, dtype=torch.long)
    edges = {
        kind: none
        for kind in (
            ("function", "to", "function"),
            ("input", "to", "function"),
            ("function", "to", "output"),
        )
    }
    names = {"input": ["x"], "function": ["f"], "output": ["y"]}
    with pytest.raises(ValueError, match="at least one edge"):
        GSNN(edges, names, 1, 1, add_function_self_edges=False)


def test_the_config_has_the_arguments_of_the_model():
    """All but the graph's, in their order and with their defaults."""
    given = {name: p.default for name, p in inspect.signature(GSNN).parameters.items()}
    graph = ("edge_index_dict", "node_names_dict", "edge_weight_dict")
    assert [(name, default) for name, default in given.items() if name not in graph] == [
        (name, p.default) for name, p in inspect.signature(Config).parameters.items()
    ]


def test_config_rebuilds_the_model():
    model, x = make(norm="rms", dropout=0.1, node_mlp=True)
    twin = GSNN(model.graph.edge_index_dict, model.graph.node_names_dict, **model.config).double()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_numpy_integers_are_ints_and_e_counts_the_flat_edges():
    graph = converging_tiers(3).partial
    sizes: dict[str, Any] = {
        "channels": np.int64(4),
        "layers": np.int32(2),
        "node_mlp_hidden": np.int64(5),
    }
    model = GSNN(
        graph.edge_index_dict,
        graph.node_names_dict,
        node_mlp=True,
        **sizes,
    )
    assert (model.channels, model.layers, type(model.channels)) == (4, 2, int)
    edges = sum(index.shape[1] for index in graph.edge_index_dict.values())
    assert model.E == edges + len(graph.node_names_dict["function"]) == model.edge_index.shape[1]
    for name in ("channels", "layers"):
        for bad in (np.float64(2.0), True, np.bool_(True), "2", 0):
            sizes = {"channels": 2, "layers": 2, name: bad}
            with pytest.raises(ValueError, match=f"{name} must be a positive int, got "):
                GSNN(graph.edge_index_dict, graph.node_names_dict, **sizes)


@pytest.mark.parametrize("norm", ["none", "layer", "softmax"])
def test_per_sample_jacobians_by_vmap(norm):
    graph = converging_tiers(3).partial
    torch.manual_seed(0)
    model = (
        GSNN(graph.edge_index_dict, graph.node_names_dict, channels=3, layers=3, norm=norm).double().eval()
    )
    x = torch.randn(5, len(graph.node_names_dict["input"]), dtype=torch.float64)
    found = torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(x)
    for row, jacobian in zip(x, found, strict=True):
        want = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], row)
        torch.testing.assert_close(jacobian, want)
    with pytest.raises(ValueError, match="x must not contain NaN"):
        model(x * float("nan"))
