"""Laws that hold for all graphs, looked for by hypothesis over random ones."""

import copy
import pickle
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsnn.data.scaling import Scaling
from gsnn.data.tables import read_table
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.io import load, save
from gsnn.models.GSNN import GSNN
from gsnn.models.SideBySide import side_by_side
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.verify import verify
from gsnn.train import fit, predict

patient = [HealthCheck.too_slow]  # of a loaded machine
few = settings(max_examples=10, deadline=None, suppress_health_check=patient)
KINDS = ("input", "function", "output")


@st.composite
def graphs(draw, least=1, most=5):
    """A graph of a few nodes with any edges at all, self loops and cycles among them; at least one edge."""
    sizes = {
        "input": draw(st.integers(1, 3)),
        "function": draw(st.integers(least, most)),
        "output": draw(st.integers(1, 2)),
    }
    index = {}
    for etype in EDGE_TYPES:
        pairs = [(i, j) for i in range(sizes[etype[0]]) for j in range(sizes[etype[2]])]
        chosen = draw(st.lists(st.sampled_from(pairs), unique=True, min_size=int(etype == EDGE_TYPES[1])))
        index[etype] = torch.tensor(chosen, dtype=torch.long).reshape(-1, 2).T
    names = {kind: [f"{kind[0]}{k}" for k in range(n)] for kind, n in sizes.items()}
    return HeteroGraph(index, names, warn=False)


