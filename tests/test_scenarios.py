"""The ready-made scenarios: their counts, their splits, and that they are what they say."""

import copy
import pickle
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.simulate.scenarios import converging_tiers, cyclic, disconnected_pathways, random_signed_dag

FF, IF, FO = EDGE_TYPES


def names_of(graph, etype):
    sources, targets = graph.node_names_dict[etype[0]], graph.node_names_dict[etype[2]]
    return [(sources[i], targets[j]) for i, j in graph.edge_index_dict[etype].T.tolist()]


def counts(graph):
    return [graph.edge_index_dict[etype].shape[1] for etype in EDGE_TYPES]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


# -- converging tiers


@pytest.mark.parametrize(
    ("width", "functions", "between", "validation", "test"), [(12, 24, 33, 8, 8), (25, 50, 72, 17, 18)]
)
def test_published_tiers(width, functions, between, validation, test):
    s = converging_tiers(width)
    assert (len(s.input_nodes), len(s.function_nodes), len(s.output_nodes)) == (width, functions, width)
    assert counts(s.full) == [between, width, width]
    assert (len(s.validation_edges), len(s.test_edges)) == (validation, test)
    assert s.held_out == s.validation_edges + s.test_edges
    assert counts(s.partial) == [between - validation - test, width, width]


@pytest.mark.parametrize("n", [3, 4, 12, 25])
def test_tiers_edge_by_edge(n):
    s = converging_tiers(n)
    sink = f"f{2 * n - 1}"
    assert s.graph.number_of_edges() == 5 * n - 3
    for k in range(n):
        assert list(s.graph.successors(f"in{k}")) == [f"f{k}"]
        assert list(s.graph.predecessors(f"f{k}")) == [f"in{k}"]
    for k in range(n - 1):
        assert set(s.graph.predecessors(f"f{n + k}")) == {f"f{k}", f"f{k + 1}"}
        assert set(s.graph.successors(f"f{n + k}")) == {sink, f"o{k}"}
    assert set(s.graph.predecessors(sink)) == {f"f{n + k}" for k in range(n - 1)}
    assert list(s.graph.successors(sink)) == [f"o{n - 1}"]

    first = [(f"f{k}", f"f{n + k}") for k in range(1, n - 1)]
    second = [(f"f{n + k}", sink) for k in range(0, n - 1, 2)]
    assert set(s.held_out) == set(first) | set(second) and len(s.held_out) == len(first) + len(second)
    for kind in (first, second):
        assert len(set(kind) & set(s.validation_edges)) == len(kind) // 2
    assert set(names_of(s.full, FF)) - set(names_of(s.partial, FF)) == set(s.held_out)
    assert all(any(v == target for _, target in names_of(s.partial, FF)) for _, v in s.held_out)


def test_tiers_split_follows_the_published_shuffle():
    n, rng = 12, np.random.default_rng(0)
    first = [(f"f{k}", f"f{n + k}") for k in range(1, n - 1)]
    second = [(f"f{n + k}", "f23") for k in range(0, n - 1, 2)]
    rng.shuffle(first)
    rng.shuffle(second)
    s = converging_tiers(n)
    assert s.validation_edges == (*first[:5], *second[:3])
    assert s.test_edges == (*first[5:], *second[3:])


@pytest.mark.parametrize("width", [2, 0, 3.0, True])
def test_tiers_refuse_a_width(width):
    with pytest.raises(ValueError, match=f"width must be an int of at least 3, got {width}"):
        converging_tiers(width)


# -- pathways


def test_pathways_have_the_published_counts():
    s = disconnected_pathways()
    assert counts(s.model_graph) == [16, 8, 8]
    assert counts(s.full) == [8, 8, 8]
    assert [len(names) for names in (s.input_nodes, s.function_nodes, s.output_nodes)] == [8, 12, 8]
    assert s.membership.shape == (4, 12) and s.membership.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 9), st.integers(0, 5))
def test_pathways_are_disconnected_and_spurious_edges_cross(K, length, n_spurious, seed):
    n_spurious = min(n_spurious, K * (K - 1) * length * length)
    s = disconnected_pathways(K, length, n_spurious, seed)
    parts = list(nx.weakly_connected_components(s.graph))
    assert len(parts) == K
    for k, members in enumerate(s.membership.bool().tolist()):
        mine = {name for name, member in zip(s.function_nodes, members, strict=True) if member}
        assert len(mine) == length
        (part,) = [part for part in parts if mine & part]
        assert part == mine | {f"in{2 * k}", f"in{2 * k + 1}", f"o{2 * k}", f"o{2 * k + 1}"}
        assert nx.dag_longest_path_length(s.graph.subgraph(mine)) == length - 1
    place = {name: int(k) for name, k in zip(s.function_nodes, s.membership.argmax(0), strict=True)}
    assert len(set(s.spurious_edges)) == n_spurious
    assert all(place[u] != place[v] for u, v in s.spurious_edges)
    assert set(names_of(s.full, FF)) == set(s.true_edges)
    assert set(names_of(s.model_graph, FF)) == set(s.true_edges) | set(s.spurious_edges)


def test_pathway_data_know_nothing_of_spurious_edges():
    x, _, y, _ = disconnected_pathways().sample(4000, 0, noise_scale=0, seed=0)
    for k in range(4):
        np.testing.assert_allclose(y[:, 2 * k], x[:, 2 * k] + x[:, 2 * k + 1])


def test_pathways_refuse():
    with pytest.raises(ValueError, match="n_spurious must be at most 2, the pairs across, got 3"):
        disconnected_pathways(2, 1, 3)
    with pytest.raises(ValueError, match="n_pathways must be a positive int, got 0"):
        disconnected_pathways(0)


