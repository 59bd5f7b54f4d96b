"""The smallest and oddest legal graphs, batches and types: everything is finite, or says what is wrong."""

import inspect
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from graph_zoo import ZOO, zoo_data, zoo_graph
from public_registry import public_names
from public_world import World

from gsnn import FirstOrderEdgeInferer, MagnitudeEdgeInferer, MagnitudeEdgeKGE, MagnitudeEdgeRegressor
from gsnn.explain import subgraph
from gsnn.graph import HeteroGraph
from gsnn.io import load, save
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS, NodeNorm
from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer
from gsnn.models.ResBlock import NodeMLP
from gsnn.models.SideBySide import SideBySide, side_by_side
from gsnn.models.SparseLinear import SparseLinear
from gsnn.optim.complete import complete
from gsnn.optim.edge_scores import edge_scores
from gsnn.optim.verify import verify
from gsnn.simulate.simulate import simulate, simulate_sde
from gsnn.train import fit, fit_side_by_side, predict

matplotlib.use("Agg")

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def new_model(graph, seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    options = {"channels": 2, "layers": 3, **options}
    return GSNN(graph.edge_index_dict, graph.node_names_dict, **options).to(dtype)


def assert_finite(*values):
    for value in values:
        assert bool(
            torch.as_tensor(np.asarray(value.detach().double() if torch.is_tensor(value) else value))
            .isfinite()
            .all()
        )


def assert_model_finite(model):
    for name, value in model.state_dict().items():
        assert bool(value.isfinite().all()), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


# Modules: one entry each, and a test that none is missing.


def gsnn(folder, seed, dtype):
    model = World(folder).new_model(seed, norm="groupbatch").to(dtype)
    return model, lambda x: model(x)


def pair(folder, seed, dtype):
    world = World(folder)
    both = SideBySide(
        [world.new_model(seed, norm="groupbatch").to(dtype), world.new_model(9, norm="groupbatch").to(dtype)]
    )
    return both, lambda x: both(x)


def sparse(folder, seed, dtype):
    torch.manual_seed(seed)
    linear = SparseLinear(torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2]]), (3, 4)).to(dtype)
    return linear, lambda x: linear(x)[..., 0]


def columns(x):
    """(B, 3) as channels (N, C, B) of six nodes."""
    return torch.stack([x.t() * (k + 1) for k in range(6)])


def node_mlp(folder, seed, dtype):
    torch.manual_seed(seed)
    mlp = NodeMLP(3, 4, torch.nn.ELU, 0.0).to(dtype)
    return mlp, lambda x: mlp(columns(x)).flatten(0, 1).t()


def node_norm(folder, seed, dtype):
    torch.manual_seed(seed)
    norm = NodeNorm("groupbatch", 6, 3).to(dtype)
    with torch.no_grad():
        assert norm.weight is not None
        norm.weight.normal_()
    plan = World(folder).plan
    return norm, lambda x: norm(columns(x), plan).flatten(0, 1).t()


def res_block(folder, seed, dtype):
    model = World(folder).new_model(seed).to(dtype)
    block, plan = model.ResBlocks[0], model.plan
    padding = torch.ones(plan.n_rows, 1, dtype=torch.bool)
    padding[plan.row_of_edge] = False  # rows that no edge has are 0

    def run(x):
        state = x[:, :1].t().expand(plan.n_rows, -1).masked_fill(padding, 0.0)
        return block(state.contiguous(), plan).index_select(0, plan.row_of_edge).t()

    return block, run


def context_gate(folder, seed, dtype):
    from gsnn.models.context import ContextGate

    torch.manual_seed(seed)
    gate, plan = ContextGate([0, 2], 6).to(dtype), World(folder).plan
    with torch.no_grad():
        gate.linear.weight.normal_()
    return gate, lambda x: gate(x, plan)[:, 0].t()


MODULES = {
    "ContextGate": context_gate,
    "GSNN": gsnn,
    "SideBySide": pair,
    "SparseLinear": sparse,
    "NodeMLP": node_mlp,
    "NodeNorm": node_norm,
    "ResBlock": res_block,
}
#: Modules that take no batch of their own: they go with a model, and stand in tests further down.
GO_WITH_A_MODEL = {"PathwayLatentRegularizer", "MagnitudeEdgeRegressor", "MagnitudeEdgeKGE"}
BASE_CLASSES = {"Growing"}


def test_no_module_is_missing():
    modules = {
        name.rpartition(".")[2]
        for name, value in public_names().items()
        if inspect.isclass(value) and issubclass(value, torch.nn.Module)
    }
    assert modules == set(MODULES) | GO_WITH_A_MODEL | BASE_CLASSES


