"""The files that a run leaves behind."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch

import gsnn
from gsnn.app.compare import Array
from gsnn.app.completion import Completed, as_text
from gsnn.app.report_html import html_report
from gsnn.app.section import Section
from gsnn.data.tables import Data
from gsnn.graph.container import EDGE_TYPES
from gsnn.io import model as model_file
from gsnn.io.tables import write_table
from gsnn.models.GSNN import GSNN

#: Files that not every run writes.
_SOMETIMES = (
    "attributions.csv",
    "figures/explanation.png",
    "intervals.csv",
    "edges.csv",
    "graph_completed.tsv",
    "model_completed.safetensors",
    "figures/r2_by_edges.png",
    "figures/added_edges.png",
    "figures/top_edges.png",
)


def describe(data: Data) -> dict[str, Any]:
    """Versions and sizes, for metrics.json."""
    index = data.graph.edge_index_dict
    return {
        "versions": {
            "gsnn": gsnn.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "data": {
            "samples": len(data.x),
            "distinct_inputs": len(data.x.drop_duplicates()),
            "inputs_of_one_sample": _inputs_of_one_sample(data.x),
            **{
                f"{kind}_nodes": len(data.graph.node_names_dict[kind])
                for kind in ("input", "function", "output")
            },
            "edges": {"->".join(etype[::2]): index[etype].shape[1] for etype in EDGE_TYPES},
            "measured": int(data.y.notna().to_numpy().sum()),
            "groups": None if data.groups is None else int(data.groups.nunique()),
        },
    }


def _inputs_of_one_sample(x: pd.DataFrame) -> int:
    """How many columns have one value in all samples but one."""
    return sum(
        bool(len(counts) == 2 and counts.iloc[1] == 1 and len(x) > 2)
        for counts in (x[name].value_counts() for name in x.columns)
    )


def before_reading(metrics: Mapping[str, Any]) -> list[str]:
    """What must be known before any candidate is read: predictions that do not hold, inputs of one sample."""
    said = []
    r2, sizes = metrics["r2"]["gsnn"], metrics["data"]
    if not r2 > 0:
        said.append(
            f"On held-out samples the network predicts no better than the mean of the others (R2 {r2:.3f}). "
            "What it has learnt does not carry over, so the candidates below mean little."
        )
    lone = sizes["inputs_of_one_sample"]
    if lone > sizes["input_nodes"] / 2:
        said.append(
            f"{lone} of {sizes['input_nodes']} inputs differ in one sample only. Held out, it has an "
            "input that training never saw, and cannot be predicted. Give one input to each gene or drug, "
            "with its dose or strength as the value."
        )
    return said


def long_predictions(data: Data, yhat: dict[str, Array], fold: np.ndarray) -> pd.DataFrame:
    """One row per tested sample and output, samples in the order of X."""
    at = data.x.index.get_indexer(data.order)
    at = at[fold[at] > 0]
    n_out = data.y.shape[1]
    return pd.DataFrame(
        {
            "sample": np.repeat(data.x.index.to_numpy()[at], n_out),
            "output": np.tile(data.y.columns.to_numpy(), len(at)),
            "fold": np.repeat(fold[at], n_out),
            "measured": data.y.to_numpy()[at].ravel(),
            **{method: values[at].ravel() for method, values in yhat.items()},
        }
    )


def write(
    out: Path,
    *,
    metrics: dict[str, Any],
    ranking: pd.DataFrame,
    predictions: pd.DataFrame,
    model: GSNN,
    completed: Completed | None,
    figures: Mapping[str, Callable[[], Any]],
    warnings: Sequence[str] = (),
    held_out: Sequence[tuple[str, str]] = (),
    tables: Mapping[str, pd.DataFrame | None] = MappingProxyType({}),
    sections: Sequence[Section] = (),
) -> None:
    """Write every file of a run beside ``out`` and then move it there; ``metrics.json`` comes last.

    What an earlier run has left there and this one does not write is deleted.

    ``figures`` names the pictures; each function draws one in a new pyplot figure. ``warnings`` and
    ``held_out`` are for ``report.html``, as are ``sections``; see
    :func:`gsnn.app.report_html.html_report`. ``tables`` are more CSV files, name -> table.
    """
    import matplotlib.pyplot as plt

    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as tmp:
        build = Path(tmp)
        (build / "figures").mkdir()
        write_table(ranking, build / "ranking.csv")
        write_table(predictions, build / "predictions.csv", digits=8)
        for name, table in tables.items():
            if table is not None:
                write_table(table, build / name)
        model_file.save(model, build / "model.safetensors", extra={"settings": metrics["settings"]})
        edges = None if completed is None else as_text(completed.edges)
        if completed is not None and edges is not None:
            write_table(edges, build / "edges.csv")
            write_table(completed.graph.to_edge_table(), build / "graph_completed.tsv")
            model_file.save(
                completed.model,
                build / "model_completed.safetensors",
                extra={"settings": metrics["settings"]},
            )
        for name, draw in figures.items():
            draw()
            plt.savefig(build / "figures" / f"{name}.png", dpi=150)
            plt.close()
        pictures = {name: (build / "figures" / f"{name}.png").read_bytes() for name in figures}
        first = before_reading(metrics)
        text = html_report(
            metrics,
            ranking,
            edges,
            pictures,
            warnings=warnings,
            held_out=held_out,
            first=first,
            sections=sections,
        )
        (build / "report.html").write_text(text, encoding="utf-8")
        last = build / "metrics.json"
        last.write_text(json.dumps(_plain(metrics), indent=2, allow_nan=False) + "\n")
        (out / "figures").mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").unlink(missing_ok=True)
        for name in _SOMETIMES:
            if not (build / name).exists():
                (out / name).unlink(missing_ok=True)
        for path in sorted(build.rglob("*"), key=lambda path: path == last):
            if path.is_file():
                os.replace(path, out / path.relative_to(build))


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