# -- random graphs


RANDOM_GRAPHS: list[Any] = [random_signed_dag, cyclic]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(RANDOM_GRAPHS),
    st.integers(2, 45),
    st.floats(0, 0.9),
    st.sampled_from(["linear", "tanh"]),
    st.integers(0, 1000),
)
def test_random_graphs(make, n, share, nonlinearity, seed):
    s = make(n, share, nonlinearity, seed)
    inputs, functions, outputs = set(s.input_nodes), set(s.function_nodes), set(s.output_nodes)
    assert len(functions) == n and set(s.graph) == inputs | functions | outputs
    assert nx.is_directed_acyclic_graph(s.graph) == (make is random_signed_dag)
    for f in functions:
        assert inputs & nx.ancestors(s.graph, f)
        assert outputs & nx.descendants(s.graph, f)
    assert all(s.graph.in_degree(o) >= 1 for o in outputs)
    assert all(s.graph.out_degree(i) == 1 for i in inputs)
    assert set(s.signed_edges) == set(s.graph.edges) and set(s.signed_edges.values()) <= {-1, 1}

    between = names_of(s.full, FF)
    assert set(s.held_out) <= set(between) and len(set(s.held_out)) == len(s.held_out)
    assert len(s.held_out) <= share * len(between)
    spared = len(between) - len({v for _, v in between})  # one parent of each target must stay
    assert len(s.held_out) == min(int(share * len(between)), spared)
    assert len(s.validation_edges) == len(s.held_out) // 2
    kept = names_of(s.partial, FF)
    assert set(kept) == set(between) - set(s.held_out)
    assert {v for _, v in kept} == {v for _, v in between}

    again = make(n, share, nonlinearity, seed)
    assert (
        list(again.graph.edges(data=True)) == list(s.graph.edges(data=True)) and again.held_out == s.held_out
    )


def test_default_random_graph_holds_out_thirty_per_cent_of_forty_functions():
    sizes = [len(names_of(random_signed_dag(seed=seed).full, FF)) for seed in range(20)]
    assert 65 < np.mean(sizes) < 85
    s = random_signed_dag(seed=3)
    assert len(s.function_nodes) == 40
    assert len(s.held_out) == int(0.3 * len(names_of(s.full, FF)))
    assert random_signed_dag(seed=4).held_out != s.held_out


@pytest.mark.parametrize("nonlinearity", ["linear", "tanh"])
def test_random_graph_data_follow_its_equations(nonlinearity):
    s = random_signed_dag(12, nonlinearity=nonlinearity, seed=1)
    x, _, y, _ = s.sample(50, 0, noise_scale=0, seed=0)
    value = dict(zip(s.input_nodes, x.T, strict=True))
    for node in nx.topological_sort(s.graph):
        if node not in value:
            total = sum(s.signed_edges[p, node] * value[p] for p in s.graph.predecessors(node))
            value[node] = np.tanh(total) if nonlinearity == "tanh" and node.startswith("f") else total
    np.testing.assert_allclose(y, np.stack([value[o] for o in s.output_nodes], axis=1), atol=1e-12)


def test_cyclic_data_are_bounded_and_depend_on_the_inputs():
    x, _, y, _ = cyclic(8, seed=0).sample(400, 0, noise_scale=0.05, seed=0)
    assert np.abs(y).max() < 5
    assert np.abs(np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]).max() > 0.3


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (random_signed_dag, {"n_functions": 1}, "n_functions must be an int of at least 2, got 1"),
        (random_signed_dag, {"n_inputs": 40}, "n_inputs must be an int from 1 to 39, got 40"),
        (random_signed_dag, {"n_outputs": 0}, "n_outputs must be a positive int, got 0"),
        (
            random_signed_dag,
            {"held_out_share": 1.0},
            "held_out_share must be in \\[0, 1\\), got 1.0",
        ),
        (
            random_signed_dag,
            {"nonlinearity": "relu"},
            "nonlinearity must be one of 'linear', 'tanh', got 'relu'",
        ),
        (random_signed_dag, {"mean_in_degree": 0.5}, "mean_in_degree must be at least 1, got 0.5"),
        (cyclic, {"n_chords": -1}, "n_chords must be an int of at least 0, got -1"),
        (cyclic, {"held_out_share": -0.1}, "held_out_share must be in \\[0, 1\\), got -0.1"),
    ],
)
def test_random_graphs_refuse(make, bad, message):
    with pytest.raises(ValueError, match=message):
        make(**bad)


# -- all of them

ALL = [converging_tiers, disconnected_pathways, random_signed_dag, cyclic]


@pytest.mark.parametrize("make", ALL)
def test_every_scenario(make):
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    s = make()
    parts = s.sample(6, 4, noise_scale=0.1, seed=0)
    shapes = [
        (6, len(s.input_nodes)),
        (4, len(s.input_nodes)),
        (6, len(s.output_nodes)),
        (4, len(s.output_nodes)),
    ]
    assert [part.shape for part in parts] == shapes
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])
    np.random.seed(3)
    drawn = s.sample(6, 4)
    np.random.seed(3)
    assert same(drawn, s.sample(6, 4))
    assert isinstance(s.full, HeteroGraph) and s.full is s.full
    for other in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s)):
        assert same(other.sample(6, 4, noise_scale=0.1, seed=0), parts)
        assert other.full == s.full and other.held_out == s.held_out
    with pytest.raises(AttributeError):
        s.test_edges = ()
    with pytest.raises(nx.NetworkXError, match="Frozen graph"):
        s.graph.add_edge("in0", "o0")
