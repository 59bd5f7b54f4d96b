"""From a database's table to a graph: results worked out by hand, and what holds of every table."""

from typing import Any, cast

import networkx as nx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.graph import GraphWarning, build

BETWEEN, INTO, OUT_OF = (
    ("function", "to", "function"),
    ("input", "to", "function"),
    ("function", "to", "output"),
)


def edges_of(graph, etype=BETWEEN):
    """{(source, target): sign or None} by name."""
    names, index = graph.node_names_dict, graph.edge_index_dict[etype]
    weights = graph.edge_weight_dict
    signs = [None] * index.shape[1] if weights is None else weights[etype].int().tolist()
    return {
        (names[etype[0]][u], names[etype[2]][v]): sign
        for (u, v), sign in zip(index.T.tolist(), signs, strict=True)
    }


# Accessions beside symbols, a complex, both signs at once, an undirected row, a self loop, a repetition.
OMNIPATH = pd.DataFrame(
    [
        ("P1", "P2", "EGFR", "GRB2", True, True, False, 9),
        ("P2", "P3", "GRB2", "SOS1", True, True, False, 5),
        ("P3", "P4", "SOS1", "KRAS", True, True, False, 4),
        ("P4", "P5", "KRAS", "RAF1", True, True, True, 7),
        ("P5", "COMPLEX:P6_P7", "RAF1", "FOS_JUN", True, False, True, 3),
        ("P8", "P5", "DUSP1", "RAF1", True, False, True, 2),
        ("P5", "P1", "RAF1", "EGFR", False, False, False, 8),
        ("P5", "P5", "RAF1", "RAF1", True, True, False, 6),
        ("P2", "P9", "GRB2", "GAB1", True, True, False, 1),
        ("P1", "P2", "EGFR", "GRB2", True, True, False, 1),
        (None, "P2", None, "GRB2", True, True, False, 3),
    ],
    columns=[
        "source",
        "target",
        "source_genesymbol",
        "target_genesymbol",
        "is_directed",
        "is_stimulation",
        "is_inhibition",
        "curation_effort",
    ],
)


def test_omnipath_by_hand():
    graph, report = build(
        OMNIPATH, {"gefitinib": {"EGFR": -1}}, {"MYC": ["FOS"], "CCND1": "JUN"}, return_report=True
    )
    names = graph.node_names_dict
    assert names["function"] == ["EGFR", "FOS", "GRB2", "JUN", "KRAS", "RAF1", "SOS1"]
    assert names["input"] == ["gefitinib"] and names["output"] == ["MYC", "CCND1"]
    assert edges_of(graph) == {
        ("EGFR", "GRB2"): 1,
        ("GRB2", "SOS1"): 1,
        ("SOS1", "KRAS"): 1,
        ("KRAS", "RAF1"): 0,  # both
        ("RAF1", "FOS"): -1,
        ("RAF1", "JUN"): -1,
    }
    assert edges_of(graph, INTO) == {("gefitinib", "EGFR"): -1}
    assert edges_of(graph, OUT_OF) == {("FOS", "MYC"): 0, ("JUN", "CCND1"): 0}
    rows = report[report["table"] == "interactions"]
    assert rows["row"].tolist() == list(range(11))
    assert rows["reason"].tolist() == [
        *[""] * 5,
        "no input reaches the source",
        "not directed",
        "self interaction",
        "the target reaches no output",
        "repeats row 0",
        "no source",
    ]
    assert rows["kept"].tolist() == [True] * 5 + [False] * 6
    assert report.loc[report["table"] != "interactions", "kept"].all()


def test_a_complex_can_be_kept():
    graph = build(OMNIPATH, {"d": ["EGFR"]}, {"MYC": ["FOS_JUN"]}, complexes="keep")
    assert edges_of(graph)["RAF1", "FOS_JUN"] == -1
    with pytest.raises(ValueError, match="there is no path"):
        build(OMNIPATH, {"d": ["EGFR"]}, {"MYC": ["FOS"]}, complexes="keep")


def test_members_of_both_sides_of_a_complex_and_no_self_edges():
    table = pd.DataFrame({"source": ["COMPLEX:a_b"], "target": ["COMPLEX:b_c_a"]})
    graph, report = build(table, ["a", "b"], ["b", "c"], return_report=True)
    assert set(edges_of(graph)) == {("a", "b"), ("a", "c"), ("b", "c"), ("b", "a")}
    assert report["kept"].all() and len(report) == 5
    assert graph.edge_weight_dict is None  # nobody said a sign


