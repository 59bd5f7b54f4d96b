"""Ready-made graphs with a known truth, and data to go with them.

Each function returns a frozen :class:`Scenario`: the true graph, the edges that a model is not told, and a
``sample`` method. Graphs are drawn from local generators; numpy's global state is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import networkx as nx
import numpy as np
import torch

from gsnn._checks import one_of, whole, within
from gsnn.graph.container import HeteroGraph
from gsnn.simulate.nx2pyg import nx2pyg
from gsnn.simulate.simulate import Samples, simulate, simulate_sde

Edge: TypeAlias = tuple[str, str]

Nonlinearity = Literal["linear", "tanh"]


@dataclass(frozen=True, eq=False)
class Scenario:
    """A true graph, its nodes by type, and a split of the function -> function edges held out of it.

    ``graph`` is the whole truth, a frozen DiGraph; ``held_out`` = ``validation_edges`` + ``test_edges``.
    """

    graph: nx.DiGraph
    input_nodes: tuple[str, ...]
    function_nodes: tuple[str, ...]
    output_nodes: tuple[str, ...]
    validation_edges: tuple[Edge, ...] = ()
    test_edges: tuple[Edge, ...] = ()
    signed_edges: Mapping[Edge, int] = field(default_factory=dict)
    special_functions: Mapping[str, Callable[[list[Any]], Any]] = field(default_factory=dict)

    @property
    def held_out(self) -> tuple[Edge, ...]:
        """The validation and the test edges: what a model is not told."""
        return self.validation_edges + self.test_edges

    @cached_property
    def full(self) -> HeteroGraph:
        """All true edges."""
        return self._without(())

    @cached_property
    def partial(self) -> HeteroGraph:
        """The true edges less the held-out ones: what a model is given."""
        return self._without(self.held_out)

    def sample(
        self, n_train: int = 2000, n_test: int = 500, noise_scale: float = 0.15, seed: Any = None
    ) -> Samples:
        """``(x_train, x_test, y_train, y_test)`` drawn from the whole truth.

        A graph with cycles is simulated by ``simulate_sde``, any other by ``simulate``. ``seed=None`` draws
        from numpy's global state.
        """
        draw = simulate if nx.is_directed_acyclic_graph(self.graph) else simulate_sde
        return draw(
            self.graph,
            n_train,
            n_test,
            self.input_nodes,
            self.output_nodes,
            noise_scale=noise_scale,
            special_functions=self.special_functions,
            signed_edges=self.signed_edges,
            seed=seed,
        )

    def _without(self, edges: Sequence[Edge]) -> HeteroGraph:
        rest = nx.restricted_view(self.graph, [], edges)
        # Holding edges out may cut an input off from every output, which is then meant.
        return nx2pyg(rest, self.input_nodes, self.function_nodes, self.output_nodes, warn=not edges)


@dataclass(frozen=True, eq=False)
class PathwayScenario(Scenario):
    """Pathways that have nothing to do with each other, and edges that wrongly claim they do.

    ``graph`` and ``full`` hold the truth, which the data come from. ``model_graph`` has the
    ``spurious_edges`` too, between functions of different pathways. ``true_edges`` are the other
    function -> function edges. ``membership`` (K, N) is 1 where a function belongs to a pathway.
    """

    true_edges: tuple[Edge, ...] = ()
    spurious_edges: tuple[Edge, ...] = ()
    membership: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @cached_property
    def model_graph(self) -> HeteroGraph:
        """The true and the spurious edges: what a model is given."""
        G = nx.DiGraph(self.graph)
        G.add_edges_from(self.spurious_edges)
        return nx2pyg(G, self.input_nodes, self.function_nodes, self.output_nodes)


@dataclass(frozen=True)
class SignedTanh:
    """Node mean tanh(sum of sign * parent).

    Attributes:
        signs: one for each parent.
    """

    signs: tuple[int, ...]

    def __call__(self, parents: list[Any]) -> Any:
        """The mean from the parents' values, numbers or arrays."""
        return np.tanh(sum(sign * parent for sign, parent in zip(self.signs, parents, strict=True)))


