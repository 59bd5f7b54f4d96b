"""Pictures of pathways in a network's activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gsnn._text import some_names
from gsnn.plot.style import axes_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    ax = axes_for(ax, (7.0, float(np.clip(1.4 + 0.17 * len(rows), 2.8, 16.0))))
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
