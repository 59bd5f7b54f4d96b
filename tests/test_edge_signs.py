"""edge_signs='respect': derivatives follow the signs of paths, counted on the graph alone."""

import io

import networkx as nx
import numpy as np
import pytest
import torch

import gsnn
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.models.SideBySide import side_by_side
from gsnn.models.signs import bound
from gsnn.simulate.scenarios import random_signed_dag

NAMES = {"input": ["a", "b", "c"], "function": [f"f{k}" for k in range(7)], "output": ["u", "v", "w"]}
#: (source, target, sign); f6 is read through one edge of unknown sign.
EDGES = [
    ("a", "f0", 1), ("b", "f1", -1), ("c", "f2", 1),
    ("f0", "f3", 1), ("f1", "f3", -1), ("f1", "f4", 1), ("f2", "f4", -1), ("f3", "f5", -1), ("f5", "f3", -1),
    ("f2", "f6", 0),
    ("f3", "u", 1), ("f5", "v", -1), ("f4", "v", 1), ("f4", "w", -1), ("f6", "w", 1),
]  # fmt: skip


def signed_graph(edges=EDGES):
    index, weight = {}, {}
    for etype in EDGE_TYPES:
        sources, targets = NAMES[etype[0]], NAMES[etype[2]]
        own = [(s, t, w) for s, t, w in edges if s in sources and t in targets]
        index[etype] = torch.tensor([[sources.index(s), targets.index(t)] for s, t, _ in own]).T
        weight[etype] = torch.tensor([float(w) for *_, w in own])
    return HeteroGraph(index, NAMES, weight)


def build(graph, seed=0, **options):
    options = {"channels": 4, "layers": 6, "norm": "none", "share_layers": False, **options}
    options = {"edge_signs": "respect", "edge_weight_dict": graph.edge_weight_dict, **options}
    torch.manual_seed(seed)
    return GSNN(graph.edge_index_dict, graph.node_names_dict, **options).double()