def converging_tiers(width: int = 12) -> Scenario:
    """``width`` inputs run through two tiers of functions into one sink: 2 ``width`` function nodes.

    Tier A is f0..f(n-1), A_k fed by in_k; tier B is f(n)..f(2n-2), B_k fed by A_k and A_(k+1); the sink
    f(2n-1) is fed by all of tier B. B_k feeds o_k, the sink feeds o_(n-1). Held out are A_k -> B_k for
    k = 1..n-2 and B_k -> sink for even k, which leaves every function a parent. The edges of each kind are
    shuffled, the first half (rounded down) is for validation and the rest for the test; always the same.

    Raises:
        ValueError: a width below 3, where nothing could be held out of both kinds.
    """
    n = _checked_count("width", width, 3)
    inputs, functions, outputs = _names(n, 2 * n, n)
    A, B, sink = functions[:n], functions[n:-1], functions[-1]
    edges = list(zip(inputs, A, strict=True))
    edges += [(A[k + side], B[k]) for k in range(n - 1) for side in (0, 1)]
    edges += [(b, sink) for b in B]
    edges += list(zip((*B, sink), outputs, strict=True))
    kinds = [[(A[k], B[k]) for k in range(1, n - 1)], [(B[k], sink) for k in range(0, n - 1, 2)]]
    rng = np.random.default_rng(0)
    validation: list[Edge] = []
    test: list[Edge] = []
    for kind in kinds:
        rng.shuffle(kind)
        validation += kind[: len(kind) // 2]
        test += kind[len(kind) // 2 :]
    return Scenario(
        _frozen(inputs, functions, outputs, edges), inputs, functions, outputs, tuple(validation), tuple(test)
    )


def disconnected_pathways(
    n_pathways: int = 4, length: int = 3, n_spurious: int = 8, seed: int = 0
) -> PathwayScenario:
    """Chains of functions without a true edge between them, and ``n_spurious`` random edges across.

    Pathway k is the chain f(k*length) -> ... -> f((k+1)*length - 1). Inputs in(2k) and in(2k+1) feed its
    first function, its last function feeds o(2k) and o(2k+1). With the defaults there are 8 inputs, 12
    functions and 8 outputs, and 8 + 16 + 8 edges in ``model_graph``, half of the 16 spurious.

    Raises:
        ValueError: counts out of range, such as more spurious edges than there are pairs.
    """
    K = _checked_count("n_pathways", n_pathways, 1)
    _checked_count("length", length, 1)
    _checked_count("n_spurious", n_spurious, 0)
    inputs, functions, outputs = _names(2 * K, K * length, 2 * K)
    chains = [functions[k * length : (k + 1) * length] for k in range(K)]
    true_edges = [pair for chain in chains for pair in pairwise(chain)]
    edges = [(inputs[2 * k + i], chain[0]) for k, chain in enumerate(chains) for i in (0, 1)]
    edges += true_edges
    edges += [(chain[-1], outputs[2 * k + i]) for k, chain in enumerate(chains) for i in (0, 1)]
    across = [(u, v) for one in chains for other in chains if one is not other for u in one for v in other]
    if n_spurious > len(across):
        raise ValueError(f"n_spurious must be at most {len(across)}, the pairs across, got {n_spurious}")
    chosen = np.random.default_rng(seed).choice(len(across), size=n_spurious, replace=False)
    return PathwayScenario(
        _frozen(inputs, functions, outputs, edges),
        inputs,
        functions,
        outputs,
        true_edges=tuple(true_edges),
        spurious_edges=tuple(across[i] for i in sorted(chosen)),
        membership=torch.eye(K).repeat_interleave(length, dim=1),
    )


def random_signed_dag(
    n_functions: int = 40,
    held_out_share: float = 0.3,
    nonlinearity: Nonlinearity = "linear",
    seed: int = 0,
    *,
    n_inputs: int | None = None,
    n_outputs: int | None = None,
    mean_in_degree: float = 2.5,
) -> Scenario:
    """A random acyclic graph with signs +1 and -1, and a share of its function edges held out.

    The first ``n_inputs`` (default a quarter) functions are fed by one input each and have no other parent.
    Every later one has 1 + Poisson(``mean_in_degree`` - 1) random parents among the functions before it.
    Functions that feed no other, and then random ones, feed the ``n_outputs`` (default half) outputs, so
    every function lies between an input and an output. The mean of a function is the signed sum of its
    parents, or with ``nonlinearity='tanh'`` its tanh; outputs are linear.

    ``held_out_share`` of the function -> function edges (rounded down, fewer if it takes more than there
    are to spare) are held out such that every function that has parents among the functions keeps one; the
    first half is for validation.

    Raises:
        ValueError: an argument out of its range.
    """
    n = _checked_count("n_functions", n_functions, 2)
    n_in = _checked_count("n_inputs", max(1, n // 4) if n_inputs is None else n_inputs, 1, n - 1)
    n_out = _checked_count("n_outputs", max(1, n // 2) if n_outputs is None else n_outputs, 1)
    within("held_out_share", held_out_share, "[0, 1)")
    one_of("nonlinearity", nonlinearity, ("linear", "tanh"))
    if not mean_in_degree >= 1:
        raise ValueError(f"mean_in_degree must be at least 1, got {mean_in_degree!r}")
    rng = np.random.default_rng(seed)
    inputs, functions, outputs = _names(n_in, n, n_out)
    between = []
    for j in range(n_in, n):
        count = min(j, 1 + int(rng.poisson(mean_in_degree - 1)))
        between += [(functions[i], functions[j]) for i in sorted(rng.choice(j, size=count, replace=False))]
    return _signed_scenario(rng, inputs, functions, outputs, between, held_out_share, nonlinearity)


def cyclic(
    n_functions: int = 20,
    held_out_share: float = 0.2,
    nonlinearity: Nonlinearity = "tanh",
    seed: int = 0,
    *,
    n_inputs: int | None = None,
    n_outputs: int | None = None,
    n_chords: int | None = None,
) -> Scenario:
    """A ring through all functions with ``n_chords`` (default as many as functions) random edges across it.

    Signs, inputs (default a quarter, spread over the ring), outputs (default half), and the held-out edges
    are as in :func:`random_signed_dag`. ``sample`` integrates the stochastic differential equation. With
    ``'tanh'`` it cannot grow without bound; ``'linear'`` can.

    Raises:
        ValueError: an argument out of its range.
    """
    n = _checked_count("n_functions", n_functions, 2)
    n_in = _checked_count("n_inputs", max(1, n // 4) if n_inputs is None else n_inputs, 1, n)
    n_out = _checked_count("n_outputs", max(1, n // 2) if n_outputs is None else n_outputs, 1)
    across = [(i, j) for i in range(n) for j in range(n) if j not in (i, (i + 1) % n)]
    chords = _checked_count("n_chords", min(n, len(across)) if n_chords is None else n_chords, 0, len(across))
    within("held_out_share", held_out_share, "[0, 1)")
    one_of("nonlinearity", nonlinearity, ("linear", "tanh"))
    rng = np.random.default_rng(seed)
    inputs, functions, outputs = _names(n_in, n, n_out)
    chosen = [across[k] for k in sorted(rng.choice(len(across), size=chords, replace=False))]
    between = [(functions[i], functions[j]) for i, j in [*((i, (i + 1) % n) for i in range(n)), *chosen]]
    return _signed_scenario(rng, inputs, functions, outputs, between, held_out_share, nonlinearity)


def _signed_scenario(
    rng: np.random.Generator,
    inputs: tuple[str, ...],
    functions: tuple[str, ...],
    outputs: tuple[str, ...],
    between: list[Edge],
    held_out_share: float,
    nonlinearity: Nonlinearity,
) -> Scenario:
    n, n_out = len(functions), len(outputs)
    fed = set(v for _, v in between)
    roots = [v for v in functions if v not in fed] or functions[:: max(1, n // len(inputs))][: len(inputs)]
    sources = set(u for u, _ in between)
    ends = [v for v in functions if v not in sources]
    others = [v for v in functions if v in sources]
    extra = rng.permutation(len(others))[: max(0, n_out - len(ends))]
    ends += [others[i] for i in sorted(extra)]
    edges = list(zip(inputs, roots, strict=True)) + between
    # More ends than outputs share them; fewer ends than outputs (a small graph) are read more than once.
    edges += [(ends[i % len(ends)], outputs[i % n_out]) for i in range(max(len(ends), n_out))]
    signs = dict(zip(edges, rng.choice([-1, 1], size=len(edges)).tolist(), strict=True))

    spare = {v: -1 for v in functions}
    for _, v in between:
        spare[v] += 1
    held_out: list[Edge] = []
    for i in rng.permutation(len(between)):
        u, v = between[i]
        if spare[v] > 0 and len(held_out) < int(held_out_share * len(between)):
            spare[v] -= 1
            held_out.append((u, v))
    half = len(held_out) // 2

    graph = _frozen(inputs, functions, outputs, edges, signs)
    special = {}
    if nonlinearity == "tanh":
        special = {v: SignedTanh(tuple(signs[u, v] for u in graph.predecessors(v))) for v in functions}
    return Scenario(
        graph,
        inputs,
        functions,
        outputs,
        tuple(held_out[:half]),
        tuple(held_out[half:]),
        signs,
        special,
    )


def _names(n_in: int, n: int, n_out: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return (
        tuple(f"in{i}" for i in range(n_in)),
        tuple(f"f{i}" for i in range(n)),
        tuple(f"o{i}" for i in range(n_out)),
    )


def _frozen(
    inputs: Sequence[str],
    functions: Sequence[str],
    outputs: Sequence[str],
    edges: Sequence[Edge],
    signs: Mapping[Edge, int] | None = None,
) -> nx.DiGraph:
    G = nx.DiGraph()
    for kind, names in (("input", inputs), ("function", functions), ("output", outputs)):
        G.add_nodes_from(names, type=kind)
    for edge in edges:
        G.add_edge(*edge, **({} if signs is None else {"sign": signs[edge]}))
    return nx.freeze(G)


def _checked_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    count = whole(name, value, least)
    if most is not None and count > most:
        raise ValueError(f"{name} must be an int from {least} to {most}, got {value!r}")
    return count
