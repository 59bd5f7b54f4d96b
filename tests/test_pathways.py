"""Matching gene sets to nodes, the shuffled control, and the warm-up."""

import bz2
import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from gsnn.models.pathways import match_pathways, read_gmt, shuffle_nodes, table_sets, warm_up

NODES = ["A", "B", "C", "D", "E"]


def test_match_and_report():
    found = match_pathways({"P": ["A", "C", "X", "A"], "Q": ["C", "D"], "R": ["E", "Y"], "S": []}, NODES)
    assert found.names == ("P", "Q")
    assert found.membership.is_sparse
    assert found.membership.to_dense().tolist() == [[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert dict(found.unmatched) == {"P": ("X",), "R": ("Y",)}
    assert dict(found.too_small) == {"R": 1, "S": 0}
    assert found.without_pathway == ("B", "E")
    report = found.report()
    assert "2 pathways with 4 memberships; 3 of 5 function nodes are in one" in report
    assert "2 genes are no function node: 'X', 'Y'" in report
    assert "2 pathways left out, too few nodes: 'R', 'S'" in report


def test_weights_and_several_nodes_of_one_gene():
    nodes = ["RNA__A", "PROTEIN__A", "PROTEIN__B"]
    found = match_pathways({"P": {"A": 0.5, "B": -2.0}}, nodes, gene_of=lambda node: node.split("__")[1])
    assert found.membership.to_dense().tolist() == [[0.5, 0.5, -2.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([("P", ["A"])], NODES), TypeError, "gene_sets must be a dict of pathway -> genes, got list"),
        (({"P": "AB"}, NODES), TypeError, r"gene_sets\['P'\] must be a collection of genes, got the string"),
        (({"P": {"A": np.nan}}, NODES), ValueError, r"gene_sets\['P'\] must have finite weights"),
        (({"P": ["A", "B"]}, ["A", "A"]), ValueError, "function_nodes must be unique, got duplicates"),
        (({"P": ["x", "y"]}, NODES), ValueError, "2 function nodes, got none among 1; genes are 'x'"),
    ],
)
def test_bad_gene_sets(arguments, error, message):
    with pytest.raises(error, match=message):
        match_pathways(*arguments)


def test_bad_min_size():
    with pytest.raises(ValueError, match="min_size must be a positive int, got 0"):
        match_pathways({"P": ["A"]}, NODES, min_size=0)


@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz"])
def test_read_gmt(tmp_path, name):
    text = "P\thttp://p\tA\tB\t\r\n\nQ\t\tC\tD\tE\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert read_gmt(path) == {"P": ["A", "B"], "Q": ["C", "D", "E"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P\tp\tA\nQ\tq\n", "line 2: expected name, description and genes"),
        ("P\tp\tA\nP\tp\tB\n", "line 2: the pathway 'P' comes twice"),
    ],
)
def test_bad_gmt(tmp_path, text, message):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_gmt(path)


def test_table_sets():
    table = pd.DataFrame({"set": ["P", "Q", "P"], "symbol": ["A", "A", "B"], "w": [1.0, 2.0, 0.5]})
    assert table_sets(table, "set", "symbol") == {"P": {"A": 1.0, "B": 1.0}, "Q": {"A": 1.0}}
    assert table_sets(table, "set", "symbol", "w")["P"] == {"A": 1.0, "B": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"gene": "id"}), "must have the column 'gene', got 'pathway', 'id'"),
        (lambda t: t.assign(gene=["A", None]), "table must have no empty cell in 'pathway', 'gene'"),
        (lambda t: t.assign(gene="A"), r"table must have each membership once, got twice \('P', 'A'\)"),
    ],
)
def test_bad_table(change, message):
    table = pd.DataFrame({"pathway": ["P", "P"], "gene": ["A", "B"]})
    with pytest.raises(ValueError, match=message):
        table_sets(change(table))


def dense_of(membership):
    if isinstance(membership, torch.Tensor):
        return membership.to_dense().numpy()
    return membership.toarray() if scipy.sparse.issparse(membership) else membership


@pytest.mark.parametrize(
    "kind", [np.array, torch.tensor, lambda m: torch.tensor(m).to_sparse(), scipy.sparse.csr_array]
)
def test_shuffle_keeps_sizes_overlaps_and_weights(kind):
    table = np.random.default_rng(0).integers(0, 3, (4, 30)).astype(float)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    membership = kind(table)
    shuffled = shuffle_nodes(membership, seed=3)
    assert type(shuffled) is type(membership) or scipy.sparse.issparse(shuffled)
    found = dense_of(shuffled)
    assert not np.array_equal(found, table)
    assert np.allclose(found @ found.T, table @ table.T)  # sizes on the diagonal, overlaps beside it
    assert sorted(found.T.tolist()) == sorted(table.T.tolist())
    assert np.array_equal(found, dense_of(shuffle_nodes(kind(table), seed=3)))
    assert np.array_equal(found, dense_of(shuffle_nodes(table, seed=3)))  # whatever the container
    assert not np.array_equal(found, dense_of(shuffle_nodes(kind(table), seed=4)))
    assert np.array_equal(state, np.random.get_state(legacy=False)["state"]["key"])


def test_warm_up():
    assert [warm_up(step, 4, start=2) for step in (0, 2, 4, 6, 60)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert warm_up(0, 0) == 1
    rising = [warm_up(step, 10) for step in range(11)]
    assert rising == sorted(rising)
    with pytest.raises(ValueError, match="over must be an int of at least 0, got -1"):
        warm_up(0, -1)


def test_gene_sets_are_unpacked_by_content(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_bytes(bz2.compress("P\tna\tIL1β\tB\n".encode("utf-16")))
    assert read_gmt(path) == {"P": ["IL1β", "B"]}
    path.write_bytes("P\tna\t\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"sets\.gmt is not UTF-8 text"):
        read_gmt(path)
