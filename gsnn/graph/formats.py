"""Conversions between :class:`gsnn.graph.container.HeteroGraph` and tables, networkx and torch_geometric.

They are called through the methods of the graph. What reads gives the parts, from which the graph builds and
checks itself. All of them keep the order of nodes and edges, and the weights or their absence, so that going
there and back gives an equal graph (but for a graph with no edge at all, which has no weights afterwards).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch

from gsnn._delimited import twins
from gsnn._text import some_names
from gsnn.graph.interactions import SIGN_WORDS, add_measured, named_columns, read_table, refuse_repeated
from gsnn.graph.types import (
    EDGE_TYPES,
    NODE_TYPES,
    EdgeType,
    GraphLike,
    GraphParts,
    GraphWarning,
    edge_type_label,
)

_LABELS = {edge_type_label(etype): etype for etype in EDGE_TYPES}


def from_tsv(
    edges_path: str | PathLike[str],
    nodes_path: str | PathLike[str] | None = None,
    *,
    input_nodes: Iterable[str] | None = None,
    output_nodes: Iterable[str] | None = None,
    source: str | None = None,
    target: str | None = None,
    sign: str | None = None,
    measured: tuple[str, Sequence[str]] | None = None,
    warn: bool = True,
) -> GraphParts:
    """Read a graph from delimited files with a header line; see ``gsnn._delimited`` for what is read.

    ``edges_path`` has the columns ``source, target`` and optionally ``sign`` or ``weight`` and ``etype``, as
    in :func:`from_edge_table`. ``nodes_path``, when given, has ``node, type`` (``input``, ``function`` or
    ``output``), and fixes the order of the nodes and names those without edges; without it nodes stand in
    the order in which the edges first name them. Further columns are ignored. All names are read as text,
    also those that look like numbers or missing values (``NA``).

    ``input_nodes`` and ``output_nodes`` serve files without ``etype``, and override the order otherwise.

    ``source``, ``target`` and ``sign`` name the columns to take. By default a table with
    ``source_genesymbol`` and ``target_genesymbol`` is read by those (OmniPath's), and one with
    ``is_stimulation`` and ``is_inhibition`` gets its signs from them (0 where both or neither hold). Signs
    may be words: activation, stimulation, +, inhibition, repression, -.

    ``measured`` is a table of outputs: what it is called, and its columns. Those that name a function node
    and no output become outputs of the same name, each fed by its function node (with weight 1, where there
    are weights); a warning says so.

    Warns (:class:`GraphWarning`) of names that differ only by case, blanks or composed characters.

    Raises:
        ValueError: the message names the file, the line and the column.
        FileNotFoundError: there is no such file.
    """
    edges, found = read_table(edges_path)
    edges = named_columns(edges, str(edges_path), source, target, sign)
    _need_columns(edges, ("source", "target"), str(edges_path))
    said = twins(sorted({*edges["source"], *edges["target"]}), found.respelt)
    if said and warn:
        warnings.warn(
            f"{edges_path}: names that look alike: {some_names(said, str)}", GraphWarning, stacklevel=3
        )
    refuse_repeated(edges, found)
    lists: dict[str, Iterable[str] | None] = dict.fromkeys(NODE_TYPES)
    if nodes_path is not None:
        nodes, of_nodes = read_table(nodes_path)
        _need_columns(nodes, ("node", "type"), str(nodes_path))
        bad = np.flatnonzero(~nodes["type"].isin(NODE_TYPES))
        if bad.size:
            raise ValueError(
                f"{nodes_path}, line {of_nodes.lines[bad[0]]}, column 'type': must be one of "
                f"{', '.join(NODE_TYPES)}, got {nodes['type'].iloc[bad[0]]!r}"
            )
        for kind in NODE_TYPES:
            lists[kind] = nodes["node"][nodes["type"] == kind].tolist()
    return _from_table(
        edges,
        {
            "input": lists["input"] if input_nodes is None else input_nodes,
            "function": lists["function"],
            "output": lists["output"] if output_nodes is None else output_nodes,
        },
        str(edges_path),
        lambda row: f"line {found.lines[row]}",
        warn,
        measured,
    )


def from_edge_table(
    table: pd.DataFrame,
    *,
    input_nodes: Iterable[str] | None = None,
    function_nodes: Iterable[str] | None = None,
    output_nodes: Iterable[str] | None = None,
) -> GraphParts:
    """Read a pandas table with one row an edge.

    Columns ``source`` and ``target`` hold names. A column ``weight``, else one named ``sign``, gives the
    weights; with neither the graph has none. A column ``etype`` (``input->function``,
    ``function->function``, ``function->output``) gives the types. Without it ``input_nodes`` and
    ``output_nodes`` are needed, and every other name is a function node, which is how a table of
    interactions such as OmniPath's is read. Further columns are ignored.

    The node lists fix the order of the nodes and keep those that have no edge; without them nodes stand in
    the order in which the rows first name them, sources of a row before targets.

    Raises:
        TypeError, ValueError: the message names the column and the row (counted from 0).
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, got {type(table).__name__}")
    lists = {"input": input_nodes, "function": function_nodes, "output": output_nodes}
    return _from_table(table, lists, "table", lambda row: f"row {row}", warn=False)


def to_edge_table(graph: GraphLike) -> pd.DataFrame:
    """One row an edge in flat order, with the columns ``source, target[, weight], etype``.

    ``from_edge_table(table, input_nodes=..., function_nodes=..., output_nodes=...)`` with the lists of
    ``graph.node_names_dict`` gives an equal graph back.
    """
    columns: dict[str, list[Any]] = {"source": [], "target": [], "weight": [], "etype": []}
    weights = graph.edge_weight_dict
    for etype, index in graph.edge_index_dict.items():
        for name, kind, row in (("source", etype[0], index[0]), ("target", etype[2], index[1])):
            columns[name] += np.array(graph.node_names_dict[kind], dtype=object)[row.cpu().numpy()].tolist()
        columns["etype"] += [edge_type_label(etype)] * index.shape[1]
        if weights is not None:
            values = weights[etype].cpu()
            columns["weight"].append((values if values.dtype == torch.float64 else values.float()).numpy())
    if weights is None:
        del columns["weight"]
        return pd.DataFrame(columns)
    return pd.DataFrame({**columns, "weight": np.concatenate(columns["weight"])})


def from_networkx(G: nx.DiGraph) -> GraphParts:
    """Read a DiGraph whose nodes carry ``type`` = ``'input'``, ``'function'`` or ``'output'``.

    Nodes of each type stand in ``G.nodes`` order. Edges stand in the order of their ``position`` attribute,
    which :func:`to_networkx` writes because networkx groups edges by source; edges without one follow in
    ``G.edges`` order. Weights are read from ``weight``, which all edges must have or none.

    Raises:
        TypeError, ValueError: the message names the nodes or edges at fault.
    """
    if not isinstance(G, nx.DiGraph) or G.is_multigraph():
        raise TypeError(f"G must be a networkx DiGraph, got {type(G).__name__}")
    names: dict[str, list[Any]] = {kind: [] for kind in NODE_TYPES}
    for node, kind in G.nodes(data="type"):
        if kind not in names:
            raise ValueError(f"node {node!r} must have type {', '.join(map(repr, NODE_TYPES))}, got {kind!r}")
        names[kind].append(node)
    edges = sorted(G.edges(data="position"), key=lambda e: float("inf") if e[2] is None else e[2])
    return from_edges([(u, v) for u, v, _ in edges], names, G, "weight")


def from_edges(
    edges: Iterable[tuple[Any, Any]],
    names: Mapping[str, list[Any]],
    G: nx.DiGraph,
    weight_attr: str | None,
    *,
    weight_needed: bool = False,
) -> GraphParts:
    """Read edges of G in the given order, with the node lists of each type.

    Raises:
        ValueError: edges between types that no edge type joins, and where only some of the edges carry
            ``weight_attr`` (or none, with ``weight_needed``).
    """
    place: dict[Any, tuple[str, int]] = {}
    for kind in NODE_TYPES:
        for position, node in enumerate(names[kind]):
            place[node] = (kind, position)
    index: dict[EdgeType, list[tuple[int, int]]] = {etype: [] for etype in EDGE_TYPES}
    weight: dict[EdgeType, list[Any]] = {etype: [] for etype in EDGE_TYPES}
    unfit, without = [], []
    for u, v in edges:
        (source_kind, source), (target_kind, target) = place[u], place[v]
        etype = (source_kind, "to", target_kind)
        if etype not in index:
            unfit.append(f"{u!r} -> {v!r} ({source_kind} -> {target_kind})")
            continue
        index[etype].append((source, target))
        if weight_attr is not None:
            value = G.edges[u, v].get(weight_attr)
            if value is None:
                without.append(f"{u!r} -> {v!r}")
            weight[etype].append(value)
    if unfit:
        raise ValueError(
            f"every edge must be one of {', '.join(_LABELS)}, "
            f"got {len(unfit)} that are not: {some_names(unfit, str)}"
        )
    weighted = weight_attr is not None and (weight_needed or len(without) < sum(map(len, index.values())))
    if weighted and without:
        raise ValueError(
            f"every edge must have {weight_attr!r}, got {len(without)} without: {some_names(without, str)}"
        )
    return GraphParts(
        {e: torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T for e, pairs in index.items()},
        names,
        {e: _as_weight(values) for e, values in weight.items()} if weighted else None,
    )


def to_networkx(graph: GraphLike, weight_attr: str = "weight") -> nx.DiGraph:
    """A DiGraph whose nodes carry ``type``, and edges ``position`` (within their type) and any weight.

    Raises:
        ValueError: two node types share a name: networkx knows a node by its name alone.
    """
    kinds: dict[str, str] = {}
    shared: list[str] = []
    for kind, names in graph.node_names_dict.items():
        shared += [name for name in names if name in kinds]
        kinds.update(dict.fromkeys(names, kind))
    if shared:
        raise ValueError(
            f"networkx needs names that differ between the node types, got several of {some_names(shared)}"
        )
    G = nx.DiGraph()
    for kind, names in graph.node_names_dict.items():
        G.add_nodes_from(names, type=kind)
    weights = graph.edge_weight_dict
    for etype, index in graph.edge_index_dict.items():
        sources, targets = graph.node_names_dict[etype[0]], graph.node_names_dict[etype[2]]
        values = None if weights is None else weights[etype].tolist()
        for position, (source, target) in enumerate(index.T.tolist()):
            attributes = {} if values is None else {weight_attr: values[position]}
            G.add_edge(sources[source], targets[target], position=position, **attributes)
    return G


def to_pyg(graph: GraphLike) -> Any:
    """A torch_geometric HeteroData with ``node_names``, ``num_nodes``, ``edge_index``, any ``edge_weight``.

    It can be given to every part of this package in place of the graph. Raises ``ImportError`` naming the
    extra where torch_geometric is not installed.
    """
    try:
        from torch_geometric.data import HeteroData
    except ImportError as error:
        raise ImportError("to_pyg needs torch_geometric: pip install 'gsnn[pyg]'") from error
    data = HeteroData()
    for kind, names in graph.node_names_dict.items():
        data[kind].node_names = list(names)
        data[kind].num_nodes = len(names)
    weights = graph.edge_weight_dict
    for etype, index in graph.edge_index_dict.items():
        data[etype].edge_index = index
        if weights is not None:
            data[etype].edge_weight = weights[etype]
    return data


def _as_weight(values: Any) -> torch.Tensor:
    # float32 only where nothing is lost, so that weights come back as they were.
    exact = torch.as_tensor(values, dtype=torch.float64)
    short = exact.to(torch.float32)
    return short if torch.equal(short.to(torch.float64), exact) else exact


def _need_columns(table: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(
            f"{where} must have the column {some_names(missing)}, got {some_names(map(str, table.columns))}"
        )


def _from_table(
    table: pd.DataFrame,
    lists: Mapping[str, Iterable[str] | None],
    where: str,
    row_name: Callable[[int], str],
    warn: bool,
    measured: tuple[str, Sequence[str]] | None = None,
) -> GraphParts:
    _need_columns(table, ("source", "target"), where)

    def refuse(mask: np.ndarray, column: str, expected: str) -> None:
        bad = np.flatnonzero(mask)
        if bad.size:
            value = table[column].iloc[int(bad[0])]
            value = value.item() if isinstance(value, np.generic) else value
            raise ValueError(
                f"{where}, {row_name(int(bad[0]))}, column {column!r}: must be {expected}, got {value!r}"
            )

    for column in ("source", "target"):
        text = table[column].map(lambda name: isinstance(name, str) and bool(name)).to_numpy(dtype=bool)
        refuse(~text, column, "a node name")
    ends = {side: table[side].to_numpy(dtype=object) for side in ("source", "target")}
    given = {kind: None if names is None else list(names) for kind, names in lists.items()}

    if "etype" in table.columns:
        labels = table["etype"].to_numpy(dtype=object)
        refuse(
            ~table["etype"].isin(list(_LABELS)).to_numpy(dtype=bool), "etype", "one of " + ", ".join(_LABELS)
        )
        side_kinds = {
            "source": np.array([label.split("->")[0] for label in labels], dtype=object),
            "target": np.array([label.split("->")[1] for label in labels], dtype=object),
        }
    else:
        side_kinds = _inferred_kinds(ends, given, where, refuse)

    names = {kind: _ordered_names(kind, ends, side_kinds, given[kind], refuse) for kind in NODE_TYPES}
    weight_column = next((column for column in ("weight", "sign") if column in table.columns), None)
    values = np.empty(0)
    if weight_column is not None:
        plain = table[weight_column]
        if weight_column == "sign":
            plain = plain.map(lambda cell: SIGN_WORDS.get(str(cell).strip().lower(), cell))
        values = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64)
        refuse(~np.isfinite(values), weight_column, "a finite number")
    index, weight = {}, {}
    for etype in EDGE_TYPES:
        chosen = (side_kinds["source"] == etype[0]) & (side_kinds["target"] == etype[2])
        rows = [
            pd.Index(names[kind], dtype=object).get_indexer(ends[side][chosen])
            for side, kind in (("source", etype[0]), ("target", etype[2]))
        ]
        index[etype] = torch.from_numpy(np.stack(rows).astype(np.int64))
        weight[etype] = values[chosen] if weight_column is not None else values
    if measured is not None:
        add_measured(*measured, names, index, weight, warn)
    if weight_column is None:
        return GraphParts(index, names)
    return GraphParts(index, names, {e: _as_weight(w) for e, w in weight.items()})


def _inferred_kinds(
    ends: Mapping[str, np.ndarray],
    given: Mapping[str, list[str] | None],
    where: str,
    refuse: Callable[[np.ndarray, str, str], None],
) -> dict[str, np.ndarray]:
    kinds: dict[str, str] = {}
    for kind in ("input", "output"):
        names = given[kind]
        if names is None:
            raise ValueError(f"{where} has no column 'etype', so {kind}_nodes must be given, got None")
        shared = [name for name in names if kinds.get(name, kind) != kind]
        if shared:
            raise ValueError(
                f"a table without 'etype' needs inputs and outputs that differ, got {some_names(shared)}"
            )
        kinds.update(dict.fromkeys(names, kind))
    found = {
        side: np.array([kinds.get(name, "function") for name in names], dtype=object)
        for side, names in ends.items()
    }
    refuse(found["source"] == "output", "source", "no output node, as those have no edges going out")
    refuse(found["target"] == "input", "target", "no input node, as those have no edges coming in")
    direct = (found["source"] == "input") & (found["target"] == "output")
    refuse(direct, "target", "a function node, as the source is an input node")
    return found


def _ordered_names(
    kind: str,
    ends: Mapping[str, np.ndarray],
    side_kinds: Mapping[str, np.ndarray],
    given: list[str] | None,
    refuse: Callable[[np.ndarray, str, str], None],
) -> list[str]:
    if given is None:
        both = np.stack([ends["source"], ends["target"]], axis=1)
        mine = np.stack([side_kinds["source"], side_kinds["target"]], axis=1) == kind
        return pd.unique(both[mine]).tolist()
    known = set(given)
    for side in ("source", "target"):
        lost = np.array([name not in known for name in ends[side]], dtype=bool)
        refuse(
            lost & (side_kinds[side] == kind), side, f"one of the {len(known)} {kind} nodes that were given"
        )
    return given
