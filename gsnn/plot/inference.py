"""Pictures of how well edge inferers find known missing edges; the same for every inferer's table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from gsnn.optim.edge_table import check_edges, rank_in_targets
from gsnn.plot.layout import Edge
from gsnn.plot.style import BLUE, GREEN, ORANGE, SKY, VERMILLION, axes_for, bare
from gsnn.stats.ranking import auc, average_precision

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_STYLES = tuple(zip((BLUE, VERMILLION, GREEN, ORANGE, SKY), ("-", "--", "-.", ":", "-"), strict=True))


def score_column(table: pd.DataFrame) -> str:
    """``score`` where an inferer's table has it, else ``corr``."""
    for name in ("score", "corr"):
        if name in table.columns:
            return name
    raise ValueError(f"table must have a column 'score' or 'corr', got {', '.join(map(str, table.columns))}")


def roc(
    tables: Mapping[str, pd.DataFrame], positive_edges: Iterable[Edge], *, ax: Axes | None = None
) -> Axes:
    """ROC curve of each table: positives against all other pairs that are neither kept edges nor self.

    Args:
        tables: name -> a table as every inferer's ``evaluate`` returns it.
        positive_edges: (source, target) names of true edges that the graph lacks.
        ax: where to draw.

    A missing score ranks last. The legend gives each AUC.
    """
    from sklearn.metrics import roc_curve

    ax = axes_for(ax, (4.4, 4.2))
    ax.plot([0, 1], [0, 1], color="0.8", lw=0.8)
    for (name, scores, truth), (colour, style) in zip(_judged(tables, positive_edges), cycle(_STYLES)):
        ranked = np.where(np.isnan(scores), np.finfo(float).min, scores)
        false, true, _ = roc_curve(truth, ranked)
        label = f"{name}, AUC {auc(scores, truth):.3f}"
        ax.plot(false, true, style, color=colour, lw=1.6, label=label)
    ax.set(xlabel="negatives ranked above (share)", ylabel="positives found (share)", aspect="equal")
    ax.legend(frameon=False, loc="lower right")
    bare(ax)
    return ax


def precision_recall(
    tables: Mapping[str, pd.DataFrame], positive_edges: Iterable[Edge], *, ax: Axes | None = None
) -> Axes:
    """Precision against recall of each table, positives and negatives as in :func:`roc`.

    Args:
        tables: name -> a table as every inferer's ``evaluate`` returns it.
        positive_edges: (source, target) names of true edges that the graph lacks.
        ax: where to draw.

    Where few pairs are true, this says more than the ROC curve: precision is the share of true edges among
    the rows down to a score, which is what an experiment on the top rows would find. The legend gives each
    average precision, the area under the steps; the grey line is the precision of a random order. A missing
    score ranks last.
    """
    from sklearn.metrics import precision_recall_curve

    ax = axes_for(ax, (4.4, 4.2))
    chance = []
    for (name, scores, truth), (colour, style) in zip(_judged(tables, positive_edges), cycle(_STYLES)):
        ranked = np.where(np.isnan(scores), np.finfo(float).min, scores)
        precision, recall, _ = precision_recall_curve(truth, ranked)
        # From the best score down, each further positive is a step at the precision with which it is found.
        recall, first = np.unique(recall[::-1], return_index=True)
        precision = precision[::-1][first]
        precision[0] = precision[1]  # nothing found yet, where precision is not defined
        label = f"{name}, AP {average_precision(scores, truth):.3f}"
        ax.plot(recall, precision, style, color=colour, lw=1.6, drawstyle="steps-pre", label=label)
        chance.append(truth.mean())
    ax.axhline(float(np.mean(chance)), color="0.8", lw=0.8, zorder=0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), aspect="equal")
    ax.set(xlabel="positives found (share)", ylabel="true among these rows (share)")
    ax.legend(frameon=False, loc="best")
    bare(ax)
    return ax


