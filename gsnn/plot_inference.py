"""Pictures of how well edge inferers find known missing edges; the same for every inferer's table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from gsnn.functional.ranking import auc
from gsnn.optim.edge_table import check_edges, rank_in_targets
from gsnn.plot import BLUE, GREEN, ORANGE, SKY, VERMILLION, Edge, _axes, _bare

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

    if not tables:
        raise ValueError("tables must hold at least one table, got none")
    positives = list(positive_edges)
    ax = _axes(ax, (4.4, 4.2))
    ax.plot([0, 1], [0, 1], color="0.8", lw=0.8)
    for (name, table), (colour, style) in zip(tables.items(), cycle(_STYLES)):
        names = set(table["src_func"]) | set(table["dst_func"])
        wanted = set(check_edges(positives, names))
        rows = table[~table["has_edge"].astype(bool) & (table["src_func"] != table["dst_func"])]
        truth = np.array([pair in wanted for pair in zip(rows["src_func"], rows["dst_func"], strict=True)])
        scores = rows[score_column(table)].to_numpy(float)
        ranked = np.where(np.isnan(scores), np.finfo(float).min, scores)
        false, true, _ = roc_curve(truth, ranked)
        label = f"{name}, AUC {auc(scores, truth):.3f}"
        ax.plot(false, true, style, color=colour, lw=1.6, label=label)
    ax.set(xlabel="negatives ranked above (share)", ylabel="positives found (share)", aspect="equal")
    ax.legend(frameon=False, loc="lower right")
    _bare(ax)
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
    ax = _axes(ax, (4.8, 0.9 + 0.24 * len(detail)))
    places = np.arange(len(detail))
    ax.hlines(places, 1, detail["rank"], color=SKY, lw=1.2)
    ax.plot(detail["rank"], places, "o", color=BLUE, ms=5)
    ax.set_yticks(places, [f"{s} → {t}" for s, t in zip(detail["src_func"], detail["dst_func"], strict=True)])
    ax.set(xlabel="rank of the source (1 is best)", title=f"mean reciprocal rank {summary['mrr']:.2f}")
    ax.set_xlim(0.5, max(float(detail["rank"].max()), 2) + 0.5)
    _bare(ax)
    return ax
