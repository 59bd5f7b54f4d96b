"""Graphs at the edge of what is legal, each small enough to be trained in a moment."""

import torch

from gsnn.graph import EDGE_TYPES, HeteroGraph

# function -> function, input -> function, function -> output
EDGES = {
    "one node": ([], [(0, 0)], [(0, 0)]),
    "no edge between functions": ([], [(0, 0), (1, 1)], [(0, 0), (1, 1), (2, 1)]),
    "isolated nodes": ([(0, 1)], [(0, 0)], [(1, 0)]),
    "self loop": ([(0, 0), (0, 1), (1, 1)], [(0, 0), (1, 1)], [(1, 0), (0, 1)]),
    "cycle": ([(0, 1), (1, 2), (2, 0)], [(0, 0), (1, 2)], [(1, 0), (2, 1)]),
    "two nodes in a cycle": ([(0, 1), (1, 0)], [(0, 0), (1, 0)], [(0, 0), (1, 1)]),
    "complete": ([(i, j) for i in range(3) for j in range(3) if i != j], [(0, 0), (1, 1)], [(1, 0), (2, 1)]),
    "no input arrives": ([(0, 1)], [(0, 2), (1, 2)], [(1, 0), (0, 1)]),
    "nothing feeds an output": ([(0, 1)], [(0, 0), (1, 1)], [(1, 0)]),
}
ZOO = sorted(EDGES)


def zoo_graph(name):
    """The graph of that name."""
    sizes = {"input": 1, "function": 1, "output": 1} if name == "one node" else None
    sizes = sizes or {"input": 2, "function": 3, "output": 2}
    names = {kind: [f"{kind[0]}{k}" for k in range(n)] for kind, n in sizes.items()}
    index = {
        etype: torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
        for etype, edges in zip(EDGE_TYPES, EDGES[name], strict=True)
    }
    return HeteroGraph(index, names, warn=False)


def zoo_data(graph, n=12, dtype=torch.float32):
    """x (n, N_in) and y (n, N_out)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (len(graph.node_names_dict[kind]) for kind in ("input", "output"))
    return tuple(torch.randn(n, size, generator=generator).to(dtype) for size in sizes)
