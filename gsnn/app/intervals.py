"""How sure the predictions of a run are: intervals about the held-out ones, and what they really hold.

Nothing is trained for it: the errors that the networks of the cross-validation made on samples they had not
seen are there already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gsnn.app.compare import Array
from gsnn.app.section import Section
from gsnn.data.tables import Data
from gsnn.stats.conformal import coverage, held_out_widths, residual_quantile

LEVEL = 0.9
#: Methods of the comparison whose predictions get intervals.
METHODS = ("gsnn", "completed")
_TOLERANCE = 0.05  # of the level: a coverage further from it is said to be wrong
_MOST_OUTPUTS = 300


@dataclass(frozen=True)
class Intervals:
    """Intervals about the held-out predictions.

    Attributes:
        table: one row a method, tested sample and output: ``method, sample, output, fold, predicted, low,
            high, measured, inside`` (empty where nothing was measured or the interval is unknown); None where
            there are no intervals.
        facts: for metrics.json: ``level``, and by method ``coverage``, ``width`` (the median, in standard
            deviations of the output), ``values``, and by output ``half_width`` (about a prediction of
            the final model, in the output's units) and ``coverage``; or ``skipped``, the reason why not.
    """

    table: pd.DataFrame | None
    facts: dict[str, Any]


def intervals_of(data: Data, yhat: Mapping[str, Array], fold: np.ndarray) -> Intervals:
    """Intervals that should hold 90% of what is measured.

    Args:
        data: the samples.
        yhat: method -> (B, N_out) predictions of samples by networks that had not seen them.
        fold: (B,) the fold (from 1) of each sample, 0 for none.
    """
    at = data.x.index.get_indexer(data.order)
    at = at[fold[at] > 0]
    if len(set(fold[at].tolist())) < 2:
        return Intervals(None, {"skipped": "there is one test fold, and no other to calibrate them by"})
    y, own = data.y.to_numpy(dtype=float)[at], fold[at]
    sd = data.y.iloc[at].std(ddof=0).to_numpy()
    facts: dict[str, Any] = {"level": LEVEL, "grouped": data.groups is not None}
    parts = []
    for method in METHODS:
        if method not in yhat:
            continue
        centre = yhat[method][at]
        errors = np.abs(y - centre)
        width = held_out_widths(errors, own, LEVEL)
        width[np.isinf(width)] = np.nan
        low, high = centre - width, centre + width
        known = np.where(np.isnan(width), np.nan, y)
        held = coverage(known, low, high)
        scaled = (2 * width / np.where(sd > 0, sd, np.nan))[~np.isnan(known)]
        half = residual_quantile(errors, LEVEL)
        facts[method] = {
            "coverage": held["coverage"],
            "width": float(np.nanmedian(scaled)) if np.isfinite(scaled).any() else math.nan,
            "values": held["n"],
            "by_output": {
                str(name): {"half_width": float(half[k]), "coverage": float(held["by_output"][k])}
                for k, name in enumerate(data.y.columns)
            },
        }
        inside = pd.array((low <= known) & (known <= high), dtype="boolean")
        inside[np.isnan(known)] = pd.NA
        parts.append(
            pd.DataFrame(
                {
                    "method": method,
                    "sample": np.repeat(data.x.index.to_numpy()[at], y.shape[1]),
                    "output": np.tile(data.y.columns.to_numpy(), len(at)),
                    "fold": np.repeat(own, y.shape[1]),
                    "predicted": centre.ravel(),
                    "low": low.ravel(),
                    "high": high.ravel(),
                    "measured": y.ravel(),
                    "inside": inside.ravel(),
                }
            )
        )
    return Intervals(pd.concat(parts, ignore_index=True), facts)


def section_of(facts: Mapping[str, Any]) -> Section:
    """The report's section on them; ``facts`` are those of :func:`intervals_of`."""
    title = "How sure is a prediction?"
    if "skipped" in facts:
        return Section(title, [f"No intervals: {facts['skipped']}."])
    method = "completed" if "completed" in facts else "gsnn"
    found, level = facts[method], facts["level"]
    network = "completed" if method == "completed" else "given"
    said = (
        f"An interval meant to hold {level:.0%} of the measured values holds {found['coverage']:.1%} of "
        f"{found['values']:,} (network on the {network} graph). Half of the intervals are narrower than "
        f"{found['width']:.2f} standard deviations of their output. Those of one fold are as wide as the "
        "errors in the other folds say, so none was made from the error that it is judged by."
    )
    of_new = (
        "They hold for samples of new groups, as whole groups were held out."
        if facts["grouped"]
        else "They hold for samples that are drawn like these; those of a new cell line or drug are not, "
        "unless whole ones are held out (groups)."
    )
    by_output = sorted(found["by_output"].items(), key=lambda item: _least_first(item[1]["coverage"]))
    rows = [
        [name, _number(values["half_width"], ".3g"), _number(values["coverage"], ".0%")]
        for name, values in by_output[:_MOST_OUTPUTS]
    ]
    text = [said, of_new, "Outputs whose intervals hold least come first."]
    return Section(title, text, _note(found["coverage"], level), ["output", "±", "holds"], rows, (1, 2))


def _note(found: float, level: float) -> str:
    if not math.isfinite(found):
        return "Every fold is too small to say how wide an interval must be."
    if abs(found - level) <= _TOLERANCE:
        return ""
    wrong = "narrow: folds differ more than chance would have it" if found < level else "wide"
    return f"These intervals are too {wrong}."


def _least_first(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"
