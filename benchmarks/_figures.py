"""The figures of `compare_inference.py`."""

from pathlib import Path

import numpy as np
import pandas as pd
from _tables import FALSE_POSITIVE_RATES

from gsnn.io import replacing

TITLES = {
    "tiers12": "converging tiers, 24 functions",
    "tiers25": "converging tiers, 50 functions",
    "dag_linear": "random DAG, linear",
    "dag_tanh": "random DAG, tanh",
    "cno_extliver": "HepG2 signalling",
    "cno_hepatocyte5": "hepatocyte signalling",
    "dream4_100_1": "DREAM4 size 100, 1",
    "dream4_100_2": "DREAM4 size 100, 2",
    "dream4_100_3": "DREAM4 size 100, 3",
}
# Okabe & Ito's colours, and line styles so that colour is not all there is.
CURVES = {
    "sv of M, joint": ("#D55E00", "-"),
    "sv of M": ("#E69F00", "--"),
    "corr, mean": ("#0072B2", "-"),
    "regressor, last": ("#009E73", "-"),
    "kge directed": ("#CC79A7", "--"),
    "|activation| x |gradient|": ("#56B4E9", "-."),
    "degree product": ("#000000", ":"),
}


def draw(parts: list[dict], summary: pd.DataFrame, folder: Path) -> None:
    """Write compare_roc.png, compare_auc.png and compare_ranks.png."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    scenarios = list(dict.fromkeys(part["scenario"] for part in parts))
    columns = min(3, len(scenarios))
    rows = -(-len(scenarios) // columns)
    methods = list(parts[0]["methods"])
    for name, panel, size, share in (
        ("roc", _roc, (2.7 * columns + 0.6, 2.7 * rows + 0.6), "all"),
        ("auc", _auc, (2.5 * columns + 1.9, (0.17 * len(methods) + 0.7) * rows), "all"),
        ("ranks", _ranks, (2.5 * columns + 1.9, (0.17 * len(methods) + 0.7) * rows), "row"),
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(
            rows, columns, squeeze=False, sharex="all" if share == "all" else False, sharey="all"
        )
        for ax, scenario in zip(axes.flat, scenarios, strict=False):
            panel(ax, [part for part in parts if part["scenario"] == scenario], summary, scenario, methods)
            ax.set_title(TITLES[scenario], fontsize=9)
            ax.tick_params(labelsize=7)
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes.flat[len(scenarios) :]:
            ax.set_visible(False)
        if name == "roc":
            figure.legend(
                *axes.flat[0].get_legend_handles_labels(),
                loc="outside upper center",
                ncols=min(4, 2 * columns),
                fontsize=8,
                frameon=False,
            )
        labels = {
            "roc": ("negatives ranked above (share)", "test edges found (share)"),
            "auc": ("AUC: mean over seeds, 95% interval", ""),
            "ranks": ("raw rank of each test edge among the sources of its target; circle: median", ""),
        }[name]
        figure.supxlabel(labels[0], fontsize=9)
        figure.supylabel(labels[1], fontsize=9)
        with replacing(folder / f"compare_{name}.png") as tmp:
            figure.savefig(tmp, format="png", dpi=90)


def _roc(ax, parts: list[dict], summary: pd.DataFrame, scenario: str, methods: list[str]) -> None:
    ax.plot([0, 1], [0, 1], color="0.8", lw=0.8)
    for method, (colour, style) in CURVES.items():
        mean = np.mean([part["methods"][method]["roc"] for part in parts], axis=0)
        ax.plot(FALSE_POSITIVE_RATES, mean, color=colour, ls=style, lw=1.4, label=method)
    ax.set_aspect("equal")


def _auc(ax, parts: list[dict], summary: pd.DataFrame, scenario: str, methods: list[str]) -> None:
    rows = summary[(summary["scenario"] == scenario) & (summary["metric"] == "auc")].set_index("method")
    rows = rows.loc[methods[::-1]]
    y = np.arange(len(rows))
    ax.axvline(0.5, color="0.8", lw=0.8)
    ax.hlines(y, rows["low"], rows["high"], color="#0072B2", lw=1.6)
    ax.plot(rows["mean"], y, "o", color="#0072B2", ms=3.5)
    ax.set_yticks(y, methods[::-1])
    ax.grid(axis="y", color="0.93", lw=0.6)
    ax.set_axisbelow(True)


def _ranks(ax, parts: list[dict], summary: pd.DataFrame, scenario: str, methods: list[str]) -> None:
    rng = np.random.default_rng(0)
    for y, method in enumerate(methods[::-1]):
        values = np.concatenate([part["methods"][method]["ranks"] for part in parts])
        jitter = rng.uniform(-0.32, 0.32, len(values))
        ax.plot(values, y + jitter, ".", color="#0072B2", ms=3, alpha=0.35, mew=0, rasterized=True)
        ax.plot(np.median(values), y, "o", color="white", mec="black", ms=4, mew=0.9)
    ax.set_xscale("log")
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100) if t <= 1.2 * ax.get_xlim()[1]]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set_yticks(np.arange(len(methods)), methods[::-1])