def wild(model, seed=0):
    """Every parameter of any sign, as training may leave them."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=rng, dtype=torch.float64))
        for block in model.ResBlocks:
            if isinstance(block.residual_weight, torch.nn.Parameter):
                block.residual_weight.abs_()
    return model


def jacobian(model, x):
    """(B, N_out, N_in)"""
    x = x.clone().requires_grad_()
    outputs = model(x)  # in eval mode a sample does not see the others
    return torch.stack([torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in outputs.T], 1)


def path_signs(edges=EDGES):
    """(input, output) -> the signs of all walks between them; 0 where one has an edge of unknown sign.

    A node is visited once for each sign, so that cycles end.
    """
    G = nx.DiGraph()
    for source, target, sign in edges:
        for state in (1, -1, 0):
            G.add_edge((source, state), (target, state * sign))
    return {
        (i, o): {s for s in (1, -1, 0) if (o, s) in nx.descendants(G, (i, 1))}
        for i in NAMES["input"]
        for o in NAMES["output"]
    }


OPTIONS = [
    {},
    {"nonlin": torch.nn.Tanh},
    {"nonlin": torch.nn.Identity, "share_layers": True},
    {"nonlin": torch.nn.ReLU, "norm_first": False, "bias": False},
    {"norm": "groupbatch"},
    {"norm": "batch", "nonlin": torch.nn.Softplus},
    {"residual": False, "channels": 3},
    {"checkpoint": True, "init": "normal"},
]


def test_the_walks_of_the_graph():
    found = path_signs()
    assert found["a", "u"] == {1} and found["b", "u"] == {1} and found["a", "v"] == {1}
    assert found["b", "w"] == {1} and found["c", "w"] == {1, 0} and found["c", "u"] == set()
    assert found["b", "v"] == {1, -1}


@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_follow_the_signs_of_all_paths(options):
    graph = signed_graph()
    model = wild(build(graph, **options))
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model(3 * x)  # running statistics
    model.eval()
    found = jacobian(model, x)
    if not model.checkpoint:
        by_func = torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(x).detach()
        torch.testing.assert_close(by_func, found, rtol=1e-8, atol=1e-10)
    seen = 0
    for (source, target), signs in path_signs().items():
        d = found[:, NAMES["output"].index(target), NAMES["input"].index(source)]
        if not signs:
            assert (d == 0).all()
        elif len(signs) == 1 and 0 not in signs:
            (sign,) = signs
            assert (d * sign >= 0).all()
            seen += bool((d != 0).any())
    assert seen >= 3


def test_a_free_network_does_not():
    graph, x = signed_graph(), torch.randn(40, 3, dtype=torch.float64)
    wrong = 0
    for seed in range(5):
        model = wild(build(graph, edge_signs="free"), seed).eval()
        wrong += int((jacobian(model, x)[:, 0, 0] < 0).sum())
    assert wrong > 20


def test_a_linear_chain_has_the_sign_of_its_path():
    for signs in np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T.tolist():
        edges = [("a", "f0", signs[0]), ("f0", "f1", signs[1]), ("f1", "u", signs[2])]
        edges += [("b", "f2", 1), ("c", "f3", 1), ("f2", "v", 1), ("f3", "w", 1)]
        model = build(signed_graph(edges), layers=3, nonlin=torch.nn.Identity)
        slope = float(jacobian(model, torch.zeros(1, 3, dtype=torch.float64))[0, 0, 0])
        assert abs(slope) > 1e-6 and np.sign(slope) == np.prod(signs)


def test_the_product_along_an_edge_has_its_sign():
    """Weights out of the source times weights into the target: + on equal channels where it activates."""
    model = wild(build(signed_graph()))
    polarity = np.array([1, -1, 1, -1])
    flat = signed_graph().edge_weight_dict[EDGE_TYPES[0]]
    for block in model.ResBlocks:
        for edge, sign in enumerate(flat.tolist()):
            out = block.lin_out.weights()[block.lin_out.indices[1] == edge].detach().numpy()
            into = block.lin_in.weights()[block.lin_in.indices[0] == edge].detach().numpy()
            product = np.outer(out * polarity, into * polarity)
            if sign == 0:
                assert (out != 0).all() and (into != 0).all()  # free
            else:
                assert (product * sign >= 0).all() and (into * polarity >= 0).all()


def test_a_weight_on_the_wrong_side_is_0_and_can_come_back():
    signs = torch.tensor([1.0, 1, 1, 1, -1, -1, 0, 0])
    values = torch.tensor([2.0, -1, -1, 0, 3, 0, -4, 4], requires_grad=True)
    slope = torch.tensor([5.0, 5, -5, 5, 5, -5, 5, -5])
    result = bound(values, signs)
    assert result.tolist() == [2, 0, 0, 0, 0, 0, -4, 4]
    (result * slope).sum().backward()
    assert values.grad is not None and torch.equal(values.grad, slope)


def test_initial_weights_keep_their_size_and_nothing_is_lost():
    graph = signed_graph()
    respecting, free = build(graph), build(graph, edge_signs="free")
    assert list(respecting.state_dict()) == list(free.state_dict())
    for mine, its in zip(respecting.ResBlocks, free.ResBlocks, strict=True):
        for name in ("lin_in", "lin_out"):
            a, b = getattr(mine, name), getattr(its, name)
            assert torch.equal(a.values.abs(), b.values.abs()) and torch.equal(a.weights(), a.values)
            assert b.signs is None and b.weights() is b.values
            a.reset_parameters()
            assert torch.equal(a.weights(), a.values)


def test_weights_of_the_graph_alone_change_nothing():
    graph, x = signed_graph(), torch.randn(5, 3, dtype=torch.float64)
    plain, weighted = (
        build(graph, edge_signs="free", edge_weight_dict=w) for w in (None, graph.edge_weight_dict)
    )
    assert torch.equal(plain(x), weighted(x))
    assert plain.graph.edge_weight_dict is None and weighted.graph == graph


def test_files_states_and_copies_carry_it(tmp_path):
    graph, x = signed_graph(), torch.randn(5, 3, dtype=torch.float64)
    model = wild(build(graph, norm="groupbatch")).eval()
    gsnn.save(model, tmp_path / "model.gsnn")
    loaded = gsnn.load(tmp_path / "model.gsnn")
    assert loaded.config == model.config and loaded.graph == graph
    assert torch.equal(loaded(x), model(x))
    other = build(graph, seed=1, norm="groupbatch").eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))


@pytest.mark.parametrize(
    "options", [{}, {"norm": "groupbatch"}, {"norm": "groupbatch", "share_layers": True}]
)
def test_side_by_side_is_each_alone(options):
    graph, x = signed_graph(), torch.randn(12, 3, dtype=torch.float64)
    models = [wild(build(graph, **options), seed) for seed in range(3)]
    side = side_by_side(models)
    together = side(x)
    together.square().sum().backward()
    for k, model in enumerate(models):
        alone = model(x)
        torch.testing.assert_close(together[:, k], alone, rtol=1e-10, atol=1e-12)
        alone.square().sum().backward()
        grads = torch.cat([param.grad.reshape(-1) for param in model.parameters()])
        torch.testing.assert_close(side.weights[k].grad, grads, rtol=1e-8, atol=1e-10)
    for model, member in zip(models, side.members(), strict=True):
        torch.testing.assert_close(member.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_grown_edges_are_bound(sign):
    graph, x = signed_graph(), torch.randn(5, 3, dtype=torch.float64)
    model = build(graph)
    new = model.grown([("f0", "f4")], signs=[sign])
    assert new.config == model.config and new.graph == graph.with_edges([("f0", "f4")], signs=[sign])
    torch.testing.assert_close(new(x), model(x), rtol=1e-12, atol=1e-14)
    flat = graph.edge_index_dict[EDGE_TYPES[0]].shape[1]
    for block in new.ResBlocks:
        of_edge = block.lin_out.indices[1] == flat
        assert torch.equal(block.lin_out.weights()[of_edge], block.lin_out.values[of_edge])
        assert (block.lin_out.values[of_edge] != 0).all()
        wanted = sign * torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
        assert torch.equal(block.lin_out.signs[of_edge], wanted)
    if sign:  # f4 -> w inhibits, so what a does to w through the new edge is against its sign
        d = jacobian(wild(new).eval(), torch.randn(20, 3, dtype=torch.float64))[:, 2, 0]
        assert (d * -sign >= 0).all() and (d != 0).any()
    assert model.grown([("f0", "f4")]).graph.edge_weight_dict[EDGE_TYPES[0]][-1] == 0


def test_pruning_looks_at_what_acts():
    model = wild(build(signed_graph(), share_layers=True))
    x = torch.randn(5, 3, dtype=torch.float64)
    before, block = model(x), model.ResBlocks[0]
    idle = sum(int((linear.weights() == 0).sum()) for linear in (block.lin_in, block.lin_out))
    assert idle > 10
    assert model.prune(1e-12) == idle
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)
    assert len(block.lin_in.signs) == len(block.lin_in.values)


def test_a_signed_truth_is_learnt_and_the_signs_hold():
    truth = random_signed_dag(12, 0.0, "linear", seed=2, n_inputs=3, n_outputs=3)
    x, x_test, y, y_test = truth.sample(500, 200, 0.1, seed=0)
    G = nx.DiGraph(truth.graph)
    nx.set_edge_attributes(G, {edge: {"weight": s} for edge, s in truth.signed_edges.items()})
    graph = HeteroGraph.from_networkx(G)
    assert graph.edge_weight_dict is not None
    torch.manual_seed(0)
    model = GSNN(
        graph.edge_index_dict, graph.node_names_dict, channels=6, layers=6, norm="none", share_layers=False,
        edge_signs="respect", edge_weight_dict=graph.edge_weight_dict,
    )  # fmt: skip
    gsnn.fit(model, x, y, epochs=40, lr=1e-2, standardize=True, verbose=False)
    error = np.square(gsnn.predict(model, x_test) - y_test).mean(0)
    best = np.square(y_test - x_test @ np.linalg.lstsq(x, y, rcond=None)[0]).mean(0)
    assert (1 - error / y_test.var(0)).mean() > 0.9 * (1 - best / y_test.var(0)).mean()
    d = jacobian(model.eval(), torch.randn(30, len(x[0])))
    walks = nx.DiGraph()
    for (source, target), sign in truth.signed_edges.items():
        for state in (1, -1):
            walks.add_edge((source, state), (target, state * sign))
    checked = 0
    for i, source in enumerate(truth.input_nodes):
        for o, target in enumerate(truth.output_nodes):
            signs = {s for s in (1, -1) if (target, s) in nx.descendants(walks, (source, 1))}
            if len(signs) == 1:
                checked += 1
                assert (d[:, o, i] * signs.pop() >= 0).all()
    assert checked


@pytest.mark.parametrize(
    "options, message",
    [
        ({"edge_signs": "soft"}, "edge_signs must be one of free, respect, got 'soft'"),
        ({"edge_weight_dict": None}, "needs edge_weight_dict, whose signs are those of the edges, got none"),
        ({"norm": "layer"}, "needs a norm that keeps .* one of none, batch, groupbatch, got 'layer'"),
        ({"norm": "softmax"}, "got 'softmax'"),
        ({"node_mlp": True}, "needs node_mlp=False"),
        ({"nonlin": torch.nn.GELU}, "needs a nonlin that never falls, got .*GELU"),
    ],
)
def test_what_cannot_be_promised_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(signed_graph(), **options)
