"""Edges added to a graph and taken from it, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from gsnn.graph.types import EDGE_TYPES, NODE_TYPES, EdgeType

Tensors = Mapping[EdgeType, torch.Tensor]
Names = Mapping[str, Sequence[str]]


def added(
    edge_index: Tensors, edge_weight: Tensors | None, names: Names, pairs: Any, signs: Any
) -> tuple[Tensors, Tensors | None]:
    """Edges and weights with ``pairs`` added; see :meth:`gsnn.graph.container.HeteroGraph.with_edges`."""
    wanted = name_pairs(pairs)
    given = None if signs is None else [float(sign) for sign in signs]
    if given is not None and len(given) != len(wanted):
        raise ValueError(f"signs must have one number per pair, got {len(given)} for {len(wanted)} pairs")
    here = _edge_sets(edge_index)
    new: dict[EdgeType, list[tuple[int, int]]] = {etype: [] for etype in EDGE_TYPES}
    values: dict[EdgeType, list[float]] = {etype: [] for etype in EDGE_TYPES}
    for k, pair in enumerate(wanted):
        etype, edge = _edge_of(pair, names)
        if pair[0] == pair[1] and etype == EDGE_TYPES[0]:
            raise ValueError(f"pairs must join two nodes, got the self pair {pair!r}")
        if edge in here[etype]:
            raise ValueError(f"pairs must be new edges, but {pair!r} exists or is given twice")
        here[etype].add(edge)
        new[etype].append(edge)
        values[etype].append(0.0 if given is None else given[k])
    index, weight = {}, {}
    for etype, old in edge_index.items():
        more = torch.tensor(new[etype], dtype=old.dtype, device=old.device).reshape(-1, 2).t()
        index[etype] = torch.cat([old, more], 1)
        before = torch.zeros(old.shape[1], device=old.device) if edge_weight is None else edge_weight[etype]
        weight[etype] = torch.cat([before, before.new_tensor(values[etype])])
    return index, weight if edge_weight is not None or given is not None else None


def removed(
    edge_index: Tensors, edge_weight: Tensors | None, names: Names, pairs: Any
) -> tuple[Tensors, Tensors | None]:
    """Edges and weights without ``pairs``; see :meth:`gsnn.graph.container.HeteroGraph.without_edges`."""
    lost: dict[EdgeType, set[tuple[int, int]]] = {etype: set() for etype in EDGE_TYPES}
    here = _edge_sets(edge_index)
    for pair in name_pairs(pairs):
        etype, edge = _edge_of(pair, names)
        if edge not in here[etype]:
            raise ValueError(f"pairs must be edges of the graph, but {pair!r} does not exist")
        if edge in lost[etype]:
            raise ValueError(f"pairs must hold each edge once, got {pair!r} twice")
        lost[etype].add(edge)
    stays = {
        etype: torch.tensor(
            [(u, v) not in lost[etype] for u, v in index.t().tolist()], dtype=torch.bool, device=index.device
        )
        for etype, index in edge_index.items()
    }
    index = {etype: old[:, stays[etype]] for etype, old in edge_index.items()}
    weight = edge_weight and {etype: old[stays[etype]] for etype, old in edge_weight.items()}
    return index, weight


def _edge_sets(edge_index: Tensors) -> dict[EdgeType, set[tuple[int, int]]]:
    return {etype: {(u, v) for u, v in index.t().tolist()} for etype, index in edge_index.items()}


def _edge_of(pair: tuple[str, str], names: Names) -> tuple[EdgeType, tuple[int, int]]:
    """Edge type and indices of a pair of names."""
    for name in pair:
        if not any(name in names[kind] for kind in NODE_TYPES):
            raise ValueError(f"pairs must name nodes of the graph, got the unknown name {name!r}")
    for etype in EDGE_TYPES:
        start, _, end = etype
        if pair[0] in names[start] and pair[1] in names[end]:
            return etype, (names[start].index(pair[0]), names[end].index(pair[1]))
    raise ValueError(
        f"pairs must lead from an input or function node to a function or output node, got {pair!r}"
    )


def name_pairs(pairs: Iterable[Any]) -> list[tuple[str, str]]:
    """``pairs`` as a list of two names each.

    Raises:
        TypeError: they are something else.
    """
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be (source, target) name pairs, got {pairs!r}")
    found = []
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Iterable):
            raise TypeError(f"pairs must be (source, target) name pairs, got the item {pair!r}")
        pair = tuple(pair)
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise TypeError(f"pairs must be (source, target) name pairs, got the item {pair!r}")
        found.append((str(pair[0]), str(pair[1])))
    return found
