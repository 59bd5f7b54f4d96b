"""Pictures: what is drawn where, and that nothing outside the Axes changes."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from gsnn import plot
from gsnn.graph import HeteroGraph
from gsnn.plot.layout import depths, layout, nodes_and_edges
from gsnn.train import History


@pytest.fixture(autouse=True)
def nothing_leaks():
    style = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == style
    plt.close("all")


def chain(n, cycle=False):
    """in -> f0 -> f1 -> ... -> out, and back to f0 with ``cycle``."""
    steps = [(i, i + 1) for i in range(n - 1)] + ([(n - 1, 0)] if cycle else [])
    return HeteroGraph(
        {
            ("input", "to", "function"): torch.tensor([[0], [0]]),
            ("function", "to", "function"): torch.tensor(steps).T,
            ("function", "to", "output"): torch.tensor([[n - 1], [0]]),
        },
        {"input": ["in"], "function": [f"f{i}" for i in range(n)], "output": ["out"]},
    )


def colours(ax):
    return [to_hex(p.get_edgecolor()) for p in ax.patches if isinstance(p, FancyArrowPatch)]


def labels(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def history(train, val=None, best=1):
    val = [np.nan] * len(train) if val is None else val
    return History(tuple(train), tuple(val), (0.1,) * len(train), best, False)


def test_learning_curve_of_one_run():
    ax = plot.learning_curve(history([3, 2, 1], [3, 2.5, 2.7], best=2))
    assert labels(ax) == ["training", "validation"]
    (train, val, dot) = ax.lines
    np.testing.assert_array_equal(train.get_ydata(), [3, 2, 1])
    np.testing.assert_array_equal(val.get_xdata(), [1, 2, 3])
    assert (np.asarray(dot.get_xdata())[0], np.asarray(dot.get_ydata())[0]) == (2, 2.5)
    assert train.get_linestyle() != val.get_linestyle()  # told apart without colour


def test_learning_curve_of_folds_without_validation():
    ax = plot.learning_curve([history([4, 2]), history([2, 2, 2])])
    assert labels(ax) == ["training (mean of 2)"]
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), [3, 2])


def test_learning_curve_switches_to_a_log_axis_for_wide_ranges():
    assert plot.learning_curve(history([100, 1])).get_yscale() == "log"
    assert plot.learning_curve(history([3, 1])).get_yscale() == "linear"
    with pytest.raises(ValueError, match="at least one History, got none"):
        plot.learning_curve([])


def test_predicted_vs_measured_leaves_gaps_out():
    y = np.array([[1.0, np.nan], [2.0, 5.0]])
    ax = plot.predicted_vs_measured(y, np.array([[1.5, 7.0], [2.0, 6.0]]))
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[1, 1.5], [2, 2], [5, 6]])
    assert ax.get_title() == f"3 measured values, r = {np.corrcoef([1, 2, 5], [1.5, 2, 6])[0, 1]:.2f}"
    with pytest.raises(ValueError, match=r"same shape, got \(2, 2\) and \(2,\)"):
        plot.predicted_vs_measured(y, [1, 2])
    with pytest.raises(ValueError, match="at least one finite value"):
        plot.predicted_vs_measured([np.nan], [1.0])


def test_predicted_vs_measured_of_constant_predictions():
    assert plot.predicted_vs_measured([1.0, 2.0], [1.5, 1.5]).get_title() == "2 measured values"


def by_edges(**more):
    values = {
        "budget": [0, 5, 20],
        "r2": [0.4, 0.6, 0.7],
        "r2_low": [0.3, 0.5, 0.6],
        "r2_high": [0.5, 0.8, 0.9],
    }
    random = {"random": [0.4, 0.4, 0.5], "random_low": [0.3, 0.3, 0.4], "random_high": [0.5, 0.5, 0.6]}
    return pd.DataFrame(values | random | {"gain": [0, 0.2, 0.2], "gain_low": 0.0, "gain_high": 0.3} | more)


def test_r2_by_edges():
    ax = plot.r2_by_edges(by_edges(ridge=0.9, ridge_low=0.8, ridge_high=1.0, mlp=0.8))
    assert labels(ax) == ["ridge", "MLP", "edges chosen", "random edges"]
    chosen, random = ax.containers
    np.testing.assert_array_equal(chosen[0].get_xydata(), [[0, 0.4], [5, 0.6], [20, 0.7]])
    np.testing.assert_array_equal(random[0].get_ydata(), [0.4, 0.4, 0.5])
    bars = [segment[:, 1] for segment in chosen[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[0.3, 0.5], [0.5, 0.8], [0.6, 0.9]])
    levels = {
        line.get_label(): np.asarray(line.get_ydata())[0]
        for line in ax.lines
        if line.get_label() in labels(ax)
    }
    assert levels == {"ridge": 0.9, "MLP": 0.8}
    assert chosen[0].get_linestyle() != random[0].get_linestyle()
    with pytest.raises(ValueError, match="table must have the columns budget, .*, got none named random_low"):
        plot.r2_by_edges(by_edges().drop(columns="random_low"))


def test_given_axes_are_used():
    figure, axes = plt.subplots(1, 3)
    assert plot.learning_curve(history([1, 2]), ax=axes[0]) is axes[0]
    assert plot.predicted_vs_measured([1.0, 2], [2.0, 1], ax=axes[1]) is axes[1]
    assert plot.layered_graph(chain(3), ax=axes[2]) is axes[2]
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("cycle", [False, True])
def test_layers_run_from_left_to_right(cycle):
    nodes, edges = nodes_and_edges(chain(5, cycle))
    place = layout(nodes, edges)
    assert [place["function", f"f{i}"][0] for i in range(5)] == [1, 2, 3, 4, 5]
    assert place["input", "in"][0] == 0 and place["output", "out"][0] == 6


def test_depth_is_the_longest_path_and_sources_stand_before_what_they_feed():
    functions = [("function", str(i)) for i in range(5)]
    pairs = [(0, 1), (1, 2), (0, 2), (4, 2)]
    depth = depths(functions, [(functions[a], functions[b]) for a, b in pairs])
    assert [depth[f] for f in functions] == [0, 1, 2, 0, 1]


def test_nodes_of_a_layer_do_not_overlap():
    graph = HeteroGraph(
        {
            ("input", "to", "function"): torch.tensor([[0] * 8, range(8)]),
            ("function", "to", "function"): torch.tensor([[0, 1], [8, 8]]),
            ("function", "to", "output"): torch.tensor([[8], [0]]),
        },
        {"input": ["i"], "function": [f"f{i}" for i in range(9)], "output": ["o"]},
    )
    place = layout(*nodes_and_edges(graph))
    assert len(set(place.values())) == len(place) == 11


def test_edges_by_kind():
    ax = plot.layered_graph(
        chain(4), inferred=[("f0", "f2"), ("f3", "f1")], held_out=[("f0", "f2"), ("f1", "f3")]
    )
    drawn = colours(ax)
    assert drawn.count(plot.GREEN.lower()) == 1
    assert drawn.count(plot.VERMILLION.lower()) == 1
    assert drawn.count(plot.BLUE.lower()) == 1
    assert len(drawn) == 3 + 5
    assert labels(ax) == [
        "held out, not found (1)",
        "inferred (1)",
        "inferred and held out (1)",
        "in the graph",
    ]
    names = {t.get_text() for t in ax.texts}
    assert {"in", "f0", "f1", "f2", "f3", "out"} <= names


def test_inputs_that_feed_most_nodes_are_noted_not_drawn():
    n = 12
    graph = HeteroGraph(
        {
            ("input", "to", "function"): torch.tensor([[0] * n + [1], [*range(n), 0]]),
            ("function", "to", "function"): torch.tensor([range(n - 1), range(1, n)]),
            ("function", "to", "output"): torch.tensor([[n - 1], [0]]),
        },
        {"input": ["line", "drug"], "function": [f"f{i}" for i in range(n)], "output": ["o"]},
    )
    ax = plot.layered_graph(graph)
    assert len(colours(ax)) == n - 1 + 1 + 1
    assert any("not drawn" in t.get_text() and "line" in t.get_text() for t in ax.texts)


def test_big_graphs_are_cut_to_the_surroundings():
    ax = plot.layered_graph(chain(400), inferred=[("f100", "f103")], max_nodes=30)
    shown = {t.get_text() for t in ax.texts}
    assert {"f99", "f100", "f101", "f102", "f103", "f104"} <= shown
    assert "f300" not in shown
    assert any("of 402 nodes" in t for t in shown)
    assert sum(t.startswith("f") for t in shown) <= 30
    everywhere = plot.layered_graph(chain(400), max_nodes=30)
    assert 1 <= sum(t.get_text().startswith("f") for t in everywhere.texts) <= 30


def test_same_name_in_two_types():
    graph = HeteroGraph(
        {
            ("input", "to", "function"): torch.tensor([[0], [0]]),
            ("function", "to", "function"): torch.tensor([[0], [0]]),
            ("function", "to", "output"): torch.tensor([[0], [0]]),
        },
        {"input": ["x"], "function": ["x"], "output": ["x"]},
    )
    ax = plot.layered_graph(graph)
    assert [t.get_text() for t in ax.texts].count("x") == 3


def test_unknown_nodes_are_refused():
    with pytest.raises(ValueError, match="must join function nodes, got 'in'"):
        plot.layered_graph(chain(3), inferred=[("in", "f0")])


def activation(n, seed=0, channels=3):
    """One pattern over n samples, in channels of different sign and size: its component is the pattern."""
    pattern = np.random.default_rng(seed).normal(size=n)
    return pattern, torch.tensor(np.outer(pattern, [-0.5, 2.0, 0.1][:channels]) + 7.0)


def test_activations_are_rows_by_pathway():
    (p, a), (q, b), (_, c) = activation(9), activation(9, 1), activation(9, 2)
    ax = plot.pathway_activations(
        {"x": a, "y": b, "z": c, "x2": -3 * a}, {"one": ["x", "x2"], "two": ["y", "x"]}
    )
    drawn = ax.get_images()[0].get_array()
    assert drawn is not None
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x", "x2", "y", "x", "z"]
    np.testing.assert_allclose(drawn.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(drawn.std(1), 1)
    np.testing.assert_allclose(drawn[0], drawn[1])  # the sign follows the rows above in the pathway
    assert abs(np.corrcoef(drawn[0], p)[0, 1]) == pytest.approx(1)
    assert abs(np.corrcoef(drawn[2], q)[0, 1]) == pytest.approx(1)
    assert drawn[2] @ drawn[3] >= 0
    assert [(t.get_text(), t.get_position()[1]) for t in ax.texts] == [
        ("one", 0.5),
        ("two", 2.5),
        ("in none", 4),
    ]


def test_activations_of_one_condition_stand_together():
    p, a = activation(6)
    labels = ["drug", "none", "drug", "none", "none", "drug"]
    ax = plot.pathway_activations(
        {"x": a, "still": torch.ones(6, 3)}, {"k": ["x", "still"]}, conditions=labels
    )
    drawn = ax.get_images()[0].get_array()
    assert drawn is not None
    wanted = p[[0, 2, 5, 1, 3, 4]]
    np.testing.assert_allclose(abs(drawn[0]), abs((wanted - p.mean()) / p.std()), atol=1e-9)
    np.testing.assert_array_equal(drawn[1], 0)  # a constant has no component
    assert [(t.get_text(), x) for t, x in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)] == [
        ("drug", 1),
        ("none", 4),
    ]


def test_activations_refuse_what_does_not_fit():
    act = {"x": torch.ones(4, 2)}
    with pytest.raises(ValueError, match="pathways must hold at least one pathway, got none"):
        plot.pathway_activations(act, {})
    with pytest.raises(
        ValueError, match=r"pathways\['p'\] must name nodes that have activations, got 'ghost'"
    ):
        plot.pathway_activations(act, {"p": ["x", "ghost"]})
    with pytest.raises(ValueError, match=r"pathways\['p'\] must name nodes that have activations, got none"):
        plot.pathway_activations(act, {"p": []})
    with pytest.raises(ValueError, match="conditions must hold 4 labels, one a sample, got 2"):
        plot.pathway_activations(act, {"p": ["x"]}, conditions=["a", "b"])
