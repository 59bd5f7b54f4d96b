"""The graph container that every layer of the package shares.

Input nodes only feed values in, output nodes only read them, and everything between is a function node.
:class:`HeteroGraph` checks itself once, when it is built; whoever receives one may trust it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from gsnn._text import some_names
from gsnn.graph import edits
from gsnn.graph.types import EDGE_TYPES, NODE_TYPES, EdgeType, GraphWarning, edge_type_label
from gsnn.graph.views import DictView, FrozenList

if TYPE_CHECKING:
    from os import PathLike

    import networkx as nx
    import pandas as pd


class HeteroGraph:
    """An immutable graph of N_in input, N function and N_out output nodes.

    Args:
        edge_index_dict: For each of :data:`EDGE_TYPES` an integer tensor (2, n): source index, target index,
            each counted within its own node type. An edge type without edges is given as a (2, 0) tensor.
        node_names_dict: For ``'input'``, ``'function'`` and ``'output'`` the names, unique within the type.
            The same name may stand in two types (a measured protein, say), although networkx cannot hold such
            a graph.
        edge_weight_dict: Optional; for each edge type finite weights (n,), in the order of the edges.
        warn: Whether to give a :class:`GraphWarning` for outputs that no edge feeds and for inputs from which
            no output can be reached.

    Order is kept everywhere, tensors stay on their device and are copied on the way in and on the way out.
    Self edges and isolated function nodes are legal.

    Raises:
        TypeError, ValueError: A type of edge or node is missing or unknown, a tensor has the wrong shape or
            dtype, an index is out of range, names repeat or are not text, an edge repeats, a weight is not
            finite, or there is no node of some type.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"source": ["drug", "kinase"], "target": ["kinase", "growth"]})
        >>> HeteroGraph.from_edge_table(table, input_nodes=["drug"], output_nodes=["growth"])
        HeteroGraph(nodes: 1 input, 1 function, 1 output; edges: 0 function->function, ...; no weights)
    """

    __slots__ = ("__weakref__", "_edge_index", "_edge_weight", "_node_names")
    _edge_index: dict[EdgeType, torch.Tensor]
    _edge_weight: dict[EdgeType, torch.Tensor] | None
    _node_names: dict[str, FrozenList]

    def __init__(
        self,
        edge_index_dict: Mapping[EdgeType, Any],
        node_names_dict: Mapping[str, Sequence[str]],
        edge_weight_dict: Mapping[EdgeType, Any] | None = None,
        *,
        warn: bool = True,
    ):
        _check_keys("node_names_dict", node_names_dict, NODE_TYPES)
        _check_keys("edge_index_dict", edge_index_dict, EDGE_TYPES)
        names = {kind: _checked_names(kind, node_names_dict[kind]) for kind in NODE_TYPES}
        index = {etype: _checked_index(etype, edge_index_dict[etype], names) for etype in EDGE_TYPES}
        weight = None
        if edge_weight_dict is not None:
            _check_keys("edge_weight_dict", edge_weight_dict, EDGE_TYPES)
            weight = {
                etype: _checked_weight(
                    etype, edge_weight_dict[etype], index[etype].shape[1], names, index[etype]
                )
                for etype in EDGE_TYPES
            }
        object.__setattr__(self, "_node_names", names)
        object.__setattr__(self, "_edge_index", index)
        object.__setattr__(self, "_edge_weight", weight)
        if warn:
            self._warn_about_idle_nodes()

    @property
    def edge_index_dict(self) -> Mapping[EdgeType, torch.Tensor]:
        """Edge type -> LongTensor (2, n), a fresh copy at each look-up."""
        return DictView("edge_index_dict", self._edge_index)

    @property
    def node_names_dict(self) -> Mapping[str, FrozenList]:
        """Node type -> list of names."""
        return DictView("node_names_dict", self._node_names)

    @property
    def edge_weight_dict(self) -> Mapping[EdgeType, torch.Tensor] | None:
        """Edge type -> float tensor (n,), a fresh copy at each look-up; None for a graph without weights."""
        return None if self._edge_weight is None else DictView("edge_weight_dict", self._edge_weight)

    def with_edges(
        self, pairs: Iterable[tuple[str, str]], signs: Iterable[float] | None = None
    ) -> HeteroGraph:
        """A new graph with further edges, each after those of its type.

        Args:
            pairs: (source name, target name). A name that stands in several types is the function node; so a
                pair becomes function -> function where it can, else input -> function or function -> output.
            signs: one number per pair, its weight in the new graph, such as 1 or -1. Where only some edges
                have a weight (a weighted graph without ``signs``, or the reverse) the others get 0, unknown.

        Raises:
            TypeError: no pairs of names.
            ValueError: an unknown name, a pair that no edge type allows, a self pair, an edge that exists or
                is given twice, or another number of signs than of pairs; each is named.
        """
        index, weight = edits.added(self._edge_index, self._edge_weight, self._node_names, pairs, signs)
        return HeteroGraph(index, self._node_names, weight, warn=False)

    def without_edges(self, pairs: Iterable[tuple[str, str]]) -> HeteroGraph:
        """A new graph that lacks the edges ``pairs``, (source name, target name) as in :meth:`with_edges`.

        Raises:
            TypeError: no pairs of names.
            ValueError: an unknown name, or an edge that does not exist or is given twice; each is named.
        """
        index, weight = edits.removed(self._edge_index, self._edge_weight, self._node_names, pairs)
        return HeteroGraph(index, self._node_names, weight, warn=False)

    def _refuse(self, name: str, *value: Any) -> NoReturn:
        raise AttributeError(f"a HeteroGraph cannot be changed once built (tried to change {name!r})")

    __setattr__ = __delattr__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and unpickled graphs are built, hence checked, like any other; their warning was given once.
        names = {kind: list(names) for kind, names in self._node_names.items()}
        return partial(HeteroGraph, warn=False), (self._edge_index, names, self._edge_weight)

    def __eq__(self, other: object) -> bool:
        """Same names, edges and weights in the same order, whatever the device and float dtype."""
        if not isinstance(other, HeteroGraph):
            return NotImplemented
        if self._node_names != other._node_names or (self._edge_weight is None) != (
            other._edge_weight is None
        ):
            return False
        pairs = ((self._edge_index, other._edge_index), (self._edge_weight or {}, other._edge_weight or {}))
        return all(
            np.array_equal(_host(mine[etype]), _host(theirs[etype]))
            for mine, theirs in pairs
            for etype in mine
        )

    def __hash__(self) -> int:
        return hash(tuple(tuple(self._node_names[kind]) for kind in NODE_TYPES))

    def __repr__(self) -> str:
        nodes = ", ".join(f"{len(self._node_names[kind])} {kind}" for kind in ("input", "function", "output"))
        edges = ", ".join(f"{self._edge_index[e].shape[1]} {edge_type_label(e)}" for e in EDGE_TYPES)
        weights = "no weights" if self._edge_weight is None else "weighted"
        return f"HeteroGraph(nodes: {nodes}; edges: {edges}; {weights})"

    def _warn_about_idle_nodes(self) -> None:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order

        function, inputs, outputs = (self._edge_index[etype].cpu().numpy() for etype in EDGE_TYPES)
        n = len(self._node_names["function"])
        fed = np.zeros(len(self._node_names["output"]), dtype=bool)
        fed[outputs[1]] = True
        # One search backwards from an extra node n that stands for all the outputs.
        rows = np.concatenate([function[1], np.full(outputs.shape[1], n)]).astype(np.int32)
        cols = np.concatenate([function[0], outputs[0]]).astype(np.int32)  # wider ones fail in scipy < 1.12
        backwards = csr_array((np.ones(rows.size, dtype=np.int8), (rows, cols)), shape=(n + 1, n + 1))
        reaches = np.zeros(n + 1, dtype=bool)
        reaches[breadth_first_order(backwards, n, return_predecessors=False)] = True
        useful = np.zeros(len(self._node_names["input"]), dtype=bool)
        useful[inputs[0][reaches[inputs[1]]]] = True
        for kind, idle, what in (
            ("output", ~fed, "no edge feeds"),
            ("input", ~useful, "no output can be reached from"),
        ):
            if idle.any():
                lost = [self._node_names[kind][i] for i in np.flatnonzero(idle)]
                message = f"{what} {len(lost)} of {idle.size} {kind} nodes: {some_names(lost)}"
                warnings.warn(message, GraphWarning, stacklevel=3)

    @classmethod
    def from_tsv(
        cls,
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
    ) -> HeteroGraph:
        """Read delimited files; see :func:`gsnn.graph.formats.from_tsv`."""
        from gsnn.graph.formats import from_tsv

        parts = from_tsv(
            edges_path,
            nodes_path,
            input_nodes=input_nodes,
            output_nodes=output_nodes,
            source=source,
            target=target,
            sign=sign,
            measured=measured,
            warn=warn,
        )
        return cls(*parts, warn=warn)

    @classmethod
    def from_edge_table(
        cls,
        table: pd.DataFrame,
        *,
        input_nodes: Iterable[str] | None = None,
        function_nodes: Iterable[str] | None = None,
        output_nodes: Iterable[str] | None = None,
        warn: bool = True,
    ) -> HeteroGraph:
        """Read a pandas edge table; see :func:`gsnn.graph.formats.from_edge_table`."""
        from gsnn.graph.formats import from_edge_table

        parts = from_edge_table(
            table, input_nodes=input_nodes, function_nodes=function_nodes, output_nodes=output_nodes
        )
        return cls(*parts, warn=warn)

    def to_edge_table(self) -> pd.DataFrame:
        """One row an edge, in flat order: ``source, target[, weight], etype``. Isolated nodes have no row."""
        from gsnn.graph.formats import to_edge_table

        return to_edge_table(self)

    @classmethod
    def from_networkx(cls, G: nx.DiGraph, *, warn: bool = True) -> HeteroGraph:
        """Read a DiGraph whose nodes carry ``type``; see :func:`gsnn.graph.formats.from_networkx`."""
        from gsnn.graph.formats import from_networkx

        return cls(*from_networkx(G), warn=warn)

    def to_networkx(self) -> nx.DiGraph:
        """Write a DiGraph; see :func:`gsnn.graph.formats.to_networkx`."""
        from gsnn.graph.formats import to_networkx

        return to_networkx(self)

    @classmethod
    def from_pyg(cls, data: Any, *, warn: bool = True) -> HeteroGraph:
        """Read a torch_geometric HeteroData; the same as :func:`as_graph`."""
        return as_graph(data, warn=warn)

    def to_pyg(self) -> Any:
        """Write a torch_geometric HeteroData (extra ``pyg``); see :func:`gsnn.graph.formats.to_pyg`."""
        from gsnn.graph.formats import to_pyg

        return to_pyg(self)


def as_graph(data: Any, *, warn: bool = True) -> HeteroGraph:
    """Check any object with ``edge_index_dict`` and ``node_names_dict``, and return a :class:`HeteroGraph`.

    ``edge_weight_dict`` is read where it is present and not empty. A HeteroGraph is returned as it is.

    Raises:
        TypeError, ValueError: a dictionary is missing, and what :class:`HeteroGraph` refuses.
    """
    if isinstance(data, HeteroGraph):
        return data
    found = {}
    for name in ("edge_index_dict", "node_names_dict", "edge_weight_dict"):
        try:
            found[name] = getattr(data, name)
        except (AttributeError, KeyError):  # HeteroData raises KeyError for an attribute that no store has
            if name != "edge_weight_dict":
                raise TypeError(
                    "data must have edge_index_dict and node_names_dict, "
                    f"got {type(data).__name__} without {name}"
                ) from None
    weights = found.get("edge_weight_dict") or None
    return HeteroGraph(found["edge_index_dict"], found["node_names_dict"], weights, warn=warn)


def _host(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.double() if tensor.is_floating_point() else tensor).cpu().numpy()


def _check_keys(argument: str, given: Any, expected: Sequence[Any]) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a dict, got {type(given).__name__}")
    wrong = [f"no {key!r}" for key in expected if key not in given]
    wrong += [f"the unknown {key!r}" for key in given if key not in expected]
    if wrong:
        keys = some_names(expected)
        raise ValueError(f"{argument} must have exactly the keys {keys}, got {some_names(wrong, str)}")


def _checked_names(kind: str, given: Any) -> FrozenList:
    where = f"node_names_dict[{kind!r}]"
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{where} must be a list of str, got {type(given).__name__}")
    names = list(given)
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"{where} must be a list of str, got {name!r} at position {position}")
        if not name:
            raise ValueError(f"{where} must not hold empty names, got one at position {position}")
    if not names:
        raise ValueError(f"{where} must name at least one node, got none")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        repeated = dict.fromkeys(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{where} must hold each name once, got several of {some_names(repeated)}")
    return FrozenList(map(str, names))


def _as_tensor(where: str, given: Any, expected: str) -> torch.Tensor:
    try:
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{where} must be {expected}, got {type(given).__name__}") from None


def _checked_index(etype: EdgeType, given: Any, names: Mapping[str, Sequence[str]]) -> torch.Tensor:
    where = f"edge_index_dict[{etype!r}]"
    index = _as_tensor(where, given, "an integer tensor (2, n)")
    if index.ndim != 2 or index.shape[0] != 2:
        raise ValueError(f"{where} must have shape (2, n), got {tuple(index.shape)}")
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(f"{where} must have an integer dtype, got {index.dtype}")
    index = index.to(torch.int64, copy=True)
    host = index.cpu().numpy()
    for row, (kind, side) in enumerate(((etype[0], "source"), (etype[2], "target"))):
        count = len(names[kind])
        outside = (host[row] < 0) | (host[row] >= count)
        if outside.any():
            first = int(np.argmax(outside))
            raise ValueError(
                f"{where} must hold {side} indices from 0 to {count - 1} ({count} {kind} nodes), "
                f"got {host[row, first]} at edge {first}"
            )
    width = len(names[etype[2]])
    keys = np.sort(host[0] * width + host[1])
    repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
    if repeated.size:
        shown = (_edge_name(etype, names, key // width, key % width) for key in repeated)
        raise ValueError(f"{where} must hold each edge once, got several of {some_names(shown, str)}")
    return index


def _checked_weight(
    etype: EdgeType, given: Any, n: int, names: Mapping[str, Sequence[str]], index: torch.Tensor
) -> torch.Tensor:
    where = f"edge_weight_dict[{etype!r}]"
    weight = _as_tensor(where, given, "a float tensor (n,)")
    if tuple(weight.shape) != (n,):
        raise ValueError(f"{where} must have shape ({n},), one weight an edge, got {tuple(weight.shape)}")
    if weight.dtype == torch.bool or weight.is_complex():
        raise TypeError(f"{where} must have a float dtype, got {weight.dtype}")
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    weight = weight.to(dtype, copy=True)
    bad = torch.nonzero(~torch.isfinite(weight)).flatten().cpu()
    if bad.numel():
        ends = index.cpu()[:, bad].T.tolist()
        shown = (_edge_name(etype, names, source, target) for source, target in ends)
        raise ValueError(
            f"{where} must be finite, got {weight[bad[0]].item()} first; at {some_names(shown, str)}"
        )
    return weight


def _edge_name(etype: EdgeType, names: Mapping[str, Sequence[str]], source: int, target: int) -> str:
    return f"{names[etype[0]][source]!r} -> {names[etype[2]][target]!r}"