def test_a_row_is_kept_where_one_of_its_edges_is():
    table = pd.DataFrame({"source": ["a"], "target": ["COMPLEX:b_c"]})
    graph, report = build(table, ["a"], ["c"], return_report=True)
    assert set(edges_of(graph)) == {("a", "c")}
    assert report["kept"].all() and (report["reason"] == "").all()


def test_confidence_is_found_or_named_and_cuts():
    graph, report = build(OMNIPATH, ["EGFR"], ["KRAS"], min_confidence=4, return_report=True)
    assert set(edges_of(graph)) == {("EGFR", "GRB2"), ("GRB2", "SOS1"), ("SOS1", "KRAS")}
    assert report["reason"].tolist()[4] == "confidence below 4"
    with pytest.raises(ValueError, match="there is no path"):
        build(OMNIPATH, ["EGFR"], ["KRAS"], min_confidence=4.5)
    table = pd.DataFrame({"source": ["a", "a"], "target": ["b", "c"], "votes": [2, None]})
    with pytest.raises(ValueError, match=r"interactions has no column of confidences .*got 'source'"):
        build(table, ["a"], ["b"], min_confidence=1)
    with pytest.warns(
        GraphWarning,
        match=r"1 output\(s\) are on no path.*'c' \(the regulator is no node of the interactions: 'c'",
    ):
        graph, report = build(
            table, ["a"], ["b", "c"], min_confidence=2, confidence="votes", return_report=True
        )
    assert report["reason"].tolist()[:2] == ["", "no confidence"]
    table["votes"] = ["many", "few"]
    with pytest.raises(ValueError, match="column 'votes': confidences must be numbers, got 'many'"):
        build(table, ["a"], ["b"], confidence="votes")


SIGNOR = pd.DataFrame(
    {
        "ENTITYA": ["a", "b", "c", "d", "e"],
        "ENTITYB": ["b", "c", "d", "e", "f"],
        "EFFECT": [
            "up-regulates activity",
            "down-regulates quantity by destabilization",
            "form complex",
            "unknown",
            "down-regulates",
        ],
        "SCORE": [0.9, 0.8, 0.7, 0.6, ""],
    }
)


def test_signor_by_hand():
    graph = build(SIGNOR, ["a"], ["f"])
    assert list(edges_of(graph).values()) == [1, -1, 0, 0, -1]
    assert edges_of(graph, INTO) == {("a", "a"): 1} and edges_of(graph, OUT_OF) == {("f", "f"): 1}
    graph = build(SIGNOR, ["a"], ["d"], min_confidence=0.7)
    assert graph.node_names_dict["function"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("columns", "cells", "signs"),
    [
        (("source", "sign", "target"), ("+", "-", ""), (1, -1, 0)),
        (("Source", "Effect", "Target"), (1, -1, 0), (1, -1, 0)),  # CARNIVAL
        (("source", "interaction", "target"), ("1", "-1", "1.0"), (1, -1, 1)),  # CORNETO
        (("source", "mor", "target"), (1.0, -1.0, None), (1, -1, 0)),  # CollecTRI
        (("source", "weight", "target"), (1.0, -1.0, -1.0), (1, -1, -1)),
        (("source", "weight", "target"), (0.5, -1.0, 1.0), None),
        (("from", "sign", "to"), ("activation", "Inhibition", "represses"), (1, -1, -1)),
        (("source", "is_inhibition", "target"), (True, False, True), None),
    ],
)
def test_sign_columns_that_are_found(columns, cells, signs):
    table = pd.DataFrame(dict(zip(columns, (["a", "b", "c"], cells, ["b", "c", "d"]), strict=True)))
    found = edges_of(build(table, ["a"], ["d"]))
    assert list(found.values()) == (list(signs) if signs else [None] * 3)


@pytest.mark.parametrize(("name", "signs"), [("is_stimulation", [1, 0, 1]), ("is_inhibition", [-1, 0, -1])])
@pytest.mark.parametrize("cells", [("TRUE", "FALSE", "true"), (True, False, True), ("t", "", "T")])
def test_one_column_of_true_and_false(name, signs, cells):
    table = pd.DataFrame({"source": ["a", "b", "c"], "target": ["b", "c", "d"], name: cells})
    assert list(edges_of(build(table, ["a"], ["d"], sign=name)).values()) == signs


