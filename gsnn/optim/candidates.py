"""Pairs of nodes as a user gives them: an iterable, a table, or weights of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsnn.graph.container import EDGE_TYPES
from gsnn.graph.types import EdgeType
from gsnn.optim.edge_table import KeptEdges, Pair


@dataclass(frozen=True)
class OpenPairs:
    """The pairs that may be added to a graph, by the type of edge that they would be.

    Attributes:
        kept: type -> the graph's edges of it and the nodes that they join.
        weights: type -> (S, T) weight of each pair, 0 for those that may not be added; only types with a
            pair that may.
    """

    kept: Mapping[EdgeType, KeptEdges]
    weights: Mapping[EdgeType, NDArray[np.float64]]

    @classmethod
    def of(cls, graph: Any, candidates: Any = None, priors: Any = None) -> OpenPairs:
        """All missing function -> function pairs, or those of ``candidates``, of whatever type.

        A name may stand for two nodes of different types; then a pair is a function -> function edge where
        it can be one, as in ``HeteroGraph.with_edges``.

        Raises:
            TypeError, ValueError: ``candidates`` or ``priors`` are no pairs or weights, or leave none.
        """
        if candidates is None:
            kept = KeptEdges.of(graph)
            return cls({EDGE_TYPES[0]: kept}, {EDGE_TYPES[0]: pair_weights(kept, None, priors)})
        left = dict.fromkeys(named_pairs(candidates, "candidates"))
        every, weights = {}, {}
        for etype in EDGE_TYPES:
            kept = KeptEdges.of(graph, etype)
            sources, targets = set(kept.sources), set(kept.targets)
            own = [pair for pair in left if pair[0] in sources and pair[1] in targets]
            weight = _weighted(kept, own, priors)
            left = dict.fromkeys(pair for pair in left if pair not in set(own))
            if (weight > 0).any():
                every[etype], weights[etype] = kept, weight
        if not weights:
            raise ValueError(
                "candidates and priors must leave at least one pair from an input or function node to a "
                "function or output node that the graph lacks, got none"
            )
        return cls(every, weights)

    @property
    def number(self) -> int:
        """How many there are."""
        return sum(int((weight > 0).sum()) for weight in self.weights.values())

    def pairs(self, etype: EdgeType | None = None) -> list[Pair]:
        """Their names, those of one type or all."""
        found = []
        for own, weight in self.weights.items():
            if etype in (None, own):
                sources, targets = self.kept[own].sources, self.kept[own].targets
                found += [(sources[i], targets[j]) for i, j in np.argwhere(weight > 0).tolist()]
        return found

    def text(self) -> str:
        """What tells these from others, for a checksum."""
        return repr([weight.tolist() for weight in self.weights.values()])


def pair_weights(kept: KeptEdges, candidates: Any = None, priors: Any = None) -> NDArray[np.float64]:
    """(S, T) weight of each pair of `kept`'s nodes, 0 for those that may not be chosen; see `greedy`."""
    given = None if candidates is None else named_pairs(candidates, "candidates")
    weight = _weighted(kept, given, priors)
    if not (weight > 0).any():
        kinds = " and ".join(dict.fromkeys(kept.kinds))
        raise ValueError(
            f"candidates and priors must leave at least one pair of {kinds} nodes that the graph lacks"
            ", got none"
        )
    return weight


def _weighted(kept: KeptEdges, candidates: list[Pair] | None, priors: Any) -> NDArray[np.float64]:
    row, column = ({name: k for k, name in enumerate(names)} for names in (kept.sources, kept.targets))
    weight = np.where(kept.mask | kept.itself, 0.0, 1.0)
    if candidates is not None:
        among = np.zeros(weight.shape, dtype=bool)
        for source, target in candidates:
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
