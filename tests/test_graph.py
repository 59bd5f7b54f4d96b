"""The graph container: its checks, its immutability, and its round trips."""

import copy
import os
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any, cast

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.graph import EDGE_TYPES, GraphWarning, HeteroGraph, as_graph

FF, IF, FO = EDGE_TYPES
DATA = Path(os.environ.get("GSNN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def parts(weighted=False):
    """Two inputs, four functions (d isolated, a <-> b a cycle), two outputs."""
    index = {
        FF: torch.tensor([[1, 0, 1], [2, 1, 0]]),
        IF: torch.tensor([[1, 0], [0, 0]]),
        FO: torch.tensor([[2, 1, 2], [1, 0, 0]]),
    }
    names = {"input": ["i", "j"], "function": ["a", "b", "c", "d"], "output": ["x", "y"]}
    weight = {
        FF: torch.tensor([1.0, -1.0, 0.1]),
        IF: torch.tensor([0.5, 2.0]),
        FO: torch.tensor([1.0, 1.0, 3.0]),
    }
    return index, names, weight if weighted else None


@st.composite
def graphs(draw):
    counts = {kind: draw(st.integers(1, 6)) for kind in ("input", "function", "output")}
    index, weight = {}, {}
    dtype = draw(st.sampled_from([torch.float32, torch.float64, None]))
    for etype in EDGE_TYPES:
        n_source, n_target = counts[etype[0]], counts[etype[2]]
        pair = st.tuples(st.integers(0, n_source - 1), st.integers(0, n_target - 1))
        pairs = draw(st.lists(pair, unique=True, max_size=12))
        index[etype] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
        if dtype is not None:
            numbers = st.floats(
                allow_nan=False, allow_infinity=False, width=32 if dtype == torch.float32 else 64
            )
            values = draw(st.lists(numbers, min_size=len(pairs), max_size=len(pairs)))
            weight[etype] = torch.tensor(values, dtype=dtype)
    names = {kind: [f"{kind[0]}{i}" for i in draw(st.permutations(range(n)))] for kind, n in counts.items()}
    if not any(tensor.shape[1] for tensor in index.values()):
        dtype = None
    return HeteroGraph(index, names, None if dtype is None else weight, warn=False)


def by_name(graph):
    """The edges of each type as (source, target, weight) in order, from the public dictionaries."""
    found = {}
    for etype, index in graph.edge_index_dict.items():
        sources, targets = graph.node_names_dict[etype[0]], graph.node_names_dict[etype[2]]
        weight = graph.edge_weight_dict
        values = [None] * index.shape[1] if weight is None else weight[etype].tolist()
        ends = zip(index[0].tolist(), index[1].tolist(), values, strict=True)
        found[etype] = [(sources[i], targets[j], w) for i, j, w in ends]
    return found


def node_lists(graph):
    return {f"{kind}_nodes": list(names) for kind, names in graph.node_names_dict.items()}


# -- what it holds ---------------------------------------------------------------------------------------


def test_holds_what_it_was_given_in_the_same_order():
    index, names, weight = parts(weighted=True)
    graph = HeteroGraph(index, names, weight)
    assert list(graph.edge_index_dict) == list(EDGE_TYPES)
    assert graph.edge_weight_dict is not None
    for etype in EDGE_TYPES:
        assert torch.equal(graph.edge_index_dict[etype], index[etype])
        assert torch.equal(graph.edge_weight_dict[etype], weight[etype])
    assert graph.node_names_dict == names
    assert isinstance(graph.node_names_dict["input"], list)
    assert HeteroGraph(index, names).edge_weight_dict is None


def test_repr_counts_nodes_and_edges():
    text = repr(HeteroGraph(*parts()))
    assert text == (
        "HeteroGraph(nodes: 2 input, 4 function, 2 output; edges: 3 function->function, 2 input->function, "
        "3 function->output; no weights)"
    )
    assert "weighted" in repr(HeteroGraph(*parts(weighted=True)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_is_taken_and_int64_is_given(dtype):
    index, names, _ = parts()
    graph = HeteroGraph({etype: tensor.to(dtype) for etype, tensor in index.items()}, names)
    assert all(tensor.dtype == torch.int64 for tensor in graph.edge_index_dict.values())
    assert graph == HeteroGraph(index, names)


def test_numpy_arrays_and_int_weights_are_taken():
    index, names, _ = parts()
    ones = {etype: np.ones(tensor.shape[1], dtype=int) for etype, tensor in index.items()}
    graph = HeteroGraph({etype: tensor.numpy() for etype, tensor in index.items()}, names, ones)
    assert graph.edge_weight_dict is not None
    assert graph.edge_weight_dict[FF].dtype == torch.float32
    assert graph.edge_weight_dict[FF].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore::gsnn.graph.GraphWarning")
def test_no_edge_between_functions_self_edges_and_isolated_nodes_are_legal():
    index, names, _ = parts()
    assert HeteroGraph({**index, FF: torch.empty(2, 0, dtype=torch.int64)}, names).edge_index_dict[
        FF
    ].shape == (2, 0)
    assert HeteroGraph({**index, FF: torch.tensor([[0, 3], [0, 3]])}, names) is not None


def test_equality_sees_names_order_edges_and_weights():
    index, names, weight = parts(weighted=True)
    graph = HeteroGraph(index, names, weight)
    assert graph == HeteroGraph(index, names, {e: w.double() for e, w in weight.items()} | {FF: weight[FF]})
    assert hash(graph) == hash(HeteroGraph(*parts(weighted=True)))
    assert graph != HeteroGraph(index, names)
    assert graph != HeteroGraph(index, names, {**weight, IF: torch.tensor([0.5, 2.5])})
    assert graph != HeteroGraph({**index, IF: index[IF].flip(1)}, names, weight)
    assert graph != HeteroGraph(index, {**names, "output": ["y", "x"]}, weight)
    assert graph != "a graph"


# -- immutable -------------------------------------------------------------------------------------------


def test_cannot_be_changed_from_outside():
    index, names, weight = parts(weighted=True)
    graph, original = HeteroGraph(index, names, weight), HeteroGraph(*parts(weighted=True))
    index[FF][0, 0] = 3
    weight[FF][0] = 9
    names["input"].append("k")
    graph.edge_index_dict[FF][0, 0] = 3
    assert graph.edge_weight_dict is not None
    graph.edge_weight_dict[FF].zero_()
    assert graph == original
    changed: Any = graph
    with pytest.raises(AttributeError, match="a HeteroGraph cannot be changed once built"):
        changed.edge_index_dict = {}
    with pytest.raises(AttributeError, match="a HeteroGraph cannot be changed once built"):
        del graph._edge_index
    with pytest.raises(TypeError):
        changed.edge_index_dict[FF] = index[FF]
    with pytest.raises(TypeError):
        changed.node_names_dict["input"] = []


@pytest.mark.parametrize(
    "change",
    [
        lambda names: names.append("z"),
        lambda names: names.extend(["z"]),
        lambda names: names.sort(),
        lambda names: names.pop(),
        lambda names: names.__setitem__(0, "z"),
        lambda names: names.__delitem__(0),
        lambda names: names.__iadd__(["z"]),
    ],
)
def test_names_cannot_be_changed(change):
    names = HeteroGraph(*parts()).node_names_dict["function"]
    with pytest.raises(TypeError, match="the node names of a HeteroGraph cannot be changed"):
        change(names)
    assert names == ["a", "b", "c", "d"]


@pytest.mark.parametrize("weighted", [False, True])
def test_copies_and_pickles(weighted):
    graph = HeteroGraph(*parts(weighted))
    for other in (copy.copy(graph), copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert other == graph
    assert copy.deepcopy(graph.node_names_dict["input"]) == ["i", "j"]


# -- what it refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_copies_of_the_dictionaries_are_plain_and_can_be_edited(weighted):
    graph = HeteroGraph(*parts(weighted))
    before = copy.deepcopy(graph)
    names = ["node_names_dict", "edge_index_dict", *(["edge_weight_dict"] if weighted else [])]
    for name in names:
        mine = getattr(graph, name)
        for made in (copy.deepcopy(mine), copy.copy(mine), pickle.loads(pickle.dumps(mine)), mine.copy()):
            assert type(made) is dict and list(made) == list(mine)
            for key, value in made.items():
                assert type(value) in (list, torch.Tensor)
                if isinstance(value, list):
                    value.append("new")
                else:
                    value += 1
                made[key] = value
        assert dict(mine).keys() == mine.keys()
        dict(mine)[next(iter(mine))] = None
        with pytest.raises(TypeError, match=rf"{name} of a HeteroGraph cannot be changed; edit"):
            mine[next(iter(mine))] = None
        with pytest.raises(TypeError, match="graph.with_edges"):
            del mine[next(iter(mine))]
    assert graph == before
    edited: Any = copy.deepcopy(graph.edge_index_dict)
    edited[EDGE_TYPES[0]] = torch.zeros(2, 0, dtype=torch.long)
    assert HeteroGraph(edited, copy.deepcopy(graph.node_names_dict), warn=False).edge_index_dict[
        EDGE_TYPES[0]
    ].shape == (2, 0)


def edge_names(graph):
    return {
        etype: [
            (graph.node_names_dict[etype[0]][u], graph.node_names_dict[etype[2]][v])
            for u, v in index.t().tolist()
        ]
        for etype, index in graph.edge_index_dict.items()
    }


def small():
    names = {"input": ["i", "x"], "function": ["a", "b", "x"], "output": ["o", "p"]}
    index = {
        ("function", "to", "function"): torch.tensor([[0, 1], [1, 2]]),
        ("input", "to", "function"): torch.tensor([[0], [0]]),
        ("function", "to", "output"): torch.tensor([[2], [0]]),
    }
    return HeteroGraph(index, names, warn=False)


def test_edges_are_added_by_name_after_the_others():
    graph = small()
    more = graph.with_edges([("b", "a"), ("i", "b"), ("x", "p"), ("x", "a")])
    function, into, out_of = EDGE_TYPES
    assert edge_names(more) == {
        function: [("a", "b"), ("b", "x"), ("b", "a"), ("x", "a")],  # x is a function node first
        into: [("i", "a"), ("i", "b")],
        out_of: [("x", "o"), ("x", "p")],
    }
    assert more.edge_weight_dict is None
    assert graph == small()
    assert more.without_edges([("x", "a"), ("b", "a"), ("x", "p"), ("i", "b")]) == graph
    assert graph.with_edges([]) == graph == graph.without_edges([])


def test_signs_of_added_edges():
    graph = small()
    signed = graph.with_edges([("b", "a"), ("i", "b")], signs=[-1, 1])
    assert [w.tolist() for w in signed.edge_weight_dict.values()] == [[0, 0, -1], [0, 1], [0]]
    more = signed.with_edges([("a", "p")])
    assert [w.tolist() for w in more.edge_weight_dict.values()] == [[0, 0, -1], [0, 1], [0, 0]]
    less = more.without_edges([("a", "b")])
    assert less.edge_weight_dict[EDGE_TYPES[0]].tolist() == [0, -1]
    assert edge_names(less)[EDGE_TYPES[0]] == [("b", "x"), ("b", "a")]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: g.with_edges([("a", "z")]), ValueError, "got the unknown name 'z'"),
        (lambda g: g.with_edges([("a", "a")]), ValueError, r"got the self pair \('a', 'a'\)"),
        (lambda g: g.with_edges([("a", "b")]), ValueError, r"\('a', 'b'\) exists or is given twice"),
        (lambda g: g.with_edges([("b", "a")] * 2), ValueError, r"\('b', 'a'\) exists or is given twice"),
        (lambda g: g.with_edges([("o", "a")]), ValueError, r"must lead from an input or .* got \('o', 'a'\)"),
        (lambda g: g.with_edges([("i", "o")]), ValueError, r"must lead from an input or .* got \('i', 'o'\)"),
        (lambda g: g.with_edges([("b", "a")], [1, 1]), ValueError, "one number per pair, got 2 for 1 pairs"),
        (lambda g: g.with_edges([(0, 1)]), TypeError, r"name pairs, got the item \(0, 1\)"),
        (lambda g: g.with_edges("ab"), TypeError, "name pairs, got 'ab'"),
        (lambda g: g.without_edges([("b", "a")]), ValueError, r"\('b', 'a'\) does not exist"),
        (lambda g: g.without_edges([("a", "b")] * 2), ValueError, r"each edge once, got \('a', 'b'\) twice"),
        (lambda g: g.without_edges([("a", "z")]), ValueError, "unknown name 'z'"),
    ],
)
def test_edits_that_cannot_be_made(change, error, message):
    graph = small()
    with pytest.raises(error, match=message):
        change(graph)
    assert graph == small()


def changed(which, key, value):
    index, names, weight = parts(weighted=True)
    {"index": index, "names": names, "weight": weight}[which][key] = value
    return index, names, weight


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            changed("index", ("input", "to", "output"), torch.empty(2, 0).long()),
            ValueError,
            "edge_index_dict must have",
        ),
        (
            changed("index", FF, torch.zeros(3, 2).long()),
            ValueError,
            r"must have shape \(2, n\), got \(3, 2\)",
        ),
        (changed("index", FF, torch.zeros(2).long()), ValueError, r"must have shape \(2, n\), got \(2,\)"),
        (changed("index", IF, torch.zeros(2, 2)), TypeError, "must have an integer dtype, got torch.float32"),
        (
            changed("index", IF, torch.zeros(2, 2).bool()),
            TypeError,
            "must have an integer dtype, got torch.bool",
        ),
        (changed("index", IF, "edges"), TypeError, "must be an integer tensor"),
        (
            changed("index", IF, torch.tensor([[0, 2], [0, 0]])),
            ValueError,
            r"'input', 'to', 'function'.* source indices from 0 to 1 \(2 input nodes\), got 2 at edge 1",
        ),
        (
            changed("index", FO, torch.tensor([[0, 1, 2], [0, -1, 0]])),
            ValueError,
            r"target indices from 0 to 1 \(2 output nodes\), got -1 at edge 1",
        ),
        (
            changed("index", IF, torch.tensor([[1, 1], [0, 0]])),
            ValueError,
            "must hold each edge once, got several of 'j' -> 'a'",
        ),
        (changed("names", "output", ["x", "x"]), ValueError, "must hold each name once, got several of 'x'"),
        (changed("names", "output", ["x", 3]), TypeError, "must be a list of str, got 3 at position 1"),
        (
            changed("names", "output", "xy"),
            TypeError,
            r"node_names_dict\['output'\] must be a list of str, got str",
        ),
        (
            changed("names", "output", ["x", ""]),
            ValueError,
            "must not hold empty names, got one at position 1",
        ),
        (changed("names", "output", []), ValueError, "must name at least one node, got none"),
        (
            changed("names", "function", []),
            ValueError,
            r"node_names_dict\['function'\] must name at least one",
        ),
        (changed("names", "input", []), ValueError, r"node_names_dict\['input'\] must name at least one"),
        (changed("names", "drug", ["z"]), ValueError, "node_names_dict must have .* got the unknown 'drug'"),
        (changed("weight", FF, torch.ones(2)), ValueError, r"must have shape \(3,\).* got \(2,\)"),
        (changed("weight", FF, torch.ones(3, 1)), ValueError, r"must have shape \(3,\).* got \(3, 1\)"),
        (
            changed("weight", FF, torch.tensor([1, float("nan"), 1])),
            ValueError,
            "must be finite, got nan first; at 'a' -> 'b'",
        ),
        (changed("weight", IF, torch.tensor([1, float("inf")])), ValueError, "must be finite, got inf"),
        (changed("weight", IF, torch.ones(2).bool()), TypeError, "must have a float dtype, got torch.bool"),
        (changed("weight", ("a", "b", "c"), torch.ones(2)), ValueError, "edge_weight_dict must have"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        HeteroGraph(*arguments)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_refuses_a_missing_key(position):
    for argument in (0, 1, 2):
        arguments = list(parts(weighted=True))
        key = list(arguments[argument])[position]
        del arguments[argument][key]
        name = ("edge_index_dict", "node_names_dict", "edge_weight_dict")[argument]
        with pytest.raises(ValueError) as caught:
            HeteroGraph(*arguments)
        assert str(caught.value).startswith(f"{name} must have exactly the keys")
        assert f"got no {key!r}" in str(caught.value)


def test_refuses_what_is_no_dictionary():
    with pytest.raises(TypeError, match="edge_index_dict must be a dict, got list"):
        HeteroGraph(cast(Any, []), parts()[1])


def test_names_at_most_five_duplicate_edges():
    names = {"input": ["i"], "function": [f"f{i}" for i in range(9)], "output": ["x"]}
    twice = torch.arange(9).repeat(2)
    index = {FF: torch.stack([twice, twice]), IF: torch.tensor([[0], [0]]), FO: torch.tensor([[0], [0]])}
    with pytest.raises(ValueError) as caught:
        HeteroGraph(index, names)
    shown = ", ".join(f"'f{i}' -> 'f{i}'" for i in range(5))
    assert str(caught.value).endswith(f"got several of {shown}, and 4 more")


# -- what it warns about ---------------------------------------------------------------------------------


def test_warns_about_outputs_that_nothing_feeds():
    index, names, _ = parts()
    names["output"] += [f"lost{i}" for i in range(7)]
    with pytest.warns(GraphWarning) as caught:
        HeteroGraph(index, names)
    assert [str(w.message) for w in caught] == [
        "no edge feeds 7 of 9 output nodes: 'lost0', 'lost1', 'lost2', 'lost3', 'lost4', and 2 more"
    ]
    assert caught[0].filename == __file__


def test_warns_about_inputs_that_reach_no_output():
    index, names, _ = parts()
    names["input"] += ["dead end", "no edge"]
    index[IF] = torch.tensor([[0, 1, 2], [0, 0, 3]])  # d is isolated
    with pytest.warns(
        GraphWarning, match="no output can be reached from 2 of 4 input nodes: 'dead end', 'no edge'$"
    ):
        HeteroGraph(index, names)
    HeteroGraph(index, names, warn=False)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_warnings_agree_with_a_search_by_networkx(graph):
    G = nx.DiGraph()
    for kind, names in graph.node_names_dict.items():
        G.add_nodes_from(names, type=kind)
    G.add_edges_from((u, v) for edges in by_name(graph).values() for u, v, _ in edges)
    outputs = set(graph.node_names_dict["output"])
    idle = [i for i in graph.node_names_dict["input"] if not outputs & nx.descendants(G, i)]
    unfed = [o for o in graph.node_names_dict["output"] if G.in_degree(o) == 0]
    expected = [
        f"{text} {len(lost)} of {len(graph.node_names_dict[kind])} {kind} nodes"
        for text, kind, lost in (
            ("no edge feeds", "output", unfed),
            ("no output can be reached from", "input", idle),
        )
        if lost
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        HeteroGraph(graph.edge_index_dict, graph.node_names_dict)
    assert [str(w.message).split(":")[0] for w in caught] == expected


# -- duck typing -----------------------------------------------------------------------------------------


def test_as_graph_takes_anything_with_the_dictionaries():
    index, names, weight = parts(weighted=True)
    graph = HeteroGraph(index, names, weight)
    assert as_graph(graph) is graph
    data = types.SimpleNamespace(edge_index_dict=index, node_names_dict=names)
    assert as_graph(data) == HeteroGraph(index, names)
    data.edge_weight_dict = {}
    assert as_graph(data) == HeteroGraph(index, names)
    data.edge_weight_dict = weight
    assert as_graph(data) == graph


def test_as_graph_says_what_is_missing():
    with pytest.raises(
        TypeError, match="data must have edge_index_dict and node_names_dict, got dict without edge_in"
    ):
        as_graph({})
    with pytest.raises(TypeError, match="got SimpleNamespace without node_names_dict"):
        as_graph(types.SimpleNamespace(edge_index_dict={}))


# -- round trips -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_round_trips_lose_nothing(graph):
    for other in (
        HeteroGraph.from_networkx(graph.to_networkx(), warn=False),
        HeteroGraph.from_edge_table(graph.to_edge_table(), **node_lists(graph), warn=False),
        pickle.loads(pickle.dumps(graph)),
    ):
        # Not only equal by its own account.
        assert by_name(other) == by_name(graph)
        assert other.node_names_dict == graph.node_names_dict
        assert other == graph


def test_networkx_carries_types_and_weights():
    G = HeteroGraph(*parts(weighted=True)).to_networkx()
    assert dict(G.nodes(data="type"))["c"] == "function"
    assert list(G) == ["a", "b", "c", "d", "i", "j", "x", "y"]
    assert G.edges["b", "a"]["weight"] == pytest.approx(0.1)
    assert G.edges["i", "a"]["weight"] == 2.0
    G.remove_edge("b", "a")
    G.add_edge("d", "a", weight=7.0)
    changed = HeteroGraph.from_networkx(G)
    assert [edge[:2] for edge in by_name(changed)[FF]] == [("b", "c"), ("a", "b"), ("d", "a")]


def test_networkx_refusals():
    index, names, _ = parts()
    names["output"][0] = "a"
    shared = HeteroGraph(index, names)
    with pytest.raises(ValueError, match="names that differ between the node types, got several of 'a'"):
        shared.to_networkx()
    G = HeteroGraph(*parts(weighted=True)).to_networkx()
    del G.edges["a", "b"]["weight"]
    with pytest.raises(ValueError, match="every edge must have 'weight', got 1 without: 'a' -> 'b'"):
        HeteroGraph.from_networkx(G)
    G.add_edge("i", "x")
    with pytest.raises(ValueError, match=r"got 1 that are not: 'i' -> 'x' \(input -> output\)"):
        HeteroGraph.from_networkx(G)
    G.add_node("z")
    with pytest.raises(ValueError, match="node 'z' must have type 'function', 'input', 'output', got None"):
        HeteroGraph.from_networkx(G)
    with pytest.raises(TypeError, match="G must be a networkx DiGraph, got Graph"):
        HeteroGraph.from_networkx(nx.Graph())


def test_edge_table_columns():
    table = HeteroGraph(*parts(weighted=True)).to_edge_table()
    assert list(table.columns) == ["source", "target", "weight", "etype"]
    assert table.iloc[0].tolist() == ["b", "c", 1.0, "function->function"]
    assert table.iloc[3].tolist() == ["j", "a", 0.5, "input->function"]
    assert list(HeteroGraph(*parts()).to_edge_table().columns) == ["source", "target", "etype"]


def test_edge_table_keeps_a_name_that_stands_in_two_types():
    index, names, _ = parts()
    names["output"] = ["a", "b"]
    graph = HeteroGraph(index, names)
    assert HeteroGraph.from_edge_table(graph.to_edge_table(), **node_lists(graph)) == graph


def test_edge_table_without_types():
    table = pd.DataFrame(
        {
            "source": ["drug", "TP53", "NA", "NA"],
            "target": ["TP53", "NA", "TP53", "read"],
            "sign": [1, -1, 0, 1],
            "resources": ["SIGNOR"] * 4,
        }
    )
    graph = HeteroGraph.from_edge_table(table, input_nodes=["drug"], output_nodes=["read"])
    assert graph.node_names_dict == {"input": ["drug"], "function": ["TP53", "NA"], "output": ["read"]}
    assert by_name(graph) == {
        FF: [("TP53", "NA", -1.0), ("NA", "TP53", 0.0)],
        IF: [("drug", "TP53", 1.0)],
        FO: [("NA", "read", 1.0)],
    }


def test_nodes_of_a_table_stand_in_the_order_of_first_appearance():
    table = pd.DataFrame({"source": ["i", "c", "b"], "target": ["b", "a", "x"]})
    graph = HeteroGraph.from_edge_table(table, input_nodes=["i"], output_nodes=["x"], warn=False)
    assert graph.node_names_dict["function"] == ["b", "c", "a"]
    assert graph.edge_weight_dict is None


TYPED = {"source": ["i", "a"], "target": ["a", "x"], "etype": ["input->function", "function->output"]}


@pytest.mark.parametrize(
    ("columns", "lists", "message"),
    [
        ({"source": ["i"]}, {}, "table must have the column 'target', got 'source'"),
        (
            {"source": ["i", 5], "target": ["a", "b"]},
            {},
            "table, row 1, column 'source': must be a node name, got 5",
        ),
        ({"source": ["i"], "target": [None]}, {}, "table, row 0, column 'target': must be a node name"),
        (
            {**TYPED, "etype": ["input->function", "in->f"]},
            {},
            "row 1, column 'etype': must be one of .*, got 'in->f'",
        ),
        ({**TYPED, "sign": [1, np.nan]}, {}, "row 1, column 'sign': must be a finite number, got nan"),
        ({**TYPED, "weight": ["1", "up"]}, {}, "row 1, column 'weight': must be a finite number, got 'up'"),
        (
            TYPED,
            {"function_nodes": ["b"]},
            "row 1, column 'source': must be one of the 1 function nodes.* got 'a'",
        ),
        (
            {"source": ["i"], "target": ["a"]},
            {"input_nodes": ["i"]},
            "table has no column 'etype', so output_nodes must be given, got None",
        ),
        (
            {"source": ["x"], "target": ["a"]},
            {"input_nodes": ["i"], "output_nodes": ["x"]},
            "row 0, column 'source': must be no output node",
        ),
        (
            {"source": ["a"], "target": ["i"]},
            {"input_nodes": ["i"], "output_nodes": ["x"]},
            "row 0, column 'target': must be no input node",
        ),
        (
            {"source": ["i"], "target": ["x"]},
            {"input_nodes": ["i"], "output_nodes": ["x"]},
            "row 0, column 'target': must be a function node",
        ),
        (
            {"source": ["i"], "target": ["x"]},
            {"input_nodes": ["i"], "output_nodes": ["i"]},
            "a table without 'etype' needs inputs and outputs that differ, got 'i'",
        ),
    ],
)
def test_edge_table_refusals(columns, lists, message):
    with pytest.raises(ValueError, match=message):
        HeteroGraph.from_edge_table(pd.DataFrame(columns), **lists)


def test_edge_table_must_be_a_table():
    with pytest.raises(TypeError, match="table must be a pandas DataFrame, got list"):
        HeteroGraph.from_edge_table(cast(Any, []))


# -- files -----------------------------------------------------------------------------------------------

EDGES = (
    "source\ttarget\tsign\tetype\n"
    "1\tNA\t1\tinput->function\n"
    "NA\tnan\t-1\tfunction->function\n"
    "nan\ty\t0\tfunction->output\n"
)
NODES = "node\ttype\tlabel\nnan\tfunction\tN\nNA\tfunction\t\nalone\tfunction\t\n1\tinput\t\ny\toutput\tY\n"


def write(tmp_path, edges=EDGES, nodes=NODES):
    (tmp_path / "edges.tsv").write_text(edges)
    (tmp_path / "nodes.tsv").write_text(nodes)
    return tmp_path / "edges.tsv", tmp_path / "nodes.tsv"


def test_tsv_names_are_text_and_the_node_file_fixes_the_order(tmp_path):
    edges, nodes = write(tmp_path)
    graph = HeteroGraph.from_tsv(edges)
    assert graph.node_names_dict == {"input": ["1"], "function": ["NA", "nan"], "output": ["y"]}
    assert by_name(graph)[FF] == [("NA", "nan", -1.0)]
    ordered = HeteroGraph.from_tsv(edges, nodes)
    assert ordered.node_names_dict["function"] == ["nan", "NA", "alone"]
    assert by_name(ordered) == by_name(graph)


def test_tsv_without_types(tmp_path):
    edges, _ = write(tmp_path, edges="source\ttarget\nd\tf\nf\to\n")
    graph = HeteroGraph.from_tsv(edges, input_nodes=["d"], output_nodes=["o"])
    assert by_name(graph) == {FF: [], IF: [("d", "f", None)], FO: [("f", "o", None)]}


@pytest.mark.parametrize(
    ("edges", "nodes", "message"),
    [
        (
            EDGES.replace("\t-1\t", "\tminus\t"),
            NODES,
            r"edges.tsv, line 3, column 'sign': must be a finite.*'minus'",
        ),
        (EDGES.replace("input->function", "input>f"), NODES, r"edges.tsv, line 2, column 'etype'"),
        (
            EDGES.replace("nan\ty", "\ty"),
            NODES,
            r"edges.tsv, line 4, column 'source': must be a node name, got ''",
        ),
        (
            EDGES.replace("target", "goal"),
            NODES,
            r"edges.tsv must have the column 'target', got 'source', 'goal', 'sign', 'etype'",
        ),
        (EDGES + "a\tb\tc\td\te\tf\n", NODES, r"edges.tsv, line 5: 6 cells where the header has 4"),
        ("", NODES, r"edges.tsv must have a header line, got an empty file"),
        (
            EDGES,
            NODES.replace("alone\tfunction", "alone\tgene"),
            r"nodes.tsv, line 4, column 'type': .* got 'gene'",
        ),
        (EDGES, "id\ttype\n", r"nodes.tsv must have the column 'node'"),
        (
            EDGES,
            NODES.replace("nan\tfunction", "other\tfunction"),
            r"edges.tsv, line 4, column 'source': .* got 'nan'",
        ),
        (
            EDGES + "NA\tnan\t1\tfunction->function\n",
            NODES,
            r"got several of 'NA' -> 'nan': line 3 and line 5",
        ),
    ],
)
def test_tsv_refusals_name_file_line_and_column(tmp_path, edges, nodes, message):
    paths = write(tmp_path, edges, nodes)
    with pytest.raises(ValueError, match=message):
        HeteroGraph.from_tsv(*paths)


@pytest.mark.parametrize(
    ("folder", "nodes", "edges"),
    [
        ("cno_extliver", (14, 75, 15), (109, 14, 15)),
        ("lembas_ligand", (60, 1202, 74), (6130, 464, 74)),
        ("dream4/size10_1", (20, 10, 10), (15, 20, 10)),
    ],
)
@pytest.mark.filterwarnings("ignore::gsnn.graph.GraphWarning")
def test_real_networks(folder, nodes, edges):
    path = DATA / folder
    if not path.exists():
        pytest.skip(f"no data in {path}; set GSNN_DATA to the folder that holds {folder}")
    graph = HeteroGraph.from_tsv(path / "edges.tsv", path / "nodes.tsv")
    assert tuple(len(graph.node_names_dict[kind]) for kind in ("input", "function", "output")) == nodes
    assert tuple(index.shape[1] for index in graph.edge_index_dict.values()) == edges
    expected = pd.read_csv(
        path / "edges.tsv", sep="\t", dtype={"source": str, "target": str}, keep_default_na=False
    )
    found = [(u, v, int(w)) for edges in by_name(graph).values() for u, v, w in edges]
    assert sorted(found) == sorted(zip(expected["source"], expected["target"], expected["sign"], strict=True))
    assert HeteroGraph.from_networkx(graph.to_networkx()) == graph
    assert HeteroGraph.from_edge_table(graph.to_edge_table(), **node_lists(graph)) == graph


# -- torch_geometric -------------------------------------------------------------------------------------


class Store(types.SimpleNamespace):
    pass


class StandInHeteroData:
    """Collects ``x_dict`` from its stores on look-up and raises KeyError where none has x, as PyG does."""

    def __init__(self):
        self.stores = {}

    def __getitem__(self, key):
        return self.stores.setdefault(key, Store())

    def __getattr__(self, name):
        if not name.endswith("_dict"):
            raise AttributeError(name)
        found = {key: getattr(s, name[:-5]) for key, s in self.stores.items() if hasattr(s, name[:-5])}
        if not found:
            raise KeyError(name)
        return found


@pytest.mark.parametrize("weighted", [False, True])
def test_pyg_round_trip_with_a_stand_in(monkeypatch, weighted):
    module: Any = types.ModuleType("torch_geometric.data")
    module.HeteroData = StandInHeteroData
    monkeypatch.setitem(sys.modules, "torch_geometric", types.ModuleType("torch_geometric"))
    monkeypatch.setitem(sys.modules, "torch_geometric.data", module)
    graph = HeteroGraph(*parts(weighted))
    data = graph.to_pyg()
    assert data["function"].num_nodes == 4
    assert HeteroGraph.from_pyg(data) == graph


@pytest.mark.parametrize("weighted", [False, True])
def test_pyg_round_trip(weighted):
    pytest.importorskip("torch_geometric")
    graph = HeteroGraph(*parts(weighted))
    assert HeteroGraph.from_pyg(graph.to_pyg()) == graph


def test_pyg_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(ImportError, match=r"pip install 'gsnn\[pyg\]'"):
        HeteroGraph(*parts()).to_pyg()


# -- size ------------------------------------------------------------------------------------------------


def test_a_million_edges_are_built_without_a_loop_over_them():
    n, E = 20_000, 1_000_000
    keys = np.arange(E)[::-1] * 397  # all different, and below n * n
    index = {
        FF: torch.from_numpy(np.stack([keys // n, keys % n])),
        IF: torch.zeros(2, 1, dtype=torch.int64),
        FO: torch.zeros(2, 1, dtype=torch.int64),
    }
    names = {"input": ["i"], "function": [f"f{k}" for k in range(n)], "output": ["o"]}
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += 1
        return count

    sys.settrace(count)  # executed lines, which unlike seconds are the same on every machine
    try:
        graph = HeteroGraph(index, names)
    finally:
        sys.settrace(None)
    assert graph.edge_index_dict[FF].shape == (2, E)
    assert lines < 10 * n