def test_the_consensus_decides_where_it_has_a_sign():
    table = pd.DataFrame(
        {
            "source": ["a", "b", "c"],
            "target": ["b", "c", "d"],
            "is_stimulation": [1, 1, 0],
            "is_inhibition": [1, 0, 1],
            "consensus_stimulation": ["FALSE", "FALSE", "TRUE"],
            "consensus_inhibition": ["TRUE", "FALSE", "FALSE"],
        }
    )
    assert list(edges_of(build(table, ["a"], ["d"])).values()) == [-1, 1, 1]
    with pytest.raises(ValueError, match="a column of yes and no must hold TRUE, FALSE, 1 or 0, got 'maybe'"):
        build(table.assign(is_inhibition="maybe"), ["a"], ["d"])


def test_words_and_numbers_that_are_no_sign():
    table = pd.DataFrame({"source": ["a", "b"], "target": ["b", "c"], "sign": ["binds", "+"]})
    with pytest.warns(GraphWarning, match=r"column 'sign': 1 of 2 cells are no word for a sign.*'binds'"):
        assert list(edges_of(build(table, ["a"], ["c"])).values()) == [0, 1]
    with pytest.raises(ValueError, match="column 'n': a sign must be 1, -1, 0 or a word .* got 3"):
        build(table.assign(n=[3, 1]), ["a"], ["c"], sign="n")
    with pytest.raises(ValueError, match="interactions has no column 'm' for the sign"):
        build(table, ["a"], ["c"], sign="m")


@pytest.mark.parametrize(
    ("signs", "confidences", "sign", "said"),
    [
        ((1, -1, -1), None, -1, "1 by rows 1, -1 by rows 2; taken as -1"),
        ((1, -1, 0), None, 0, "1 by rows 1, -1 by rows 1; taken as 0"),
        ((1, -1, -1), (9, 2, 3), 1, "1 by confidence 9, -1 by confidence 5; taken as 1"),
        ((1, -1, -1), (9, 2, None), -1, "1 by rows 1, -1 by rows 2; taken as -1"),
        ((0, 1, 0), None, 1, ""),
    ],
)
def test_signs_that_disagree(signs, confidences, sign, said):
    table = pd.DataFrame({"source": "a", "target": "b", "sign": signs})
    if confidences:
        table["n_references"] = confidences
    graph, report = build(table, ["a"], ["b"], return_report=True)
    assert edges_of(graph) == {("a", "b"): sign}
    want = f"signs of a -> b disagree: {said}" if said else ""
    assert report["reason"].tolist()[:3] == [want, "repeats row 0", "repeats row 0"]
    assert report["kept"].tolist() == [True, False, False, True, True]


def test_a_complex_may_repeat_a_part_and_disagree_on_another():
    table = pd.DataFrame(
        [("a", "b", 1), ("a", "COMPLEX:b_c", 1), ("a", "c", -1), ("a", "COMPLEX:c_b", 1)],
        columns=["source", "target", "sign"],
    )
    graph, report = build(table, ["a"], ["b", "c"], return_report=True)
    assert edges_of(graph) == {("a", "b"): 1, ("a", "c"): 1}
    said = "signs of a -> c disagree: 1 by rows 2, -1 by rows 1; taken as 1"
    assert report["reason"].tolist()[:4] == ["", said, "repeats row 1", "repeats row 1"]


def test_missing_flags_are_no():
    table = pd.DataFrame({"source": ["a", "b"], "target": ["b", "c"]})
    table["is_stimulation"] = pd.array([True, pd.NA], dtype="boolean")
    table["is_inhibition"] = [float("nan"), 1.0]
    assert list(edges_of(build(table, ["a"], ["c"])).values()) == [1, -1]


def test_sif_files(tmp_path):
    path = tmp_path / "PKN.sif"
    path.write_text("EGF\t1\tEGFR\n\nEGFR\t-1\tRas\tPI3K\nalone\n")
    graph, report = build(path, ["EGF"], ["Ras", "PI3K"], return_report=True)
    assert edges_of(graph) == {("EGF", "EGFR"): 1, ("EGFR", "PI3K"): -1, ("EGFR", "Ras"): -1}
    assert report["row"].tolist() == [1, 3, 3, 4, 0, 0, 1]
    assert report["reason"].tolist()[3] == "no target"
    path.write_text("a activates b\nb inhibits c d\n")
    assert edges_of(build(path, ["a"], ["d"])) == {("a", "b"): 1, ("b", "d"): -1}
    path.write_text("a b\n")
    with pytest.raises(ValueError, match=r"PKN\.sif, line 1: must be source, relation, target, got 'a b'"):
        build(path, ["a"], ["b"])


