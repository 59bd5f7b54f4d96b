"""Pictures of training, predictions and what adding edges is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gsnn.plot.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, axes_for, bare
from gsnn.train.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    ax = axes_for(ax, (5.0, 3.4))
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
    bare(ax)
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
    ax = axes_for(ax, (4.4, 4.2))
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
    bare(ax)
    return ax


def r2_by_edges(table: Any, *, ax: Axes | None = None) -> Axes:
    """Held-out R2 against the number of edges added, beside random edges and models without a graph.

    ``table`` is that of :class:`gsnn.optim.cross_validation.CrossValidation`: chosen edges are solid and
    random ones dashed, each with its 95% interval; every other model in it is a level line.

    Raises:
        ValueError: a column is missing.
    """
    needed = ["budget", *(name + end for name in ("r2", "random") for end in ("", "_low", "_high"))]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ValueError(f"table must have the columns {', '.join(needed)}, got none named {missing[0]}")
    ax = axes_for(ax, (5.4, 3.6))
    at = np.asarray(table["budget"], dtype=float)
    for name, colour, style, label in (
        ("r2", VERMILLION, "o-", "edges chosen"),
        ("random", GREY, "s--", "random edges"),
    ):
        value, low, high = (np.asarray(table[name + end], dtype=float) for end in ("", "_low", "_high"))
        reach = np.maximum([value - low, high - value], 0.0)
        ax.errorbar(at, value, reach, fmt=style, color=colour, ms=4, lw=1.6, capsize=3, label=label)
    known = {*needed, "gain", "gain_low", "gain_high"}
    others = [n for n in table.columns if n not in known and not n.endswith(("_low", "_high"))]
    colours = (BLUE, GREEN, ORANGE)
    for k, name in enumerate(others):
        level = float(np.asarray(table[name])[0])
        line = ax.axhline(level, color=colours[k % 3], lw=1.2, ls=(":", "-.")[k % 2])
        line.set_label(name.upper() if name == "mlp" else name)
    ax.set(xlabel="edges added to the graph", ylabel="R2 on test folds", title="What adding edges is worth")
    ax.set_xticks(at)
    ax.legend(frameon=False, fontsize="small")
    bare(ax)
    return ax