def inputs(n, dtype, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples", [0, 1, 5])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sizes_types_and_modes(name, dtype, samples, training, tmp_path):
    module, run = MODULES[name](tmp_path, 0, dtype)
    assert module.train(training) is module and {m.training for m in module.modules()} == {training}
    x = inputs(samples, dtype).requires_grad_()
    output = run(x)
    assert output.dtype == dtype and output.shape[0] == samples
    output.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert_finite(output.float(), x.grad.float())
    assert_model_finite(module)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_state_dict_is_all_there_is(name, training, tmp_path):
    module, run = MODULES[name](tmp_path, 0, torch.float64)
    other, run_other = MODULES[name](tmp_path, 1, torch.float64)
    x = inputs(7, torch.float64)
    for each in (run, run_other):
        for _ in range(2):  # in training mode, so that running statistics differ from a new model's
            each(x * 2)
    assert not torch.equal(run(x), run_other(x))
    missing = other.load_state_dict(module.state_dict())
    assert missing == ([], [])
    module.train(training), other.train(training)
    torch.testing.assert_close(run_other(x), run(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_under_autocast_types_and_values_are_the_models(name, tmp_path):
    module, run = MODULES[name](tmp_path, 0, torch.float32)
    module.eval()
    x = inputs(5, torch.float32)
    plain = run(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(x)
    if name in ("GSNN", "SideBySide"):  # documented to keep their precision
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, plain, rtol=0, atol=0)
    else:
        torch.testing.assert_close(found.float(), plain, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", MODULES)
def test_vmap_is_a_loop(name, tmp_path):
    module, run = MODULES[name](tmp_path, 0, torch.float64)
    module.eval()
    x = torch.stack([inputs(4, torch.float64, seed) for seed in range(3)])
    torch.testing.assert_close(torch.func.vmap(run)(x), torch.stack([run(part) for part in x]))


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"GSNN"}))  # which tests/test_compile.py is about
def test_compiled_they_compute_the_same_without_a_graph_break(name, tmp_path):
    if name == "SideBySide" and torch.__version__.startswith("2.4."):
        pytest.skip("the compiler of PyTorch 2.4 stops at a context manager")
    module, run = MODULES[name](tmp_path, 0, torch.float32)
    module.eval()
    x = inputs(5, torch.float32)
    expected = run(x)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler itself
        found = torch.compile(run, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def regularizer(world, seed):
    torch.manual_seed(seed)
    made = PathwayLatentRegularizer(world.model, [[1.0, 1, 1, 0, 0, 0]], phi="learned")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()

    def loss():
        world.model(world.x)
        return made.loss(world.model)[0]

    return made, loss


def online(world, seed):
    torch.manual_seed(seed)
    made = MagnitudeEdgeRegressor(world.model, world.graph)
    for x, y in world.batches[seed:]:
        world.step(made, x, y)
    return made, made.scores


def embedding(world, seed):
    torch.manual_seed(seed)
    made = MagnitudeEdgeKGE(world.mei, embedding_dim=4, walks_per_node=2, walk_length=3)
    made.fit(1, seed=seed, verbose=False)
    return made, lambda: torch.tensor(made.evaluate()["score"].to_numpy())


WITH_A_MODEL = {
    "PathwayLatentRegularizer": regularizer,
    "MagnitudeEdgeRegressor": online,
    "MagnitudeEdgeKGE": embedding,
}


def test_no_module_that_goes_with_a_model_is_missing():
    assert set(WITH_A_MODEL) == GO_WITH_A_MODEL


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_a_state_dict_is_all_there_is_of_what_goes_with_a_model(name, tmp_path):
    module, value = WITH_A_MODEL[name](World(tmp_path), 0)
    other, value_of_other = WITH_A_MODEL[name](World(tmp_path), 1)
    assert not torch.equal(value(), value_of_other())
    assert other.load_state_dict(module.state_dict()) == ([], [])
    assert torch.equal(value(), value_of_other())


# Graphs.


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("norm", NORMS)
def test_networks_on_odd_graphs_learn_with_finite_numbers(name, norm, tmp_path):
    graph = zoo_graph(name)
    x, y = zoo_data(graph)
    for channels in (1, 2):
        model = new_model(graph, norm=norm, channels=channels, dropout=0.2)
        history = fit(model, x, y, epochs=2, batch_size=5, seed=0, verbose=False, standardize=True)
        assert_finite(history.train_loss)
        assert_model_finite(model)
        save(model, tmp_path / "m")
        assert_finite(predict(model, x))
        np.testing.assert_array_equal(predict(load(tmp_path / "m"), x), predict(model, x))


def loader(x, y):
    return [(x[:5], y[:5]), (x[5:], y[5:])]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("channels", [1, 2])
def test_inferers_on_odd_graphs(name, channels):
    """Every pair has one row, and a score that cannot be had is NaN, never infinite."""
    graph = zoo_graph(name)
    x, y = zoo_data(graph)
    model = new_model(graph, channels=channels, norm="none")
    n = len(graph.node_names_dict["function"])
    mei, foi = MagnitudeEdgeInferer(model, graph), FirstOrderEdgeInferer(model, graph)
    for inferer in (mei, foi):
        inferer.fit(loader(x, y), verbose=False)
    regressor = MagnitudeEdgeRegressor(model, graph)
    for part_x, part_y in loader(x, y):
        regressor.pre_forward()
        loss = torch.nn.functional.mse_loss(model(part_x), part_y)
        regressor.arm_retained_grads()
        loss.backward()
        assert_finite(list(regressor.aux_step().values()))
    tables = [mei.evaluate(), mei.evaluate(score="partial"), foi.evaluate(), regressor.evaluate()]
    if n > 1:
        try:
            kge = MagnitudeEdgeKGE(
                mei, embedding_dim=4, mining_strategy="topk_per_target", top_k_per_target=1
            )
            kge.fit(2, verbose=False)
        except ValueError as error:  # nothing to walk on
            assert "pos_heads must hold at least one edge of positive weight" in str(error)
        else:
            tables.append(kge.evaluate())
    for table in tables:
        assert len(table) == n * (n - 1)
        assert not np.isinf(table.select_dtypes(float)).any().any()
        measured = table["p_value"].dropna()
        assert measured.between(0, 1).all()
    for scores in edge_scores(model, graph, loader(x, y), verbose=False).values():
        assert scores.shape == (n, n) and not np.isinf(scores).any()


QUICK = {"channels": 2, "layers": 3, "epochs": 1, "base_steps": 2, "stage_steps": 2, "batch_size": 6}


@pytest.mark.parametrize("name", ZOO)
def test_growing_explaining_and_standing_side_by_side_on_odd_graphs(name):
    graph = zoo_graph(name)
    x, y = zoo_data(graph)
    model = new_model(graph, norm="groupbatch")
    pairs = [
        (a, b)
        for a in graph.node_names_dict["function"]
        for b in graph.node_names_dict["function"]
        if a != b and (a, b) not in MagnitudeEdgeInferer(model, graph).edges
    ]
    histories = fit_side_by_side(
        [model, new_model(graph, 1, norm="groupbatch")], [(x, y)] * 2, seeds=[0, 1], epochs=2, verbose=False
    )
    assert_finite(*(h.train_loss for h in histories))
    outputs = side_by_side([model.eval()])(x)
    torch.testing.assert_close(outputs[:, 0], model(x), rtol=1e-5, atol=1e-5)
    regularizer = PathwayLatentRegularizer(model, np.ones((1, len(graph.node_names_dict["function"]))))
    model.train()(x)
    assert_finite(*regularizer.loss(model))
    regularizer.disable(model)
    model.eval()
    if pairs:
        larger = model.grown(pairs[:1])
        torch.testing.assert_close(larger(x), model(x), rtol=1e-5, atol=1e-5)
        found = complete(graph, x, y, 1, stages=1, verbose=False, settings=QUICK)
        assert len(found.edges) == 1
        if name in ("cycle", "nothing feeds an output"):  # it settles the network for a second
            assert len(verify(model, graph, pairs[:1], torch.cat([x, -x]), torch.cat([y, -y]))) == 1
    else:
        with pytest.raises(ValueError, match="at least one pair of function nodes that the graph lacks"):
            complete(graph, x, y, 1, stages=1, verbose=False, settings=QUICK)
    try:
        part = subgraph(model, x, 0, size=2, n_random=1)
    except ValueError as error:
        assert "cannot be reached" in str(error) or "the same for all samples" in str(error)
    else:
        assert isinstance(part, HeteroGraph) and len(part.edges) <= 2


@pytest.mark.parametrize("name", ZOO)
def test_conversions_and_simulation_of_odd_graphs(name):
    graph = zoo_graph(name)
    names = graph.node_names_dict
    network = graph.to_networkx()
    assert HeteroGraph.from_networkx(network, warn=False) == graph
    cyclic = name in ("self loop", "cycle", "two nodes in a cycle", "complete")
    ends = list(names["input"]), list(names["output"])
    if cyclic:
        with pytest.raises(ValueError, match="cycle"):
            simulate(network, 5, 2, *ends, seed=0)
        drawn = simulate_sde(network, 5, 2, *ends, seed=0, t_final=1.0)
    else:
        drawn = simulate(network, 5, 2, *ends, seed=0)
    assert [part.shape for part in drawn] == [
        (5, len(ends[0])),
        (2, len(ends[0])),
        (5, len(ends[1])),
        (2, len(ends[1])),
    ]
    assert_finite(*drawn)
