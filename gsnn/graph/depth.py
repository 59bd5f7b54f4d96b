"""How far signals have to go in a graph: layers that a network needs, outputs that none reaches."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from gsnn.graph.container import EDGE_TYPES, HeteroGraph


def default_layers(graph: HeteroGraph) -> int:
    """Function nodes on the longest of the shortest paths from an input to an output, within 4 to 12.

    Each layer carries a signal one hop, so that every connected pair can be heard.
    """
    hops = _hops(graph)
    reached = hops[np.isfinite(hops)]
    return int(np.clip(reached.max(initial=0), 4, 12))


def unreached_outputs(graph: HeteroGraph, layers: int | None = None) -> list[str]:
    """Names of the outputs that no input can reach.

    That is by no path, or with ``layers`` by none of at most so many function nodes. A network predicts a
    constant for them.
    """
    least = _hops(graph).min(0, initial=np.inf)
    lost = ~(least <= (np.finfo(float).max if layers is None else layers))
    return [graph.node_names_dict["output"][k] for k in np.flatnonzero(lost).tolist()]


def _hops(graph: HeteroGraph) -> np.ndarray:
    """(N_in, N_out): function nodes on the shortest path, infinite where there is none."""
    names, index = graph.node_names_dict, graph.edge_index_dict
    n, n_in = len(names["function"]), len(names["input"])
    between, into, out_of = (index[etype].cpu().numpy() for etype in EDGE_TYPES)
    rows = np.concatenate([between[0], into[0] + n])
    columns = np.concatenate([between[1], into[1]])
    pairs = (rows.astype(np.int32), columns.astype(np.int32))  # wider ones fail in scipy < 1.12
    hops = coo_array((np.ones(len(rows)), pairs), shape=(n + n_in, n + n_in)).tocsr()
    distance = dijkstra(hops, unweighted=True, indices=np.arange(n, n + n_in))[:, :n]
    to_output = np.full((n_in, len(names["output"])), np.inf)
    np.minimum.at(to_output.T, out_of[1], distance[:, out_of[0]].T)
    return to_output
