"""Pictures of graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gsnn._text import some_names
from gsnn.graph.container import as_graph
from gsnn.plot.layout import Edge, busy_inputs, layout, nodes_and_edges, surroundings
from gsnn.plot.style import BLUE, GREEN, ORANGE, SKY, VERMILLION, axes_for

if TYPE_CHECKING:
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
