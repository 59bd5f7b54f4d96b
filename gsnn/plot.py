"""Pictures of training, predictions and graphs.

Every function draws on ``ax`` (a new figure where it is None) and returns the Axes. Colours are those of
Okabe & Ito 2008, which people with any colour vision can tell apart; line styles repeat what colours
say. No global matplotlib setting is read or changed beyond the user's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gsnn.graph import as_graph, some_names
from gsnn.graph_layout import Edge, busy_inputs, layout, nodes_and_edges, surroundings
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


def pathway_activations(
    activations: Mapping[str, Any],
    pathways: Mapping[str, Sequence[str]],
    *,
    conditions: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Activation of function nodes (rows, grouped by pathway) in samples (columns).

    A row is the node's first principal component over samples, of its C channels, in units of its standard
    deviation. The sign of a component means nothing; here it is the one that goes with the rows above it
    in the same pathway. So rows of one pathway that look alike vary together, whatever their channels do.

    Args:
        activations: name -> (B, C), as :meth:`gsnn.models.GSNN.GSNN.get_node_activations` returns them.
        pathways: name -> its nodes. A node in two pathways is drawn twice; nodes in none come last.
        conditions: one label a sample; samples of a label are put side by side and named.
        ax: where to draw.

    Raises:
        ValueError: no pathway; a pathway without a node, or with one that has no activation; a number of
            labels that is not B.
    """
    if not pathways:
        raise ValueError("pathways must hold at least one pathway, got none")
    values = {name: np.asarray(value, float) for name, value in activations.items()}
    groups = {name: list(members) for name, members in pathways.items()}
    for name, members in groups.items():
        unknown = [node for node in members if node not in values]
        if unknown or not members:
            got = some_names(unknown) if unknown else "none"
            raise ValueError(f"pathways[{name!r}] must name nodes that have activations, got {got}")
    inside = {node for members in groups.values() for node in members}
    rest = [node for node in values if node not in inside]
    if rest:
        groups["in none"] = rest
    n_samples = len(next(iter(values.values())))
    if conditions is not None and len(conditions) != n_samples:
        raise ValueError(f"conditions must hold {n_samples} labels, one a sample, got {len(conditions)}")
    labels = np.asarray(conditions if conditions is not None else [""] * n_samples, dtype=str)
    kinds = list(dict.fromkeys(labels.tolist()))
    order = np.argsort([kinds.index(label) for label in labels.tolist()], kind="stable")

    rows: list[np.ndarray] = []
    for members in groups.values():
        block: list[np.ndarray] = []
        for node in members:
            row = _component(values[node].reshape(n_samples, -1))
            block.append(-row if block and row @ np.sum(block, axis=0) < 0 else row)
        rows += block
    nodes = [node for members in groups.values() for node in members]
    ax = _axes(ax, (7.0, float(np.clip(1.4 + 0.17 * len(rows), 2.8, 16.0))))
    image = ax.imshow(
        np.array(rows)[:, order], aspect="auto", cmap="PuOr_r", vmin=-2.5, vmax=2.5, interpolation="nearest"
    )
    label = "activation (standard deviations)"
    ax.figure.colorbar(image, ax=ax, label=label, extend="both", location="bottom", shrink=0.5, aspect=30)
    for start, end, name in _spans([name for name, members in groups.items() for _ in members]):
        ax.axhline(start - 0.5, color="black", lw=1.0)
        middle = (start + end - 1) / 2
        where = ax.get_yaxis_transform()
        ax.text(1.01, middle, name, transform=where, ha="left", va="center", parse_math=False)
    ax.set_yticks(range(len(rows)) if len(rows) <= 60 else [])
    if len(rows) <= 60:
        ax.set_yticklabels(nodes, fontsize=7, parse_math=False)
    if conditions is None:
        ax.set_xlabel("samples")
    else:
        spans = _spans(labels[order].tolist())
        for start, _, _ in spans[1:]:
            ax.axvline(start - 0.5, color="black", lw=0.6)
        ax.set_xticks(
            [(start + end - 1) / 2 for start, end, _ in spans], [name for *_, name in spans], parse_math=False
        )
        ax.tick_params("x", length=0)
        if sum(len(name) + 2 for *_, name in spans) > 70:
            ax.tick_params("x", rotation=90)
    return ax


def _spans(names: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, end, name) of each run of equal names."""
    starts = [k for k, name in enumerate(names) if k == 0 or name != names[k - 1]]
    return [(s, e, names[s]) for s, e in zip(starts, [*starts[1:], len(names)], strict=True)]


def _component(x: np.ndarray) -> np.ndarray:
    """First principal component of x (B, C) over the rows, standardised, (B,); zeros for constant columns."""
    x = x - x.mean(0)
    left, size, right = np.linalg.svd(x, full_matrices=False)
    if not size[0] > 1e-12 * max(1.0, float(np.abs(x).max())):
        return np.zeros(len(x))
    sign = 1.0 if right[0].sum() >= 0 else -1.0
    return sign * left[:, 0] * np.sqrt(len(x))


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
