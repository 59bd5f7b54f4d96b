"""The types of nodes and edges, and what a graph is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

EdgeType: TypeAlias = tuple[str, str, str]

#: Edge types in the order of the flat graph.
EDGE_TYPES: tuple[EdgeType, ...] = (
    ("function", "to", "function"),
    ("input", "to", "function"),
    ("function", "to", "output"),
)
#: Node types in the order of the flat graph.
NODE_TYPES: tuple[str, ...] = ("function", "input", "output")


def edge_type_label(etype: EdgeType) -> str:
    """``('input', 'to', 'function')`` as the text ``'input->function'`` that tables use."""
    return f"{etype[0]}->{etype[2]}"


class GraphWarning(UserWarning):
    """A graph is legal but has nodes that can never take part, such as an output that nothing feeds."""


class GraphParts(NamedTuple):
    """The arguments of a graph: ``HeteroGraph(*parts)`` checks them and builds it."""

    edge_index_dict: Mapping[EdgeType, torch.Tensor]
    node_names_dict: Mapping[str, list[str]]
    edge_weight_dict: Mapping[EdgeType, torch.Tensor] | None = None


class GraphLike(Protocol):
    """What can be written out as a graph: :class:`gsnn.graph.container.HeteroGraph` or its parts."""

    @property
    def edge_index_dict(self) -> Mapping[EdgeType, torch.Tensor]:
        """Edge type -> integer tensor (2, n)."""

    @property
    def node_names_dict(self) -> Mapping[str, Any]:
        """Node type -> list of names."""

    @property
    def edge_weight_dict(self) -> Mapping[EdgeType, torch.Tensor] | None:
        """Edge type -> float tensor (n,), or None."""
