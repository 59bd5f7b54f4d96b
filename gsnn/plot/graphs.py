"""Pictures of graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gsnn._text import some_names
from gsnn.graph.container import as_graph
from gsnn.plot.layout import Edge, Node, busy_inputs, layout, nodes_and_edges, surroundings
from gsnn.plot.style import BLUE, GREEN, ORANGE, SKY, VERMILLION, axes_for

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def layered_graph(
    graph: Any,
    *,
    inferred: Iterable[Edge] = (),
    held_out: Iterable[Edge] = (),
    max_nodes: int = 150,
    ax: Axes | None = None,
) -> Axes:
    """The graph in layers: inputs left, function nodes by depth, outputs right.

    Kept edges are grey. ``inferred`` function -> function edges are drawn on top in vermillion; with
    ``held_out`` (edges known to be true but not in the graph) those found are green, those not found
    dashed blue. Edges of an input that feeds most of the function nodes are left out, with a note, as
    they would cover everything else. A graph of more than ``max_nodes`` nodes is cut to the surroundings
    of the coloured edges.

    Raises:
        ValueError: an edge names an unknown function node.
    """
    from matplotlib.patheffects import withStroke

    graph = as_graph(graph, warn=False)
    inferred, held_out = [(u, v) for u, v in inferred], [(u, v) for u, v in held_out]
    known = set(graph.node_names_dict["function"])
    unknown = [n for edge in inferred + held_out for n in edge if n not in known]
    if unknown:
        raise ValueError(f"inferred and held_out edges must join function nodes, got {some_names(unknown)}")
    found = [e for e in inferred if e in set(held_out)]
    other = [e for e in inferred if e not in set(held_out)]
    missed = [e for e in held_out if e not in set(inferred)]
    coloured = [*found, *other, *missed]

    ends = {name for edge in coloured for name in edge}

    nodes, edges = nodes_and_edges(graph)
    busy = busy_inputs(nodes, edges)
    edges = [e for e in edges if e[0] not in busy]
    total = len(nodes)
    if total > max_nodes:
        nodes, edges = surroundings(nodes, edges, coloured, min(max_nodes, max(50, 2 * len(ends))))
    place = layout(nodes, edges)
    columns = max((x for x, _ in place.values()), default=1.0) + 1
    height = max(y for _, y in place.values()) - min(y for _, y in place.values()) + 1
    ax = axes_for(ax, (min(max(1.05 * columns, 7.0), 18.0), min(max(0.4 * height + 1.2, 3.5), 18.0)))

    font = 8.0 if len(nodes) <= 60 else 6.5
    grey = "0.72" if len(edges) < 250 else "0.85"
    for source, target in edges:
        _arrow(ax, place[source], place[target], color=grey, lw=0.7, z=1)
    for group, colour, style, label in (
        (missed, BLUE, (0, (4, 2)), "held out, not found"),
        (other, VERMILLION, "-", "inferred"),
        (found, GREEN, "-", "inferred and held out" if held_out else "inferred"),
    ):
        for u, v in group:
            if ("function", u) in place and ("function", v) in place:
                start, end = place["function", u], place["function", v]
                _arrow(ax, start, end, color=colour, lw=1.8, z=6, style=style, bend=0.15)
        if group:
            ax.plot([], [], color=colour, ls=style, lw=1.8, label=f"{label} ({len(group)})")
    ax.plot([], [], color=grey, lw=0.9, label="in the graph")
    for kind, colour, marker in (("input", SKY, "s"), ("function", "white", "o"), ("output", ORANGE, "s")):
        points = [place[n] for n in nodes if n[0] == kind]
        if points:
            xs, ys = zip(*points, strict=True)
            ax.scatter(xs, ys, s=42, c=colour, marker=marker, edgecolors="0.25", linewidths=0.8, zorder=7)
        for _, name in (n for n in nodes if n[0] == kind):
            x, y = place[kind, name]
            side = {"input": (-6, 0, "right", "center"), "output": (6, 0, "left", "center")}
            dx, dy, ha, va = side.get(kind, (3, 5, "left", "bottom"))
            ax.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=font,
                fontweight="bold" if kind == "function" and name in ends else "normal",
                parse_math=False,  # a name may hold a $
                path_effects=[withStroke(linewidth=2, foreground="white")],
                zorder=8,
            )
    notes = []
    if busy:
        names = some_names(sorted(name for _, name in busy), str)
        notes.append(f"edges not drawn: inputs that feed most function nodes ({names})")
    if total > len(nodes):
        notes.append(f"{len(nodes)} of {total} nodes: the surroundings of the coloured edges")
    if notes:
        ax.text(
            0.0,
            -0.01,
            "\n".join(notes),
            transform=ax.transAxes,
            fontsize=7,
            color="0.35",
            va="top",
            parse_math=False,
        )
    ax.legend(
        frameon=False,
        fontsize=8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2 if columns < 9 else 4,
    )
    ax.margins(x=0.08, y=0.06)
    ax.set_axis_off()
    return ax


def explanation(graph: Any, table: pd.DataFrame, *, top: int = 20, ax: Axes | None = None) -> Axes:
    """The strongest ``top`` edges or nodes of an attribution, drawn on the graph.

    Positive scores are vermillion, negative ones blue; the width (of edges) or area (of nodes) goes with what
    the table is ordered by (``attrs['ordered_by']``: of edges and nodes over samples the spread), or else
    with the score. A graph of more than 150 nodes is cut to the surroundings of what is drawn.

    Args:
        graph: the model's graph.
        table: what :func:`gsnn.explain.attribution.attribute` or ``contrast`` returned,
            averaged over samples.

    Raises:
        ValueError: the table has neither ``source, target, score`` nor ``name, score``, or names an unknown
            node.
    """
    graph = as_graph(graph, warn=False)
    pairs = {"source", "target", "score"} <= set(table.columns)
    if not pairs and not {"name", "score"} <= set(table.columns):
        raise ValueError(
            f"table must have the columns source, target, score or name, score, got {list(table.columns)}"
        )
    nodes, edges = nodes_and_edges(graph)
    kinds: dict[str, list[Node]] = {}
    for node in nodes:
        kinds.setdefault(node[1], []).append(node)
    size = table[table.attrs.get("ordered_by", "score")].abs()
    signed = table.assign(score=size.where(table["score"] >= 0, -size))
    ranked = signed.loc[size.sort_values(ascending=False, kind="stable").index].head(top)
    named = [*ranked["source"], *ranked["target"]] if pairs else list(ranked["name"])
    if unknown := [name for name in named if name not in kinds]:
        raise ValueError(f"table must name nodes of the graph, got {some_names(unknown)}")
    strength = dict(zip(edges, [0.0] * len(edges), strict=True))
    area: dict[Node, float] = {}
    if pairs:
        for source, target, score in zip(ranked["source"], ranked["target"], ranked["score"], strict=True):
            for edge in ((u, v) for u in kinds[source] for v in kinds[target]):
                if edge in strength:
                    strength[edge] = float(score)
    else:
        scored = zip(ranked["name"], ranked["score"], strict=True)
        area = {node: float(score) for name, score in scored for node in kinds[name]}
    drawn = [edge for edge, score in strength.items() if score]
    if len(nodes) > 150:
        core = [(u[1], v[1]) for u, v in drawn] or [(name, name) for _, name in area]
        nodes, edges = surroundings(nodes, edges, core, 150)
    place = layout(nodes, edges)
    columns = max((x for x, _ in place.values()), default=1.0) + 1
    height = max(y for _, y in place.values()) - min(y for _, y in place.values()) + 1
    ax = axes_for(ax, (min(max(1.05 * columns, 7.0), 18.0), min(max(0.4 * height + 1.2, 3.5), 18.0)))
    largest = max((abs(score) for score in [*strength.values(), *area.values()]), default=0.0) or 1.0
    for u, v in edges:
        score = strength.get((u, v), 0.0)
        colour = VERMILLION if score > 0 else BLUE if score < 0 else "0.85"
        width = 0.6 + 3.0 * abs(score) / largest
        _arrow(ax, place[u], place[v], color=colour, lw=width, z=6 if score else 1)
    shown = {end for edge in drawn for end in edge} | set(area)
    for node in nodes:
        score = area.get(node, 0.0)
        colour = VERMILLION if score > 0 else BLUE if score < 0 else "white" if node in shown else "0.9"
        x, y = place[node]
        size = 30 + 200 * abs(score) / largest
        ax.scatter([x], [y], s=size, c=colour, edgecolors="0.25", linewidths=0.8, zorder=7)
        if node in shown or len(nodes) <= 60:
            ax.annotate(
                node[1],
                (x, y),
                (3, 5),
                textcoords="offset points",
                fontsize=8.0 if len(nodes) <= 60 else 6.5,
                color="black" if node in shown else "0.5",
                parse_math=False,  # a name may hold a $
                zorder=8,
            )
    for colour, label in ((VERMILLION, "raises the prediction"), (BLUE, "lowers it")):
        ax.plot([], [], color=colour, lw=2, label=label)
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    ax.margins(x=0.08, y=0.06)
    ax.set_axis_off()
    return ax


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str,
    lw: float,
    z: float,
    style: Any = "-",
    bend: float = 0.0,
) -> None:
    from matplotlib.patches import FancyArrowPatch

    if start[0] == end[0]:  # within a column a straight line would run through the nodes between
        bend = 0.35
    elif end[0] < start[0]:
        bend = 0.25
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=5 + 2.5 * lw,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=4,
            shrinkB=4,
            color=color,
            lw=lw,
            ls=style,
            zorder=z,
        )
    )
