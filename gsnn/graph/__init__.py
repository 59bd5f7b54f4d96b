"""The graph container that every layer of the package shares, and its conversions."""

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
    "edge_type_label",
]
