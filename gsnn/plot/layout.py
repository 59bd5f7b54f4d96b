"""Where the nodes of a graph stand in a picture: columns by depth, few crossings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gsnn.graph.container import HeteroGraph

Node = tuple[str, str]  # (type, name): the same name may stand in two types
Edge = tuple[str, str]


def nodes_and_edges(graph: HeteroGraph) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """All nodes, inputs first and outputs last, and all edges but self edges."""
    names = graph.node_names_dict
    nodes = [(kind, name) for kind in ("input", "function", "output") for name in names[kind]]
    edges = []
    for (source, _, target), index in graph.edge_index_dict.items():
        for i, j in index.t().tolist():
            edges.append(((source, names[source][i]), (target, names[target][j])))
    return nodes, [(a, b) for a, b in edges if a != b]


def busy_inputs(nodes: list[Node], edges: list[tuple[Node, Node]]) -> set[Node]:
    """Inputs that feed more than half of the function nodes, where there are at least ten of these."""
    functions = sum(kind == "function" for kind, _ in nodes)
    fed: dict[Node, int] = {}
    for source, _ in edges:
        if source[0] == "input":
            fed[source] = fed.get(source, 0) + 1
    return {node for node, n in fed.items() if functions >= 10 and n > functions / 2}


def surroundings(
    nodes: list[Node], edges: list[tuple[Node, Node]], coloured: Sequence[Edge], most: int
) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """Ends of the coloured edges, then their neighbours, nearest first, up to ``most`` nodes."""
    near: dict[Node, list[Node]] = {}
    for a, b in edges:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    ends = [("function", n) for edge in coloured for n in edge] or nodes[:1]
    chosen = dict.fromkeys(ends[:most])
    ring = list(chosen)
    while ring and len(chosen) < most:
        ring = list(dict.fromkeys(m for n in ring for m in near.get(n, ()) if m not in chosen))
        chosen.update(dict.fromkeys(ring[: most - len(chosen)]))
    return [n for n in nodes if n in chosen], [(a, b) for a, b in edges if a in chosen and b in chosen]


def depths(functions: Sequence[Node], edges: Iterable[tuple[Node, Node]]) -> dict[Node, int]:
    """Longest path from a node without parents, after dropping the edges that close a cycle."""
    children: dict[Node, list[Node]] = {n: [] for n in functions}
    fed = set()
    for a, b in edges:
        if a in children and b in children:
            children[a].append(b)
            fed.add(b)
    done: list[Node] = []
    forward: dict[Node, list[Node]] = {n: [] for n in functions}
    state: dict[Node, int] = {}  # 1 while on the stack, 2 when finished
    for root in sorted(functions, key=lambda n: n in fed):
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(children[root]))]
        while stack:
            node, rest = stack[-1]
            child = next(rest, None)
            if child is None:
                state[node] = 2
                done.append(node)
                stack.pop()
            elif state.get(child) != 1:
                forward[node].append(child)
                if child not in state:
                    state[child] = 1
                    stack.append((child, iter(children[child])))
    depth = dict.fromkeys(functions, 0)
    for node in reversed(done):
        for child in forward[node]:
            depth[child] = max(depth[child], depth[node] + 1)
    for node in functions:  # a source stands just before what it feeds
        if node not in fed and forward[node]:
            depth[node] = min(depth[child] for child in forward[node]) - 1
    return depth


def layout(nodes: Sequence[Node], edges: Sequence[tuple[Node, Node]]) -> dict[Node, tuple[float, float]]:
    """Columns by depth; within a column by the mean height of the neighbours (Sugiyama et al. 1981)."""
    functions = [n for n in nodes if n[0] == "function"]
    depth = depths(functions, edges)
    last = max(depth.values(), default=0) + 2
    column = {n: {"input": 0, "output": last}.get(n[0], depth.get(n, 0) + 1) for n in nodes}
    members: dict[int, list[Node]] = {}
    for node in nodes:
        members.setdefault(column[node], []).append(node)
    near: dict[Node, list[Node]] = {n: [] for n in nodes}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    height: dict[Node, float] = {}

    def spread(x: int) -> None:
        for i, node in enumerate(members[x]):
            height[node] = (len(members[x]) - 1) / 2 - i

    for x in members:
        spread(x)
    order = sorted(members)
    for sweep in range(8):
        for x in order if sweep % 2 == 0 else order[::-1]:
            mean: Mapping[Node, float] = {
                n: float(np.mean([height[m] for m in near[n]])) if near[n] else height[n] for n in members[x]
            }
            members[x].sort(key=lambda n: -mean[n])
            spread(x)
    # Short columns use the height of the tall ones, and neighbours are staggered so that labels fit.
    tall = max(len(m) for m in members.values())
    place = {}
    for x, column_nodes in members.items():
        stretch = min(2.5, (tall - 1) / (len(column_nodes) - 1)) if len(column_nodes) > 1 else 1.0
        for node in column_nodes:
            shift = 0.25 if 0 < x < last and x % 2 else 0.0
            place[node] = (float(x), height[node] * stretch + shift)
    return place