def score_heatmap(
    table: pd.DataFrame,
    *,
    positive_edges: Iterable[Edge] = (),
    names: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The score of every pair, sources down and targets across, in the order of the function nodes.

    Args:
        table: as every inferer's ``evaluate`` returns it; pairs without a row or a score stay grey.
        positive_edges: (source, target) names of missing edges that are known to be true: framed.
        names: whether to name the nodes; by default where there are at most 60.
        ax: where to draw.

    A dot marks a kept edge. Scores of both signs have a colour scale centred at 0. A column is a target's
    whole list of candidates, so a column that is dark from top to bottom is a node to which everything seems
    to lead, not many finds.
    """
    positives = list(positive_edges)
    column = score_column(table)
    known = set(table["src_func"]) | set(table["dst_func"])
    if positives:
        check_edges(positives, known)
    number = dict(zip(table["src_func"], table["src_idx"], strict=True))
    number |= dict(zip(table["dst_func"], table["dst_idx"], strict=True))
    order = sorted(known, key=lambda name: number[name])
    at = {name: k for k, name in enumerate(order)}
    rows, columns = (table[side].map(at).to_numpy() for side in ("src_func", "dst_func"))
    grid = np.full((len(order), len(order)), np.nan)
    grid[rows, columns] = table[column].to_numpy(float)

    width = min(max(3.6, 1.8 + 0.16 * len(order)), 14.0)
    ax = axes_for(ax, (width + 0.9, width))
    shown = grid[np.isfinite(grid)]
    most = float(np.abs(shown).max()) if shown.size else 1.0
    signed = bool(shown.size and shown.min() < 0)
    ax.set_facecolor("0.88")
    image = ax.imshow(grid, cmap="PuOr_r" if signed else "cividis", vmin=-most if signed else 0.0, vmax=most)
    ax.figure.colorbar(image, ax=ax, label=column, shrink=0.8)
    kept = table["has_edge"].to_numpy(bool)
    size = float(np.clip(600 / len(order), 3, 30))
    ax.scatter(columns[kept], rows[kept], s=size, c="black", edgecolors="white", lw=0.5, label="in the graph")
    if positives:
        xs, ys = zip(*((at[v], at[u]) for u, v in positives), strict=True)
        ax.scatter(
            xs, ys, s=5 * size, marker="s", facecolors="none", edgecolors=GREEN, lw=1.6, label="held out"
        )
    if names if names is not None else len(order) <= 60:
        ax.set_xticks(range(len(order)), order, rotation=90, fontsize=7, parse_math=False)
        ax.set_yticks(range(len(order)), order, fontsize=7, parse_math=False)
    ax.set(xlabel="target", ylabel="source", xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5))
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, borderaxespad=0.2)
    return ax


def held_out_ranks(table: pd.DataFrame, positive_edges: Iterable[Edge], *, ax: Axes | None = None) -> Axes:
    """Raw rank of each positive edge's source among all sources of its target, best edge on top.

    Args:
        table: as every inferer's ``evaluate`` returns it.
        positive_edges: (source, target) names.
        ax: where to draw.
    """
    detail, summary = rank_in_targets(table, positive_edges, score_column(table))
    detail = detail.sort_values("rank", kind="stable").iloc[::-1]
    ax = axes_for(ax, (4.8, 0.9 + 0.24 * len(detail)))
    places = np.arange(len(detail))
    ax.hlines(places, 1, detail["rank"], color=SKY, lw=1.2)
    ax.plot(detail["rank"], places, "o", color=BLUE, ms=5)
    labels = [f"{s} → {t}" for s, t in zip(detail["src_func"], detail["dst_func"], strict=True)]
    ax.set_yticks(places, labels, parse_math=False)
    ax.set(xlabel="rank of the source (1 is best)", title=f"mean reciprocal rank {summary['mrr']:.2f}")
    ax.set_xlim(0.5, max(float(detail["rank"].max()), 2) + 0.5)
    bare(ax)
    return ax


def _judged(
    tables: Mapping[str, pd.DataFrame], positive_edges: Iterable[Edge]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, scores, truth) of each table, over the pairs that are neither kept edges nor self."""
    if not tables:
        raise ValueError("tables must hold at least one table, got none")
    positives = list(positive_edges)
    judged = []
    for name, table in tables.items():
        names = set(table["src_func"]) | set(table["dst_func"])
        wanted = set(check_edges(positives, names))
        rows = table[~table["has_edge"].astype(bool) & (table["src_func"] != table["dst_func"])]
        pairs = zip(rows["src_func"], rows["dst_func"], strict=True)
        truth = np.array([pair in wanted for pair in pairs])
        judged.append((name, rows[score_column(table)].to_numpy(float), truth))
    return judged
