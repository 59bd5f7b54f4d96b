"""Why the model of a run predicts what it does: which inputs, for each output, and along which edges."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gsnn.app.section import Section
from gsnn.data.tables import Data
from gsnn.explain.attribution import attribute
from gsnn.models.GSNN import GSNN
from gsnn.plot.graphs import explanation

#: Enough for averages, and a few seconds at most.
MOST_SAMPLES = 64
MOST_OUTPUTS = 20
_INPUTS = 5  # of each output, in the report
FIGURE = "explanation"


@dataclass(frozen=True)
class Attributions:
    """Integrated gradients of the inputs, and of the edges for one output.

    Attributes:
        table: one row an output and input, best predicted output first, then by magnitude: ``output, input,
            score, magnitude, spread``, in the units of the output; None where nothing could be explained.
        facts: for metrics.json: ``outputs``, ``samples``, ``drawn`` (the output in the picture) and
            ``completeness``, the largest error of the sums; or ``skipped``, the reason why not.
        figures: name -> what draws it.
    """

    table: pd.DataFrame | None
    facts: dict[str, Any]
    figures: dict[str, Callable[[], Any]]


def attributions_of(model: GSNN, data: Data, r2_by_output: Mapping[str, Mapping[str, float]]) -> Attributions:
    """Explain the outputs that are predicted best, over at most 64 samples.

    Args:
        model: trained on ``data``.
        data: the samples.
        r2_by_output: output -> method -> R2 on held-out samples, of which ``gsnn`` is read.
    """
    r2 = {name: values["gsnn"] for name, values in r2_by_output.items()}
    best = sorted((name for name in r2 if r2[name] > 0), key=lambda name: -r2[name])[:MOST_OUTPUTS]
    if not best:
        return Attributions(None, {"skipped": "no output is predicted better than by its mean"}, {})
    rows = np.unique(np.linspace(0, len(data.x) - 1, MOST_SAMPLES).astype(int))
    x = data.x.iloc[rows]
    parts, errors = [], []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of completeness, which the report tells instead
            for name in best:
                found = attribute(model, x, name)
                errors.append(found.attrs["completeness"]["error"])
                found.insert(0, "output", name)
                parts.append(found.rename(columns={"name": "input"}))
            edges = attribute(model, x, best[0], of="edges")
    except ImportError as err:
        return Attributions(None, {"skipped": str(err)}, {})
    edges = edges[edges["source"] != edges["target"]]
    facts = {
        "outputs": len(best),
        "samples": len(x),
        "drawn": best[0],
        "completeness": float(np.max(errors)),
    }
    table = pd.concat(parts, ignore_index=True)
    return Attributions(table, facts, {FIGURE: lambda: explanation(model.graph, edges)})


def section_of(found: Attributions) -> Section:
    """The report's section on them."""
    title, facts = "Why does it predict this?", found.facts
    if found.table is None:
        return Section(title, [f"No attributions: {facts['skipped']}."])
    text = [
        "What each input adds to the prediction of an output, by integrated gradients from the untreated "
        f"sample (all inputs 0), in the output's units: mean over {facts['samples']} samples, in brackets "
        f"the mean size. Of each output the {_INPUTS} inputs of largest size; all are in attributions.csv. "
        "They say what this network does, not what the cell does.",
        f"The picture shows along which edges the prediction of {facts['drawn']} differs between samples: "
        "the wider, the more.",
    ]
    rows = []
    for output, part in found.table.groupby("output", sort=False):
        said = [
            f"{name} {score:+.2g} ({size:.2g})"
            for name, score, size in part.head(_INPUTS)[["input", "score", "magnitude"]].itertuples(
                index=False
            )
            if size > 0
        ]
        rows.append([str(output), ", ".join(said)])
    worst = facts["completeness"]
    note = ""
    if not (math.isfinite(worst) and worst <= 0.01):
        note = f"For one output the sums miss the difference of the predictions by {worst:.1%}."
    return Section(title, text, note, ["output", "inputs"], rows, (), [FIGURE])
