"""Samples from the structural equations that a directed graph stands for, with or without cycles."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

from gsnn._checks import finite, non_negative, positive, whole
from gsnn._text import some_names
from gsnn.simulate.elementwise import ParentFunction, SampleFunction

Samples = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_DIVERGED = 1e100


def simulate(
    G: nx.DiGraph,
    n_train: int,
    n_test: int,
    input_nodes: Sequence[Hashable],
    output_nodes: Sequence[Hashable],
    *,
    noise_scale: float = 1.0,
    special_functions: Mapping[Any, ParentFunction] | None = None,
    signed_edges: Mapping[tuple[Any, Any], float] | None = None,
    seed: Any = None,
) -> Samples:
    """Draw samples of an acyclic graph; returns ``(x_train, x_test, y_train, y_test)``, mind the order.

    Input nodes, and other nodes without parents, are N(0, 1). Every other node, outputs included, is
    N(m, noise_scale), noise_scale being the standard deviation, with m = sum of sign * parent value.

    Args:
        G: An acyclic DiGraph. Parents of an input node are of no effect.
        n_train, n_test: Samples in each part, 0 or more.
        input_nodes, output_nodes: Columns of x (n, N_in) and y (n, N_out), in this order, both float64.
        noise_scale: 0 or more.
        special_functions: Node -> function that gives m in place of the sum. It gets the list of the node's
            parent values, in ``G.predecessors`` order, and returns a finite number. It may be written for
            scalars; where a call with all samples at once gives the same it is made so, which is fast (see
            :mod:`gsnn.simulate.elementwise` for how that is checked, and for the mark ``vectorized``). It
            should depend on nothing but its argument and random generators.
        signed_edges: ``(u, v)`` -> factor of that edge, before the edge's ``sign`` attribute and the default
            +1.
        seed: None draws from numpy's global state; otherwise anything ``numpy.random.default_rng`` takes.

    Raises:
        TypeError, ValueError: a cyclic graph (naming one cycle), nodes or edges that are not in G, an
            argument out of its range, and a special function that does not return a finite number.

    Example:
        >>> G = nx.DiGraph([("drug", "kinase"), ("kinase", "growth")])
        >>> signs = {("drug", "kinase"): -1}
        >>> x, _, y, _ = simulate(G, 100, 0, ["drug"], ["growth"], signed_edges=signs, seed=0)
        >>> x.shape, y.shape, bool(np.corrcoef(x[:, 0], y[:, 0])[0, 1] < 0)
        ((100, 1), (100, 1), True)
    """
    system = _System.checked(
        G, n_train, n_test, input_nodes, output_nodes, noise_scale, special_functions, signed_edges
    )
    try:
        order = list(nx.topological_sort(G))
    except nx.NetworkXUnfeasible:
        cycle = [u for u, _ in nx.find_cycle(G)]
        path = " -> ".join(repr(node) for node in [*cycle, cycle[0]])
        raise ValueError(f"G must have no cycle, got {path}; simulate_sde takes cyclic graphs") from None

    n = n_train + n_test
    draws = _normal_source(seed)((len(order), n))
    values: dict[Hashable, np.ndarray] = {}
    for node, noise in zip(order, draws, strict=True):
        parents = system.parents.get(node)
        if parents is None:
            values[node] = noise
            continue
        arrays = [values[parent] for parent in parents]
        special = system.special.get(node)
        if special is not None and n:
            mean = special(arrays)
        else:
            mean = np.zeros(n)
            for sign, array in zip(system.signs[node], arrays, strict=True):
                mean += sign * array
        values[node] = mean + noise_scale * noise
    return _split(values, input_nodes, output_nodes, n_train, n)


def simulate_sde(
    G: nx.DiGraph,
    n_train: int,
    n_test: int,
    input_nodes: Sequence[Hashable],
    output_nodes: Sequence[Hashable],
    *,
    noise_scale: float = 1.0,
    special_functions: Mapping[Any, ParentFunction] | None = None,
    signed_edges: Mapping[tuple[Any, Any], float] | None = None,
    seed: Any = None,
    dt: float = 0.05,
    t_final: float = 20.0,
) -> Samples:
    """Draw samples of a graph that may have cycles; returns ``(x_train, x_test, y_train, y_test)``.

    Each sample is the state at time ``t_final`` of dX = (f(parents) - X) dt + noise_scale dW, started at 0
    and integrated by Euler-Maruyama (Maruyama 1955) in steps of ``dt``. f is the signed sum of the parents,
    or the node's special function. Input nodes, and other nodes without parents, hold one N(0, 1) draw all
    the time. A linear system settles only if all eigenvalues of its sign matrix have a real part below 1.

    The arguments are those of :func:`simulate`. A special function written for scalars is called once per
    sample and step, which takes ``t_final / dt`` times as long as there.

    Raises what :func:`simulate` raises, except for cycles, and ``FloatingPointError`` naming a node and a
    time where the state grows without bound.
    """
    system = _System.checked(
        G, n_train, n_test, input_nodes, output_nodes, noise_scale, special_functions, signed_edges
    )
    for name, value in (("dt", dt), ("t_final", t_final)):
        positive(name, value)
    if dt > t_final:
        raise ValueError(f"dt must be at most t_final = {t_final!r}, got {dt!r}")
    steps = math.ceil(round(t_final / dt, 9))
    n = n_train + n_test
    normal = _normal_source(seed)

    nodes = list(G)
    row = {node: i for i, node in enumerate(nodes)}
    moving = np.array([row[node] for node in system.parents], dtype=int)
    entries = [
        (position, row[parent], sign)
        for position, (node, parents) in enumerate(system.parents.items())
        if node not in system.special
        for parent, sign in zip(parents, system.signs[node], strict=True)
    ]
    at, of, signs = (np.array(part) for part in zip(*entries, strict=True)) if entries else ([], [], [])
    linear = csr_array((np.asarray(signs, dtype=float), (at, of)), shape=(len(moving), len(nodes)))
    special = [
        (position, [row[parent] for parent in parents], system.special[node])
        for position, (node, parents) in enumerate(system.parents.items())
        if node in system.special
    ]

    state = np.zeros((len(nodes), n))
    still = np.array([row[node] for node in nodes if node not in system.parents], dtype=int)
    state[still] = normal((len(still), n))
    for step in range(steps if n else 0):
        drift = linear @ state
        for position, parents, function in special:
            drift[position] = function([state[parent] for parent in parents])
        drift -= state[moving]
        state[moving] += dt * drift + noise_scale * math.sqrt(dt) * normal((len(moving), n))
        if not np.abs(state).max(initial=0.0) < _DIVERGED:
            worst = nodes[int(np.argmax(np.abs(state).max(axis=1)))]
            raise FloatingPointError(
                f"the state of node {worst!r} grows without bound by t = {(step + 1) * dt:g} "
                f"(dt = {dt:g}, t_final = {t_final:g}): its cycles amplify, or dt is too large"
            )
    return _split({node: state[i] for node, i in row.items()}, input_nodes, output_nodes, n_train, n)


@dataclass(frozen=True)
class _System:
    """The checked arguments: for each node that has an equation its parents, their signs, its function."""

    parents: dict[Hashable, list[Hashable]]
    signs: dict[Hashable, list[float]]
    special: dict[Hashable, SampleFunction]

    @classmethod
    def checked(
        cls,
        G: nx.DiGraph,
        n_train: int,
        n_test: int,
        input_nodes: Sequence[Hashable],
        output_nodes: Sequence[Hashable],
        noise_scale: float,
        special_functions: Mapping[Any, ParentFunction] | None,
        signed_edges: Mapping[tuple[Any, Any], float] | None,
    ) -> _System:
        if not isinstance(G, nx.DiGraph) or G.is_multigraph():
            raise TypeError(f"G must be a networkx DiGraph, got {type(G).__name__}")
        for name, count in (("n_train", n_train), ("n_test", n_test)):
            whole(name, count, at_least=0)
        non_negative("noise_scale", noise_scale)
        for name, given in (("input_nodes", input_nodes), ("output_nodes", output_nodes)):
            if isinstance(given, str):
                raise TypeError(f"{name} must be a list of nodes, got the text {given!r}")
            _check_known(name, given, G)
            if len(set(given)) < len(given):
                repeated = dict.fromkeys(node for node in given if list(given).count(node) > 1)
                raise ValueError(f"{name} must name each node once, got several of {some_names(repeated)}")

        inputs = set(input_nodes)
        parents = {v: list(G.predecessors(v)) for v in G if v not in inputs and G.in_degree(v) > 0}
        functions = _checked_dict("special_functions", special_functions)
        _check_known("special_functions", functions, G)
        idle = [node for node in functions if node not in parents]
        if idle:
            raise ValueError(
                "special_functions must name nodes that have parents and are not inputs, "
                f"got {some_names(idle)}"
            )
        for node, function in functions.items():
            if not callable(function):
                raise TypeError(
                    f"special_functions[{node!r}] must be callable, got {type(function).__name__}"
                )
        signs = _checked_dict("signed_edges", signed_edges)
        unknown = [e for e in signs if not (isinstance(e, tuple) and len(e) == 2 and G.has_edge(*e))]
        if unknown:
            raise ValueError(f"signed_edges must have edges of G as keys, got {some_names(unknown)}")
        return cls(
            parents,
            {v: [_sign(G, u, v, signs) for u in G.predecessors(v)] for v in parents},
            {v: SampleFunction(function, f"special_functions[{v!r}]") for v, function in functions.items()},
        )


def _checked_dict(name: str, given: Any) -> Mapping[Any, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict or None, got {type(given).__name__}")
    return given


def _check_known(name: str, given: Any, G: nx.DiGraph) -> None:
    unknown = [node for node in given if node not in G]
    if unknown:
        raise ValueError(f"{name} must be nodes of G, got {some_names(unknown)}")


def _sign(G: nx.DiGraph, u: Hashable, v: Hashable, signed_edges: Mapping[Any, Any]) -> float:
    sign = signed_edges.get((u, v), G.edges[u, v].get("sign", 1))
    finite(f"the sign of edge {u!r} -> {v!r}", sign)
    return float(sign)


def _normal_source(seed: Any) -> Callable[[tuple[int, int]], np.ndarray]:
    if seed is None:
        return np.random.standard_normal
    return np.random.default_rng(seed).standard_normal


def _split(
    values: Mapping[Hashable, np.ndarray],
    input_nodes: Sequence[Hashable],
    output_nodes: Sequence[Hashable],
    n_train: int,
    n: int,
) -> Samples:
    x, y = (
        np.stack([values[node] for node in columns], axis=1) if len(columns) else np.empty((n, 0))
        for columns in (input_nodes, output_nodes)
    )
    # Copies, so that keeping the test part does not keep everything alive.
    return x[:n_train].copy(), x[n_train:].copy(), y[:n_train].copy(), y[n_train:].copy()