def model_of(graph, seed=0, **options):
    torch.manual_seed(seed)
    options = {"channels": 2, "layers": 3, "share_layers": False, **options}
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def data_of(graph, n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (len(graph.node_names_dict[kind]) for kind in ("input", "output"))
    return tuple(torch.randn(n, size, generator=generator, dtype=torch.float64) for size in sizes)


def named_edges(model):
    """Flat edges of a model as (kind and name, kind and name), in their order, and how often it came before.

    A self loop of the graph stands beside the self edge that the network adds.
    """
    names = model.graph.node_names_dict
    nodes = [(kind, name) for kind in ("function", "input", "output") for name in names[kind]]
    found: list[Any] = []
    for i, j in model.edge_index.T.tolist():
        found.append((nodes[i], nodes[j], sum(edge[:2] == (nodes[i], nodes[j]) for edge in found)))
    return found


def transported(source, target, renamed):
    """Give ``target`` the weights of ``source``, edge by edge and node by node, by their names.

    Edges that only ``target`` has keep the weights that they have. ``renamed`` gives the name in ``source``
    of a node of ``target``.
    """
    back = [((a[0], renamed(a)), (b[0], renamed(b)), k) for a, b, k in named_edges(target)]
    place = {edge: k for k, edge in enumerate(named_edges(source))}
    edges = [(k, place[edge]) for k, edge in enumerate(back) if edge in place]
    order = {name: k for k, name in enumerate(source.graph.node_names_dict["function"])}
    nodes = [order[renamed(("function", name))] for name in target.graph.node_names_dict["function"]]
    C = source.channels
    channels = [n * C + c for n in nodes for c in range(C)]
    mine, its = (list(part) for part in zip(*edges, strict=True))
    with torch.no_grad():
        for new, old in zip(target.ResBlocks, source.ResBlocks, strict=True):
            for side, edge_axis in (("lin_in", 0), ("lin_out", 1)):
                a, b = getattr(new, side), getattr(old, side)
                dense = torch.full((a.N, a.M), torch.nan, dtype=torch.float64)
                given = torch.zeros(b.N, b.M, dtype=torch.float64)
                given[tuple(b.indices)] = b.values
                if edge_axis == 0:
                    dense[mine] = given[its][:, channels]
                else:
                    dense[:, mine] = given[channels][:, its]
                found = dense[tuple(a.indices)]
                a.values.copy_(torch.where(found.isnan(), a.values, found))
            new.lin_in.bias.copy_(old.lin_in.bias[channels])
            new.lin_out.bias[mine] = old.lin_out.bias[its]
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(old.norm, name, None)
                if value is not None:
                    getattr(new.norm, name).copy_(value[nodes if len(value) == len(nodes) else channels])
            new.residual_weight.copy_(old.residual_weight)


@st.composite
def relabelled(draw):
    """A graph, the same with other names and all in another order, and what the nodes were called."""
    graph = draw(graphs())
    old = graph.node_names_dict
    order = {kind: draw(st.permutations(range(len(old[kind])))) for kind in KINDS}
    names = {kind: [f"{kind} {k}" for k in range(len(old[kind]))] for kind in KINDS}
    before = {
        (kind, names[kind][new]): old[kind][was] for kind in KINDS for new, was in enumerate(order[kind])
    }
    place = {kind: {was: new for new, was in enumerate(order[kind])} for kind in KINDS}
    index = {}
    for etype in EDGE_TYPES:
        pairs = graph.edge_index_dict[etype].T.tolist()
        pairs = [(place[etype[0]][i], place[etype[2]][j]) for i, j in draw(st.permutations(pairs))]
        index[etype] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return graph, HeteroGraph(index, names, warn=False), before, order


@few
@given(relabelled(), st.sampled_from(["layer", "groupbatch", "batch", "softmax", "none"]))
def test_other_names_and_another_order_permute_outputs_and_nothing_else(case, norm):
    graph, other, before, order = case
    model, its = model_of(graph, norm=norm), model_of(other, seed=1, norm=norm)
    transported(model, its, before.__getitem__)
    x, y = data_of(graph)
    its_x, its_y = x[:, order["input"]], y[:, order["output"]]
    for training in (True, False):
        model.train(training), its.train(training)
        expected = model(x)[:, order["output"]]
        torch.testing.assert_close(its(its_x), expected, rtol=1e-9, atol=1e-9)
    for kind in (MagnitudeEdgeInferer, FirstOrderEdgeInferer):
        tables = []
        for network, inputs, targets in ((model, x, y), (its, its_x, its_y)):
            inferer = kind(network, network.graph)
            inferer.fit([(inputs, targets)], verbose=False)
            tables.append(inferer.evaluate())
        for end in ("src_func", "dst_func"):
            tables[1][end] = [before["function", name] for name in tables[1][end]]
        same_tables(*tables)


def same_tables(*tables, rtol=1e-6):
    """The same values for each pair of names, whatever the order of rows that tie."""
    ends = ["src_func", "dst_func"]
    found = [t.drop(columns=["src_idx", "dst_idx"]).set_index(ends).sort_index() for t in tables]
    assert len({len(table) for table in found}) == 1
    if len(found[0]):
        for other in found[1:]:
            pd.testing.assert_frame_equal(other, found[0], rtol=rtol, atol=1e-9, check_dtype=False)


@st.composite
def cut(draw, n=24):
    """An order of n samples, and how they are cut into batches."""
    order = draw(st.permutations(range(n)))
    ends = sorted(draw(st.sets(st.integers(1, n - 1), max_size=5)))
    return [order[a:b] for a, b in zip([0, *ends], [*ends, n], strict=True)]


@few
@given(graphs(least=2), cut(), st.sampled_from([MagnitudeEdgeInferer, FirstOrderEdgeInferer]))
def test_cuts_and_the_order_of_samples_do_not_matter(graph, batches, kind):
    model = model_of(graph, norm="groupbatch").eval()
    x, y = data_of(graph)
    whole, parts = kind(model, graph), kind(model, graph)
    whole.fit([(x, y)], verbose=False)
    assert parts.fit([(x[rows], y[rows]) for rows in batches], verbose=False) == 24
    same_tables(whole.evaluate(), parts.evaluate())
    sizes = {len(rows) for rows in batches}
    for size in sizes:
        np.testing.assert_allclose(
            predict(model, x, batch_size=size), predict(model, x), rtol=1e-9, atol=1e-12
        )


@few
@given(graphs(least=2), st.floats(1e-6, 1e6), st.sampled_from([MagnitudeEdgeInferer, FirstOrderEdgeInferer]))
def test_the_scale_of_the_loss_changes_no_rank_and_no_p_value(graph, scale, kind):
    model, (x, y) = model_of(graph), data_of(graph)
    tables = []
    for factor in (1.0, scale):

        def crit(yhat, y, factor=factor):
            return factor * (yhat - y).square().mean()

        inferer = kind(model, graph)
        inferer.fit([(x, y)], crit, verbose=False)
        tables.append(inferer.evaluate())
    if kind is FirstOrderEdgeInferer:  # its score is a derivative of the loss
        tables[1]["score"] /= scale
    columns = ["src_func", "dst_func", "src_idx", "dst_idx", tables[0].columns[4], "p_value", "q_value"]
    same_tables(*(table[columns] for table in tables), rtol=1e-5)


@few
@given(graphs(least=2), st.integers(-20, 20))
def test_the_unit_of_y_changes_no_rank_and_no_p_value(graph, power):
    """By a power of two, which is exact: the two trainings are then the same to the bit."""
    from gsnn.data.dataset import RowDataset

    x, y = data_of(graph)
    tables = []
    for unit in (1.0, 2.0**power):
        model = model_of(graph)
        fit(model, x, unit * y, epochs=2, standardize=True, seed=0, verbose=False)
        inferer = MagnitudeEdgeInferer(model, graph)
        inferer.fit([RowDataset(model, x, unit * y)[:]], verbose=False)
        tables.append(inferer.evaluate())
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_the_unit_of_y_changes_no_p_value_of_verify():
    index = {EDGE_TYPES[0]: [[0], [1]], EDGE_TYPES[1]: [[0, 1], [0, 2]], EDGE_TYPES[2]: [[1, 2], [0, 1]]}
    names = {"input": ["a", "b"], "function": ["f", "g", "h"], "output": ["y", "z"]}
    graph = HeteroGraph({e: torch.tensor(i) for e, i in index.items()}, names)
    x, y = data_of(graph, 60)
    tables = []
    for unit in (1.0, 1024.0):
        model = model_of(graph).float()
        fit(model, x, unit * y, epochs=3, standardize=True, seed=0, verbose=False)
        tables.append(verify(model, graph, [("f", "h"), ("h", "g")], x, unit * y))
    for column in ("p_value", "q_value", "gain", "verified"):
        assert tables[0][column].tolist() == tables[1][column].tolist(), column


@few
@given(graphs(least=2), st.sampled_from(["layer", "groupbatch", "none"]))
def test_an_edge_that_nobody_reads_changes_nothing(graph, norm):
    """Into a node from which no output can be reached, from any other."""
    names = {**dict(graph.node_names_dict), "function": [*graph.node_names_dict["function"], "sink"]}
    index = dict(graph.edge_index_dict)
    without = HeteroGraph(index, names, warn=False)
    sink = len(names["function"]) - 1
    more = torch.tensor([[node, sink] for node in range(sink)]).T
    index[EDGE_TYPES[0]] = torch.cat([index[EDGE_TYPES[0]], more], 1)
    larger = HeteroGraph(index, names, warn=False)
    model, its = model_of(without, norm=norm), model_of(larger, seed=1, norm=norm)
    transported(model, its, lambda node: node[1])
    x, y = data_of(graph)
    torch.testing.assert_close(its(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eval()(x), its.eval()(x), rtol=1e-12, atol=1e-12)
    tables = []
    for network, data in ((model, without), (its, larger)):
        inferer = MagnitudeEdgeInferer(network, data)
        inferer.fit([(x, y)], verbose=False)
        table = inferer.evaluate()
        table = table[(table["dst_func"] != "sink") & (table["src_func"] != "sink")]
        tables.append(table.drop(columns="q_value"))
    same_tables(*tables)


@few
@given(graphs(), st.integers(1, 4), st.sampled_from(["layer", "softmax", "none"]))
def test_without_a_path_of_the_right_length_the_jacobian_is_zero(graph, layers, norm):
    model, x = model_of(graph, layers=layers, norm=norm), data_of(graph, 3)[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).abs().sum(1)  # (N_out, N_in)
    into, out = (graph.edge_index_dict[e] for e in (EDGE_TYPES[1], EDGE_TYPES[2]))
    between = torch.eye(len(graph.node_names_dict["function"]), dtype=torch.float64)  # self edges
    between[tuple(graph.edge_index_dict[EDGE_TYPES[0]])] = 1
    # A value that enters a function node needs a block to leave it: L blocks are L - 1 hops between nodes.
    hops = torch.linalg.matrix_power(between, layers - 1)
    reached = torch.zeros(jacobian.shape, dtype=torch.bool)
    for i, f in into.T.tolist():
        for g, o in out.T.tolist():
            reached[o, i] |= bool(hops[f, g] > 0)
    assert bool((jacobian[~reached] == 0).all())


@few
@given(st.lists(graphs(), min_size=1, max_size=3), st.sampled_from(["layer", "groupbatch", "batch", "none"]))
def test_side_by_side_equals_alone(several, norm):
    models = [model_of(graph, seed, norm=norm) for seed, graph in enumerate(several)]
    batches = [data_of(model.graph, 5 + 3 * k)[0] for k, model in enumerate(models)]
    together = side_by_side(models)
    outputs = together(batches)
    outputs = outputs if isinstance(outputs, list) else list(outputs.unbind(1))
    sum(output.square().sum() for output in outputs).backward()
    for k, (model, x, output) in enumerate(zip(models, batches, outputs, strict=True)):
        alone = model(x)
        torch.testing.assert_close(output, alone, rtol=1e-10, atol=1e-12)
        alone.square().sum().backward()
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
        )
        torch.testing.assert_close(together.weights[k].grad, flat, rtol=1e-8, atol=1e-10)


NAMES = (
    st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=6)
    .map(lambda name: unicodedata.normalize("NFC", name).strip())
    # What the reader says that it changes or passes over: blanks at the ends, other forms, comments.
    .filter(lambda name: name and name == unicodedata.normalize("NFC", name).strip() and name[0] != "#")
)


