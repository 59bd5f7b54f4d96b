"""What a run found, in sentences: for the first lines of the report and of the summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gsnn._text import some_names

_CLEAR = 0.02  # of R2: less is no difference worth a sentence

CAUTION = (
    "These are edges that would repair the prediction. Often many different sets of edges would repair it "
    "as well, so an edge listed here need not exist. Verified means that it takes more than 0.5% of the loss "
    "away on samples that had no part in choosing it; its alternatives are edges with the same effect "
    "that the data cannot tell from it."
)


def headline(metrics: Mapping[str, Any]) -> str:
    """The run in a sentence or two that can be quoted."""
    r2, found = metrics["r2"], metrics["completion"]
    text = (
        f"On samples that it had not seen, the network on the given graph explains {_percent(r2['gsnn'])} of "
        f"the variance of the outputs; ridge regression explains {_percent(r2['ridge'])} and a multilayer "
        f"perceptron {_percent(r2['mlp'])}, both from all inputs and without a graph."
    )
    if "skipped" in found:
        return text
    return (
        f"{text} With {_edges(found['added'])} added the network explains {_percent(r2['completed'])}, with "
        f"as many random edges {_percent(r2['random'])}. {verified(metrics)}"
    )


def verified(metrics: Mapping[str, Any]) -> str:
    """How many of the added edges hold, or why that is not known."""
    found = metrics["completion"]
    if "skipped" in found:
        return f"No edges were added to the graph: {found['skipped']}."
    if found["not_verified_because"]:
        return f"Whether they hold on other samples is not known: {found['not_verified_because']}."
    number = found["verified"] or "none"
    return (
        f"Of the added edges, {number} hold{'s' * (number in (1, 'none'))} on {found['verified_on']:,} "
        "samples that had no part in choosing them."
    )


def sufficiency(metrics: Mapping[str, Any]) -> str:
    """Whether the graph suffices, judged by models without one and by the completed graph."""
    r2, added = metrics["r2"], metrics["completion"].get("added", 0)
    own, simple = r2["gsnn"], max(("ridge", "mlp"), key=lambda name: _known(r2[name]))
    lead = _known(r2[simple]) - _known(own)
    if not math.isfinite(lead):
        return "Whether the graph suffices cannot be told: there is no R2 to compare."
    better = _known(r2["completed"]) - own if added else 0.0
    if max(lead, better) <= _CLEAR:
        also = " nor does a graph with added edges" if added else ""
        return (
            "As far as these data can tell the graph suffices: no model that sees every input predicts "
            f"better by more than {_CLEAR}{',' * bool(also)}{also}."
        )
    name = {"mlp": "the multilayer perceptron", "ridge": "ridge regression"}[simple]
    said = "The graph does not suffice: "
    if lead > _CLEAR:
        said += f"{name}, which sees every input, predicts better by {lead:.2f} of R2."
    else:
        said += f"with {_edges(added)} added the same network predicts better by {better:.2f} of R2."
    if not added:
        return said
    if better <= _CLEAR:
        return (
            f"{said} Edges between function nodes do not close the gap: look at the edges from inputs and to "
            "outputs, at the number of samples and at the settings."
        )
    if lead > _CLEAR:
        share = min(better / lead, 1.0)
        said += f" With {_edges(added)} added, {share:.0%} of that gap is closed."
    if r2["completed"] - r2["random"] <= _CLEAR:
        said += " As many random edges do as much, so which edges were chosen says little."
    return said


def unreached(metrics: Mapping[str, Any]) -> str:
    """Which outputs the network cannot predict, as nothing leads to them; empty where there is none."""
    names = metrics["unreached"]
    if not names:
        return ""
    many = f"{len(names)} outputs, which" if len(names) > 1 else "one output, which"
    return (
        f"No input reaches {many} the network on the given graph predicts by a constant, as no path leads "
        f"there or none within its {metrics['settings']['layers']} layers: {some_names(names)}."
    )


def _edges(number: int) -> str:
    return f"{number} edge{'s' * (number != 1)}"


def _percent(value: float | None) -> str:
    return "an unknown share" if not math.isfinite(_known(value)) else f"{max(_known(value), 0.0):.0%}"


def _known(value: float | None) -> float:
    return -math.inf if value is None or not math.isfinite(value) else value
