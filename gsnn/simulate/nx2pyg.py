"""From a networkx DiGraph to the graph container and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx

from gsnn._text import some_names
from gsnn.graph.container import NODE_TYPES, HeteroGraph, as_graph
from gsnn.graph.formats import from_edges, to_networkx


def nx2pyg(
    G: nx.DiGraph,
    input_nodes: Sequence[str],
    function_nodes: Sequence[str],
    output_nodes: Sequence[str],
    weight_attr: str | None = None,
    *,
    warn: bool = True,
) -> HeteroGraph:
    """Build the graph container from a DiGraph and its nodes by type.

    Nodes stand in the order of the lists, which together name every node of G once. The edges of each type
    stand in ``G.edges`` order. ``weight_attr`` is the edge attribute to take weights from, None for none.
    ``warn`` is passed on to :class:`~gsnn.graph.container.HeteroGraph`.

    Raises:
        TypeError, ValueError: G is no DiGraph, the lists and the nodes of G differ or overlap, an edge is not
            input->function, function->function or function->output, or lacks the weight.
    """
    if not isinstance(G, nx.DiGraph) or G.is_multigraph():
        raise TypeError(f"G must be a networkx DiGraph, got {type(G).__name__}")
    names = {"input": list(input_nodes), "function": list(function_nodes), "output": list(output_nodes)}
    listed: dict[Any, str] = {}
    for kind in NODE_TYPES:
        unknown = [node for node in names[kind] if node not in G]
        if unknown:
            raise ValueError(f"{kind}_nodes must be nodes of G, got {some_names(unknown)}")
        shared = [node for node in names[kind] if node in listed]
        if shared:
            raise ValueError(f"{kind}_nodes must not be in another list, got {some_names(shared)}")
        listed.update(dict.fromkeys(names[kind], kind))
    left = [node for node in G if node not in listed]
    if left:
        raise ValueError(f"the three lists must name every node of G, got none with {some_names(left)}")
    parts = from_edges(list(G.edges), names, G, weight_attr, weight_needed=True)
    return HeteroGraph(*parts, warn=warn)


def pyg2nx(data: Any, weight_attr: str = "weight") -> nx.DiGraph:
    """A DiGraph from the graph container, or from anything that carries its dictionaries.

    Nodes carry ``type``, edges carry ``position`` (their place within their type) and, where the graph has
    weights, ``weight_attr``. ``nx2pyg`` of it, with the same lists, has the same nodes and edges.

    Raises what :func:`gsnn.graph.container.as_graph` raises, and ``ValueError`` where two types share a name.
    """
    return to_networkx(as_graph(data, warn=False), weight_attr)