SEVERAL = st.lists(NAMES, unique=True, min_size=2, max_size=4)


@st.composite
def named_graphs(draw):
    """A graph with weights whose nodes have any names that a table can hold, each fed or feeding."""
    names = draw(st.lists(NAMES, unique=True, min_size=4, max_size=6))
    kinds = {"input": names[:1], "function": names[1:-1], "output": names[-1:]}
    n = len(kinds["function"])
    index = {
        EDGE_TYPES[0]: torch.tensor([[k, (k + 1) % n] for k in range(n)]).T,
        EDGE_TYPES[1]: torch.tensor([[0], [0]]),
        EDGE_TYPES[2]: torch.tensor([[n - 1], [0]]),
    }
    signs = draw(st.lists(st.sampled_from([-1.0, 0.5, 1.0]), min_size=n + 2, max_size=n + 2))
    weight = {e: torch.tensor([signs.pop() for _ in range(i.shape[1])]) for e, i in index.items()}
    return HeteroGraph(index, kinds, weight, warn=False)


@few
@given(named_graphs())
def test_round_trips_of_graphs_are_identity(graph):
    assert pickle.loads(pickle.dumps(graph)) == graph == copy.deepcopy(graph)
    assert HeteroGraph.from_edge_table(graph.to_edge_table(), warn=False) == graph
    assert HeteroGraph.from_networkx(graph.to_networkx(), warn=False) == graph
    rows = [(name, kind) for kind in KINDS for name in graph.node_names_dict[kind]]
    with tempfile.TemporaryDirectory() as name:
        for ending, separator in ((".tsv", "\t"), (".csv", ",")):
            edges, nodes = (Path(name) / f"{part}{ending}" for part in ("edges", "nodes"))
            graph.to_edge_table().to_csv(edges, sep=separator, index=False)
            pd.DataFrame(rows, columns=["node", "type"]).to_csv(nodes, sep=separator, index=False)
            assert HeteroGraph.from_tsv(edges, nodes, warn=False) == graph


