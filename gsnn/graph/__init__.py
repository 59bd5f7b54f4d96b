"""The graph container that every layer of the package shares, and its conversions."""

from gsnn.graph.build_graph import build
from gsnn.graph.container import (
    EDGE_TYPES,
    NODE_TYPES,
    EdgeType,
    FrozenList,
    GraphWarning,
    HeteroGraph,
    as_graph,
    edge_type_label,
)

__all__ = [
    "EDGE_TYPES",
    "NODE_TYPES",
    "EdgeType",
    "FrozenList",
    "GraphWarning",
    "HeteroGraph",
    "as_graph",
    "build",
    "edge_type_label",
]
