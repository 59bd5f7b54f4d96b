"""From scores to numbers, from numbers to rows, from rows to means with intervals."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from gsnn.graph import HeteroGraph
from gsnn.optim.edge_table import KeptEdges, judge_scores
from gsnn.stats.ranking import ranks

TOP_K = (1, 5)
FALSE_POSITIVE_RATES = np.linspace(0.0, 1.0, 101)


def judged(scores: np.ndarray, graph: HeteroGraph, test_edges: Sequence[tuple[str, str]]) -> dict:
    """`metrics`, the raw `ranks` of the test edges in their order, and the ROC curve at fixed rates."""
    kept = KeptEdges.of(graph)
    edges = [tuple(edge) for edge in test_edges]
    metrics = judge_scores(scores, kept, edges, TOP_K)
    filtered = judge_scores(scores, kept, edges, TOP_K, filtered=True)
    metrics["mrr_filtered"] = filtered["mrr"]
    counts = {name: metrics.pop(name) for name in ("n_positives", "n_negatives")}

    number = {name: k for k, name in enumerate(kept.names)}
    source, target = np.array([(number[s], number[t]) for s, t in edges]).T
    itself = np.eye(len(scores), dtype=bool)
    positive = np.zeros_like(kept.mask)
    positive[source, target] = True
    negatives = scores[~(kept.mask | itself | positive)]
    return {
        "counts": counts,
        "metrics": {name: float(value) for name, value in metrics.items()},
        "ranks": ranks(scores.T[target], source, itself.T[target]).tolist(),
        "roc": roc(scores[source, target], negatives).round(4).tolist(),
    }


def roc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Share of positives found at each of `FALSE_POSITIVE_RATES`, straight through ties; NaN is lowest."""
    positives, negatives = (np.nan_to_num(part, nan=-np.inf) for part in (positives, negatives))
    levels = np.unique(np.concatenate([positives, negatives]))[::-1]
    share = [
        np.searchsorted(-np.sort(part)[::-1], -levels, side="right") / len(part)
        for part in (negatives, positives)
    ]
    rate, found = (np.concatenate([[0.0], part]) for part in share)
    return np.interp(FALSE_POSITIVE_RATES, rate, found)


def rows_of(part: dict) -> list[dict]:
    """One row per method and metric; the model's errors and the numbers of pairs are rows of `gsnn`."""
    cell = {"scenario": part["scenario"], "seed": part["seed"]}
    counts = next(iter(part["methods"].values()))["counts"]
    results = {method: found["metrics"] for method, found in part["methods"].items()}
    return [
        {**cell, "method": method, "metric": metric, "value": value, **part["stamp"]}
        for method, metrics in {**results, "gsnn": {**part["quality"], **counts}}.items()
        for metric, value in metrics.items()
    ]


def summary_of(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every scenario, method and metric, with its 95% interval."""
    rows = []
    for (scenario, method, metric), part in table.groupby(["scenario", "method", "metric"], sort=False):
        values = part["value"].to_numpy()
        low, high = interval(values)
        row = {"scenario": scenario, "method": method, "metric": metric, "n_seeds": len(values)}
        rows.append({**row, "mean": values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def means(part: pd.DataFrame, names: Iterable[str], digits: str = ".3f") -> str:
    """``name mean [low, high]`` of every column that has a value, with the interval of the mean."""
    said = []
    for name in names:
        values = part[name].dropna().to_numpy(dtype=float)
        if len(values):
            low, high = interval(values)
            said.append(f"{name} {values.mean():{digits}} [{low:{digits}}, {high:{digits}}]")
    return ", ".join(said)


def interval(values: np.ndarray, level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, seeds drawn with replacement; the same at every call."""
    drawn = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