CHAIN = pd.DataFrame({"source": list("abcdb"), "target": list("bcdex"), "sign": [1, 1, -1, 1, 1]})


def test_max_hops_counts_the_edges_of_the_input_and_of_the_output():
    # drug -> a -> b -> c -> y has 4 edges, by d 5, by e 6.
    outputs = {"y": ["c", "d"], "z": ["e"]}
    with pytest.warns(GraphWarning, match=r"1 output.*'z' \(only on paths of more than 5 edges: 'e'\)"):
        graph, report = build(CHAIN, {"drug": ["a"]}, outputs, max_hops=5, return_report=True)
    assert graph.node_names_dict["function"] == ["a", "b", "c", "d"]
    with pytest.warns(GraphWarning):
        graph = build(CHAIN, {"drug": ["a"]}, outputs, max_hops=4)
    assert graph.node_names_dict["function"] == ["a", "b", "c"]
    assert set(edges_of(graph, OUT_OF)) == {("c", "y")}
    assert report.loc[report["reason"] != "", "reason"].tolist() == [
        "only on paths of more than 5 edges",
        "the target reaches no output",
        "only on paths of more than 5 edges",
    ]
    with pytest.raises(
        ValueError, match=r"no path of at most 3 edges from an input to an output; inter.*\(4 ro"
    ):
        build(CHAIN, {"drug": ["a"]}, outputs, max_hops=3)
    with pytest.raises(ValueError, match="max_hops must be an int of at least 2, got 1"):
        build(CHAIN, {"drug": ["a"]}, outputs, max_hops=1)


def test_unreached_inputs_and_outputs():
    inputs = {"drug": ["a"], "late": ["x"], "odd": ["A1"], "none": []}
    with pytest.warns(GraphWarning) as said:
        graph, report = build(CHAIN, inputs, ["e", "q"], return_report=True)
    assert [str(w.message) for w in said] == [
        "3 input(s) are on no path and were left out: 'late' (the target reaches no output: 'x'), "
        "'odd' (the target is no node of the interactions: 'A1'), 'none' (no target)",
        "1 output(s) are on no path and were left out: "
        "'q' (the regulator is no node of the interactions: 'q')",
    ]
    assert report.loc[report["table"] == "inputs", "kept"].tolist() == [True, False, False, False]
    with pytest.warns(GraphWarning):
        graph = build(CHAIN, inputs, ["e", "q"], keep_inputs=True, keep_outputs=True)
    assert graph.node_names_dict["input"] == list(inputs) and graph.node_names_dict["output"] == ["e", "q"]
    assert len(edges_of(graph, INTO)) == len(edges_of(graph, OUT_OF)) == 1
    with pytest.warns(GraphWarning, match="did you mean 'a' for 'A'"):
        build(CHAIN, {"drug": ["a"], "odd": ["A"]}, ["e"])


def test_tables_of_inputs_and_outputs(tmp_path):
    want = build(CHAIN, {"d1": {"a": -1}, "d2": {"b": 1}}, {"y": {"d": 1, "e": 0}})
    inputs, outputs = tmp_path / "targets.tsv", tmp_path / "outputs.csv"
    inputs.write_text("drug\ttarget\tsign\nd1\ta\tinhibition\nd2\tb\t+\n")
    outputs.write_text("gene,regulator,sign\ny,d,1\ny,e,?\n")
    table = tmp_path / "interactions.csv"
    CHAIN.to_csv(table, index=False)
    assert build(table, inputs, outputs) == want
    regulons = pd.DataFrame({"source": ["d", "e"], "target": ["y", "y"], "weight": [1, 0]})
    assert build(CHAIN, inputs, regulons) == want  # by the names of the columns, not by their order
    names = tmp_path / "names.tsv"
    names.write_text("protein\nd\ne\n")
    graph = build(CHAIN, {"d1": "a"}, names)
    assert edges_of(graph, OUT_OF) == {("d", "d"): 1, ("e", "e"): 1}
    assert edges_of(graph, INTO) == {("d1", "a"): 0}


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (3, TypeError, "inputs must be a dict of names to partners, a list of names"),
        ([], ValueError, "inputs must name at least one node"),
        ({"d": 3}, TypeError, r"inputs\['d'\] must be a list of names, got int"),
        ({"d": [3]}, TypeError, "inputs must hold names as text, got 3"),
        ({"d": {"a": "often"}}, ValueError, r"inputs\['d'\]\['a'\] must be a sign such as 1 or -1"),
        ([""], ValueError, "inputs must not hold empty names"),
    ],
)
def test_bad_inputs(inputs, error, message):
    with pytest.raises(error, match=message):
        build(CHAIN, inputs, ["e"])