@few
@given(
    st.lists(NAMES, unique=True, min_size=2, max_size=4),
    st.lists(NAMES, unique=True, min_size=1, max_size=4),
    st.data(),
)
def test_round_trips_of_tables_are_identity(columns, samples, data):
    value = st.floats(allow_infinity=False, width=64)
    rows = [[data.draw(value) for _ in columns] for _ in samples]
    table = pd.DataFrame(rows, pd.Index(samples, name="sample"), pd.Index(columns))
    with tempfile.TemporaryDirectory() as name:
        for ending, separator in ((".tsv", "\t"), (".csv", ",")):
            table.to_csv(Path(name) / f"x{ending}", sep=separator)
            pd.testing.assert_frame_equal(read_table(Path(name) / f"x{ending}"), table, check_exact=True)


@few
@given(
    named_graphs(), st.sampled_from(["layer", "groupbatch"]), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_round_trips_of_models_are_identity(graph, norm, dtype):
    model = model_of(graph, norm=norm).to(dtype)
    x, y = (part.to(dtype) for part in data_of(graph))
    model(x)  # running statistics of its own
    model.scaling = Scaling.of(x.double(), y.double())
    expected = predict(model, x)
    with tempfile.TemporaryDirectory() as name:
        save(model, Path(name) / "m")
        loaded = load(Path(name) / "m")
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.graph == model.graph and other.scaling == model.scaling
        states = model.state_dict(), other.state_dict()
        assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
        np.testing.assert_array_equal(predict(other, x), expected)
    assert Scaling.from_dict(model.scaling.to_dict()) == model.scaling
