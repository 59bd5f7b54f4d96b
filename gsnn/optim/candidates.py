"""Pairs of nodes as a user gives them: an iterable, a table, or weights of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsnn.optim.edge_table import KeptEdges, Pair


def pair_weights(kept: KeptEdges, candidates: Any = None, priors: Any = None) -> NDArray[np.float64]:
    """(S, T) weight of each pair of `kept`'s nodes, 0 for those that may not be chosen; see `greedy`."""
    row, column = ({name: k for k, name in enumerate(names)} for names in (kept.sources, kept.targets))
    weight = np.where(kept.mask | kept.itself, 0.0, 1.0)
    if candidates is not None:
        among = np.zeros(weight.shape, dtype=bool)
        for source, target in named_pairs(candidates, "candidates"):
            if source in row and target in column:
                among[row[source], column[target]] = True
        weight[~among] = 0.0
    for (source, target), value in _weights(priors):
        if isinstance(value, bool) or not (value >= 0 and math.isfinite(value)):
            raise ValueError(
                f"priors must be finite weights of at least 0, got {value!r} for {(source, target)}"
            )
        if source in row and target in column:
            weight[row[source], column[target]] *= float(value)
    if not (weight > 0).any():
        kinds = " and ".join(dict.fromkeys(kept.kinds))
        raise ValueError(
            f"candidates and priors must leave at least one pair of {kinds} nodes that the graph lacks"
            ", got none"
        )
    return weight


def named_pairs(edges: Any, argument: str) -> list[Pair]:
    """(source, target) name pairs of an iterable of pairs or of a table that has them in two columns."""
    if hasattr(edges, "columns"):
        for source, target in (("src_func", "dst_func"), ("source", "target")):
            if source in edges.columns and target in edges.columns:
                return [(str(s), str(t)) for s, t in zip(edges[source], edges[target], strict=True)]
        raise ValueError(
            f"{argument} must have the columns source and target (or src_func and dst_func), got "
            f"{', '.join(map(str, edges.columns))}"
        )
    if isinstance(edges, (str, bytes)) or not isinstance(edges, Iterable):
        raise TypeError(f"{argument} must be (source, target) name pairs or a table, got {edges!r}")
    pairs = []
    for edge in edges:
        if isinstance(edge, str) or not isinstance(edge, Sequence) or len(edge) != 2:
            raise TypeError(f"{argument} must be (source, target) name pairs, got the item {edge!r}")
        pairs.append((str(edge[0]), str(edge[1])))
    return pairs


def _weights(priors: Any) -> Iterator[tuple[Pair, float]]:
    if priors is None:
        return
    if isinstance(priors, Mapping):
        yield from zip(named_pairs(list(priors), "priors"), priors.values(), strict=True)
    elif hasattr(priors, "columns") and "weight" in priors.columns:
        yield from zip(named_pairs(priors, "priors"), priors["weight"].tolist(), strict=True)
    else:
        raise TypeError(
            "priors must map (source, target) to a weight, or be a table with columns source, target and "
            f"weight, got a {type(priors).__name__}"
        )
