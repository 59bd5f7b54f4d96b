"""Pictures of training, predictions and graphs.

Every function draws on ``ax`` (a new figure where it is None) and returns the Axes. Colours are those of
Okabe & Ito 2008, which people with any colour vision can tell apart; line styles repeat what colours
say. No global matplotlib setting is read or changed beyond the user's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gsnn.graph import HeteroGraph, as_graph, some_names
from gsnn.train import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, SKY, GREEN, ORANGE, VERMILLION, GREY = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#999999",
)

Node = tuple[str, str]  # (type, name): the same name may stand in two types
Edge = tuple[str, str]


def learning_curve(
    histories: History | Sequence[History], *, val_label: str = "validation", ax: Axes | None = None
) -> Axes:
    """Loss against epoch: training solid, validation dashed, a dot at the epoch whose weights were kept.

    Several histories (the folds of a cross-validation, say) are drawn thin, their mean thick as far as
    all of them go.
    """
    runs = [histories] if isinstance(histories, History) else list(histories)
    if not runs:
        raise ValueError("histories must hold at least one History, got none")
    ax = _axes(ax, (5.0, 3.4))
    length = min(len(run.train_loss) for run in runs)
    for field, colour, style, label in (
        ("train_loss", BLUE, "-", "training"),
        ("val_loss", VERMILLION, "--", val_label),
    ):
        curves = [np.asarray(getattr(run, field)) for run in runs]
        if all(np.isnan(curve).all() for curve in curves):
            continue
        if len(curves) > 1:
            for curve in curves:
                ax.plot(np.arange(1, len(curve) + 1), curve, style, color=colour, lw=0.6, alpha=0.45)
            label += f" (mean of {len(runs)})"
        mean = np.mean([curve[:length] for curve in curves], axis=0)
        ax.plot(np.arange(1, length + 1), mean, style, color=colour, lw=1.8, label=label)
        if field == "val_loss" and len(runs) == 1:
            ax.plot(runs[0].best_epoch, curves[0][runs[0].best_epoch - 1], "o", color=colour, ms=5)
    positive = np.concatenate([run.train_loss for run in runs])
    if positive.min() > 0 and positive.max() > 20 * positive.min():
        ax.set_yscale("log")
    ax.set(xlabel="epoch", ylabel="loss", title="Learning curve")
    ax.legend(frameon=False)
    _bare(ax)
    return ax


def predicted_vs_measured(y: Any, yhat: Any, *, ax: Axes | None = None) -> Axes:
    """Each measured value against its prediction, with the line where they agree.

    y and yhat are (B, N_out); NaN in y (not measured) is left out. The title gives r, Pearson's correlation
    over all points; R2 against a mean predictor needs the training data and is not shown here.
    """
    y, yhat = np.asarray(y, float), np.asarray(yhat, float)
    if y.shape != yhat.shape:
        raise ValueError(f"y and yhat must have the same shape, got {y.shape} and {yhat.shape}")
    shown = np.isfinite(y) & np.isfinite(yhat)
    if not shown.any():
        raise ValueError("y and yhat must share at least one finite value, got none")
    ax = _axes(ax, (4.4, 4.2))
    a, b = y[shown], yhat[shown]
    size, alpha = (10, 0.6) if a.size < 500 else (5, 0.35) if a.size < 20_000 else (2, 0.1)
    ax.scatter(a, b, s=size, alpha=alpha, color=BLUE, lw=0, rasterized=a.size > 5_000)
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    pad = 0.04 * (high - low) or 1.0
    ax.plot([low - pad, high + pad], [low - pad, high + pad], color="0.3", lw=1, ls="--")
    ax.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
    spread = a.std() > 0 and b.std() > 0
    r = f", r = {np.corrcoef(a, b)[0, 1]:.2f}" if spread else ""
    ax.set(xlabel="measured", ylabel="predicted", title=f"{a.size:,} measured values{r}")
    _bare(ax)
    return ax


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

    nodes, edges = _nodes_and_edges(graph)
    busy = _busy_inputs(nodes, edges)
    edges = [e for e in edges if e[0] not in busy]
    total = len(nodes)
    if total > max_nodes:
        nodes, edges = _surroundings(nodes, edges, coloured, min(max_nodes, max(50, 2 * len(ends))))
    place = _layout(nodes, edges)
    columns = max((x for x, _ in place.values()), default=1.0) + 1
    height = max(y for _, y in place.values()) - min(y for _, y in place.values()) + 1
    ax = _axes(ax, (min(max(1.05 * columns, 7.0), 18.0), min(max(0.4 * height + 1.2, 3.5), 18.0)))

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
            dx, dy, ha, va = side.get(kind, (3, 4, "left", "bottom"))
            text = ax.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=font,
                fontweight="bold" if kind == "function" and name in ends else "normal",
                zorder=5,
            )
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.4})
    notes = []
    if busy:
        names = some_names(sorted(name for _, name in busy), str)
        notes.append(f"edges not drawn: inputs that feed most function nodes ({names})")
    if total > len(nodes):
        notes.append(f"{len(nodes)} of {total} nodes: the surroundings of the coloured edges")
    if notes:
        ax.text(0.0, -0.01, "\n".join(notes), transform=ax.transAxes, fontsize=7, color="0.35", va="top")
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


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


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


def _nodes_and_edges(graph: HeteroGraph) -> tuple[list[Node], list[tuple[Node, Node]]]:
    names = graph.node_names_dict
    nodes = [(kind, name) for kind in ("input", "function", "output") for name in names[kind]]
    edges = []
    for (source, _, target), index in graph.edge_index_dict.items():
        for i, j in index.t().tolist():
            edges.append(((source, names[source][i]), (target, names[target][j])))
    return nodes, [(a, b) for a, b in edges if a != b]


def _busy_inputs(nodes: list[Node], edges: list[tuple[Node, Node]]) -> set[Node]:
    functions = sum(kind == "function" for kind, _ in nodes)
    fed: dict[Node, int] = {}
    for source, _ in edges:
        if source[0] == "input":
            fed[source] = fed.get(source, 0) + 1
    return {node for node, n in fed.items() if functions >= 10 and n > functions / 2}


def _surroundings(
    nodes: list[Node], edges: list[tuple[Node, Node]], coloured: Sequence[Edge], most: int
) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """Ends of the coloured edges, then their neighbours, nearest first, up to ``most`` nodes."""
    near: dict[Node, list[Node]] = {}
    for a, b in edges:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    ends = [("function", n) for edge in coloured for n in edge] or nodes[:1]
    chosen = dict.fromkeys(ends[:most])
    ring = list(chosen)
    while ring and len(chosen) < most:
        ring = list(dict.fromkeys(m for n in ring for m in near.get(n, ()) if m not in chosen))
        chosen.update(dict.fromkeys(ring[: most - len(chosen)]))
    return [n for n in nodes if n in chosen], [(a, b) for a, b in edges if a in chosen and b in chosen]


def _depths(functions: Sequence[Node], edges: Iterable[tuple[Node, Node]]) -> dict[Node, int]:
    """Longest path from a node without parents, after dropping the edges that close a cycle."""
    children: dict[Node, list[Node]] = {n: [] for n in functions}
    fed = set()
    for a, b in edges:
        if a in children and b in children:
            children[a].append(b)
            fed.add(b)
    done: list[Node] = []
    forward: dict[Node, list[Node]] = {n: [] for n in functions}
    state: dict[Node, int] = {}  # 1 while on the stack, 2 when finished
    for root in sorted(functions, key=lambda n: n in fed):
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(children[root]))]
        while stack:
            node, rest = stack[-1]
            child = next(rest, None)
            if child is None:
                state[node] = 2
                done.append(node)
                stack.pop()
            elif state.get(child) != 1:
                forward[node].append(child)
                if child not in state:
                    state[child] = 1
                    stack.append((child, iter(children[child])))
    depth = dict.fromkeys(functions, 0)
    for node in reversed(done):
        for child in forward[node]:
            depth[child] = max(depth[child], depth[node] + 1)
    for node in functions:  # a source stands just before what it feeds
        if node not in fed and forward[node]:
            depth[node] = min(depth[child] for child in forward[node]) - 1
    return depth


def _layout(nodes: Sequence[Node], edges: Sequence[tuple[Node, Node]]) -> dict[Node, tuple[float, float]]:
    """Columns by depth; within a column by the mean height of the neighbours (Sugiyama et al. 1981)."""
    functions = [n for n in nodes if n[0] == "function"]
    depth = _depths(functions, edges)
    last = max(depth.values(), default=0) + 2
    column = {n: {"input": 0, "output": last}.get(n[0], depth.get(n, 0) + 1) for n in nodes}
    members: dict[int, list[Node]] = {}
    for node in nodes:
        members.setdefault(column[node], []).append(node)
    near: dict[Node, list[Node]] = {n: [] for n in nodes}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    height: dict[Node, float] = {}

    def spread(x: int) -> None:
        for i, node in enumerate(members[x]):
            height[node] = (len(members[x]) - 1) / 2 - i

    for x in members:
        spread(x)
    order = sorted(members)
    for sweep in range(8):
        for x in order if sweep % 2 == 0 else order[::-1]:
            mean: Mapping[Node, float] = {
                n: float(np.mean([height[m] for m in near[n]])) if near[n] else height[n] for n in members[x]
            }
            members[x].sort(key=lambda n: -mean[n])
            spread(x)
    # Short columns use the height of the tall ones, and neighbours are staggered so that labels fit.
    tall = max(len(m) for m in members.values())
    place = {}
    for x, column_nodes in members.items():
        stretch = min(2.5, (tall - 1) / (len(column_nodes) - 1)) if len(column_nodes) > 1 else 1.0
        for node in column_nodes:
            shift = 0.25 if 0 < x < last and x % 2 else 0.0
            place[node] = (float(x), height[node] * stretch + shift)
    return place
