"""The types of nodes and edges."""

from __future__ import annotations

from typing import TypeAlias

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
