"""Write the tables of docs/notes/edge_inference_notes.md from benchmarks/results, in place.

A block begins with ``<!-- table: NAME ARGUMENTS -->`` and ends with ``<!-- end -->``. A test checks that the
file says what the results say.

    python benchmarks/_notes.py
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from _tables import interval

from gsnn.io import replacing

RESULTS = Path(__file__).parent / "results"
NOTES = Path(__file__).parents[1] / "docs" / "notes" / "edge_inference_notes.md"
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """The notes with every table made anew."""
    return BLOCK.sub(lambda m: m[1] + markdown(TABLES[m[2].split()[0]](*m[2].split()[1:])) + m[4], text)


def markdown(rows: list[dict[str, str]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(
        "|activation| x |gradient|", r"\|activation\| x \|gradient\|"
    )


def shown(values: pd.Series) -> str:
    low, high = interval(values.to_numpy())
    digits = 3 if high < 10 else 0
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def compare(metric: str, *scenarios: str) -> list[dict[str, str]]:
    table = pd.read_csv(RESULTS / "compare_inference_summary.csv")
    table = table[(table["metric"] == metric) & (table["method"] != "gsnn")]
    best = {s: table.loc[table["scenario"] == s, "mean"].max() for s in scenarios}
    cells = table.set_index(["method", "scenario"])
    rows = []
    for method in table["method"].unique():
        row = {"method": method}
        for scenario in scenarios:
            cell = cells.loc[(method, scenario)]
            mean = f"{cell['mean']:.3f}"
            mean = f"**{mean}**" if cell["mean"] == best[scenario] else mean
            row[scenario] = f"{mean} [{cell['low']:.3f}, {cell['high']:.3f}]"
        rows.append(row)
    return rows


def models(*scenarios: str) -> list[dict[str, str]]:
    table = pd.read_csv(RESULTS / "compare_inference_summary.csv")
    cells = table[table["method"] == "gsnn"].set_index(["scenario", "metric"])["mean"]
    seeds = table.groupby("scenario")["n_seeds"].first()
    return [
        {
            "scenario": name,
            "seeds": str(seeds[name]),
            "test edges": f"{cells[name, 'n_positives']:.1f}",
            "negatives": f"{cells[name, 'n_negatives']:.0f}",
            "train MSE": f"{cells[name, 'train_mse']:.3f}",
            "test MSE": f"{cells[name, 'test_mse']:.3f}" if (name, "test_mse") in cells else "",
            "CPU s": f"{cells[name, 'cpu_seconds']:.0f}",
        }
        for name in scenarios
    ]


def grouped(file: str, keys: list[str], columns: list[str]) -> list[dict[str, str]]:
    table = pd.read_csv(RESULTS / file)
    rows = []
    key: Any
    for key, part in table.groupby(keys, sort=False, dropna=False):
        names = ["" if pd.isna(k) else f"{k:g}" if isinstance(k, float) else str(k) for k in key]
        row = dict(zip(keys, names, strict=True))
        rows.append(row | {name: shown(part[name]) if part[name].notna().all() else "" for name in columns})
    return rows


def absorption() -> list[dict[str, str]]:
    table = pd.read_csv(RESULTS / "absorption.csv")
    rows = []
    for (scenario, setting), part in table.groupby(["scenario", "setting"], sort=False):
        row: dict[Any, Any] = {"scenario": scenario, "setting": setting}
        row |= {name: f"{part[name].mean():.3f}" for name in ("test_mse", "trace", "background")}
        row |= {score: f"{values.mean():.3f}" for score, values in part.groupby("score", sort=False)["auc"]}
        rows.append(row)
    return rows


TABLES: dict[str, Callable[..., list[dict[str, str]]]] = {
    "compare": compare,
    "models": models,
    "post_hoc": lambda: grouped("post_hoc.csv", ["score", "layer_agg"], ["auc", "mrr", "top@1", "n_q05"]),
    "online": lambda: grouped("online.csv", ["method"], ["auc", "mrr", "top@1", "n_q05"]),
    "kge": lambda: grouped("kge.csv", ["method", "kge_weight_decay"], ["auc", "mrr", "top@1"]),
    "significance": lambda: grouped(
        "significance.csv", ["scenario", "outputs", "score", "layer_agg"], ["p05", "q05"]
    ),
    "absorption": absorption,
}


if __name__ == "__main__":
    with replacing(NOTES) as tmp:
        tmp.write_text(written(NOTES.read_text()))
