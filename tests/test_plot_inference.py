"""Pictures of an inferer's table: what is drawn says what the table says."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.metrics import average_precision_score, precision_recall_curve

from gsnn.plot import GREEN
from gsnn.plot import inference as plot_inference

NODES = ["b", "a", "c", "d"]  # not in alphabetical order: the graph's order counts
KEPT = {("b", "a"), ("a", "c")}
HELD_OUT = [("b", "c"), ("d", "a"), ("c", "d")]


@pytest.fixture(autouse=True)
def nothing_leaks():
    style = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == style
    plt.close("all")


@pytest.fixture
def table():
    """Scores that are all different, one missing, best row first."""
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    scores = np.random.default_rng(3).uniform(-1, 1, len(pairs))
    scores[pairs.index((3, 2))] = np.nan
    frame = pd.DataFrame(pairs, columns=["src_idx", "dst_idx"])
    for side, name in (("src_idx", "src_func"), ("dst_idx", "dst_func")):
        frame[name] = [NODES[i] for i in frame[side]]
    frame["corr"] = scores
    frame["has_edge"] = [pair in KEPT for pair in zip(frame["src_func"], frame["dst_func"], strict=True)]
    return frame.sort_values("corr", ascending=False, ignore_index=True)


def test_precision_recall_agrees_with_scikit_learn(table):
    ax = plot_inference.precision_recall({"here": table}, HELD_OUT)
    (curve,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("here")]
    rows = table[~table["has_edge"]]
    truth = [pair in HELD_OUT for pair in zip(rows["src_func"], rows["dst_func"], strict=True)]
    scores = rows["corr"].fillna(-9.0)
    x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    assert curve.get_drawstyle() == "steps-pre"
    area = float(np.sum(np.diff(x) * y[1:]))  # a step before each point
    assert area == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert f"AP {area:.3f}" in str(curve.get_label())
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert {(r, p) for r, p in zip(x[1:], y[1:], strict=True)} <= set(zip(recall, precision, strict=True))
    (chance,) = [line for line in ax.get_lines() if line is not curve]
    assert np.asarray(chance.get_ydata())[0] == pytest.approx(len(HELD_OUT) / len(rows))


def test_precision_recall_of_a_perfect_and_a_useless_order(table):
    table["corr"] = [
        1.0 if pair in HELD_OUT else 0.0 for pair in zip(table["src_func"], table["dst_func"], strict=True)
    ]
    table["score"] = 1.0
    ax = plot_inference.precision_recall({"perfect": table.drop(columns="score"), "useless": table}, HELD_OUT)
    perfect, useless = (
        next(c for c in ax.get_lines() if n in str(c.get_label())) for n in ("perfect", "useless")
    )
    assert set(np.asarray(perfect.get_ydata())) == {1.0}
    assert useless.get_ydata() == pytest.approx([3 / 10, 3 / 10])
    assert perfect.get_linestyle() != useless.get_linestyle()  # told apart without colour


@pytest.mark.parametrize("draw", [plot_inference.precision_recall, plot_inference.roc])
def test_curves_refuse_nothing_to_draw(draw, table):
    with pytest.raises(ValueError, match="tables must hold at least one table"):
        draw({}, HELD_OUT)
    with pytest.raises(ValueError, match="ghost"):
        draw({"here": table}, [("ghost", "a")])


def test_heat_map_has_every_score_in_its_cell(table):
    ax = plot_inference.score_heatmap(table, positive_edges=HELD_OUT)
    (image,) = ax.get_images()
    drawn = image.get_array()
    assert isinstance(drawn, np.ma.MaskedArray)
    for row in table.itertuples():
        cell = drawn[row.src_idx, row.dst_idx]
        assert cell is np.ma.masked if np.isnan(row.corr) else cell == row.corr
    assert all(np.ma.getmaskarray(drawn)[i, i] for i in range(4))
    assert (
        [t.get_text() for t in ax.get_xticklabels()] == NODES == [t.get_text() for t in ax.get_yticklabels()]
    )
    assert image.get_clim() == (-table["corr"].abs().max(), table["corr"].abs().max())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target", "source")


def test_heat_map_marks_kept_and_held_out_edges(table):
    ax = plot_inference.score_heatmap(table, positive_edges=HELD_OUT)
    kept, frames = ax.collections[:2]
    at = {name: k for k, name in enumerate(NODES)}
    assert {tuple(p) for p in np.asarray(kept.get_offsets())} == {(at[v], at[u]) for u, v in KEPT}
    assert {tuple(p) for p in np.asarray(frames.get_offsets())} == {(at[v], at[u]) for u, v in HELD_OUT}
    assert to_hex(np.asarray(frames.get_edgecolor())[0]) == GREEN.lower()
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["in the graph", "held out"]


def test_heat_map_of_positive_scores_starts_at_zero_and_names_are_optional(table):
    table = table.rename(columns={"corr": "score"}).assign(score=lambda t: t["score"].abs())
    ax = plot_inference.score_heatmap(table, names=False)
    assert ax.get_images()[0].get_clim() == (0.0, table["score"].max())
    assert list(ax.get_xticks()) == [] or not any(t.get_text() in NODES for t in ax.get_xticklabels())
    legend = ax.get_legend()
    assert legend is not None and len(legend.get_texts()) == 1
    with pytest.raises(ValueError, match="ghost"):
        plot_inference.score_heatmap(table, positive_edges=[("ghost", "a")])


def test_given_axes_are_used(table):
    figure, axes = plt.subplots(1, 2)
    assert plot_inference.precision_recall({"t": table}, HELD_OUT, ax=axes[0]) is axes[0]
    assert plot_inference.score_heatmap(table, ax=axes[1]) is axes[1]
    assert plt.get_fignums() == [figure.number]