def test_bad_interactions(tmp_path):
    with pytest.raises(TypeError, match="interactions must be a pandas DataFrame or a path, got dict"):
        build(cast(Any, {}), ["a"], ["e"])
    with pytest.raises(
        ValueError, match="must have a column for the target, got 'source', 'aim'; name it with"
    ):
        build(CHAIN[["source", "target"]].rename(columns={"target": "aim"}), ["a"], ["e"])
    assert edges_of(build(CHAIN.rename(columns={"target": "aim"}), ["a"], ["e"], target="aim"))
    with pytest.raises(ValueError, match="min_confidence must be a finite number, got 'B'"):
        build(CHAIN, ["a"], ["e"], min_confidence=cast(Any, "B"))
    with pytest.raises(ValueError, match="complexes must be one of 'split', 'keep', got 'join'"):
        build(CHAIN, ["a"], ["e"], complexes=cast(Any, "join"))
    with pytest.raises(FileNotFoundError):
        build(tmp_path / "nothing.tsv", ["a"], ["e"])


NODES = st.sampled_from(["a", "b", "c", "d", "e", "COMPLEX:a_b", ""])
PARTNERS = st.dictionaries(
    st.sampled_from(["p", "q", "a"]), st.lists(st.sampled_from("abcdef"), max_size=3), min_size=1, max_size=3
)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(NODES, NODES, st.sampled_from([1, -1, 0]), st.integers(0, 3)), max_size=14),
    inputs=PARTNERS,
    outputs=PARTNERS,
    max_hops=st.none() | st.integers(2, 6),
    least=st.none() | st.integers(0, 3),
)
def test_laws(rows, inputs, outputs, max_hops, least):
    """Kept nodes are on short paths and others are not; rows add up; the order of rows plays no part."""
    table = pd.DataFrame(rows, columns=["source", "target", "sign", "score"])
    options = {"max_hops": max_hops, "min_confidence": least, "warn": False}
    # The whole network, inputs and outputs as nodes of their own.
    G = nx.DiGraph()
    for u, v, _, score in rows:
        if u and v and (least is None or score >= least):
            ends = [name.removeprefix("COMPLEX:").split("_") for name in (u, v)]
            G.add_edges_from((a, b) for a in ends[0] for b in ends[1] if a != b)
    nodes = set(G)
    G.add_edges_from((("in", d), t) for d, targets in inputs.items() for t in targets if t in nodes)
    G.add_edges_from((r, ("out", y)) for y, regulators in outputs.items() for r in regulators if r in nodes)
    far = dict(nx.all_pairs_shortest_path_length(G))
    starts = [n for n in G if n[0] == "in"]
    ends = [n for n in G if n[0] == "out"]
    limit = float("inf") if max_hops is None else max_hops

    def on_a_path(node):
        there = [far[s][node] for s in starts if node in far[s]]
        back = [far[node][e] for e in ends if e in far[node]]
        return bool(there and back) and min(there) + min(back) <= limit

    want = {node for node in G if on_a_path(node)}
    if not want:
        with pytest.raises(ValueError, match="there is no path"):
            build(table, inputs, outputs, **options)
        return
    graph, report = build(table, inputs, outputs, return_report=True, **options)
    names = graph.node_names_dict
    assert set(names["function"]) == {node for node in want if isinstance(node, str)}
    assert {("in", name) for name in names["input"]} == {n for n in want if n[0] == "in"}
    assert {("out", name) for name in names["output"]} == {n for n in want if n[0] == "out"}
    assert set(edges_of(graph)) == {e for e in G.edges if want.issuperset(e) and nodes.issuperset(e)}
    counts = report.groupby("table")["kept"].agg(["sum", "size"])
    assert counts["size"].get("interactions", 0) == len(rows)
    for which, given_ in (("inputs", inputs), ("outputs", outputs)):
        assert counts["size"][which] == sum(max(1, len(partners)) for partners in given_.values())
    dropped = report[~report["kept"]]
    assert (dropped["reason"] != "").all()
    said = report.loc[report["kept"], "reason"]
    assert said.map(lambda text: text == "" or "disagree" in text).all()
    again = build(table[::-1].reset_index(drop=True), inputs, outputs, **options)
    assert again == graph
