"""The few edges that carry a prediction, found by leaving out the others, a tenth at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsnn._checks import whole, within
from gsnn.explain.predictor import Predictor
from gsnn.graph.container import EDGE_TYPES, HeteroGraph

_SAMPLES = 256
_SHARE_OUT = 0.1


class Subgraph(HeteroGraph):
    """A graph of all nodes and the edges that were kept, with how well they keep the prediction.

    Attributes:
        fidelity: share of the variance of the network's prediction over the samples that stays when all
            other edges are masked: 1 - sum (masked - full)^2 / sum (full - mean full)^2. It can be negative.
        random_fidelity: the same for random sets of as many edges, out of those on a path to the output.
        edges: the kept (source, target) names, most important first.
        candidates: how many edges lie on a path from an input to the output.
    """

    __slots__ = ("candidates", "edges", "fidelity", "random_fidelity")
    fidelity: float
    random_fidelity: tuple[float, ...]
    edges: tuple[tuple[str, str], ...]
    candidates: int

    def __init__(
        self,
        graph: HeteroGraph,
        kept: Mapping[tuple[str, str, str], Tensor],
        *,
        fidelity: float,
        random_fidelity: tuple[float, ...],
        edges: tuple[tuple[str, str], ...],
        candidates: int,
    ) -> None:
        index = {etype: graph.edge_index_dict[etype].cpu()[:, kept[etype]] for etype in EDGE_TYPES}
        given = graph.edge_weight_dict
        weights = None if given is None else {etype: given[etype].cpu()[kept[etype]] for etype in EDGE_TYPES}
        super().__init__(index, graph.node_names_dict, weights, warn=False)
        for name, value in (
            ("fidelity", fidelity),
            ("random_fidelity", random_fidelity),
            ("edges", edges),
            ("candidates", candidates),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy keeps what was found, not the edges alone.
        rebuild, parts = super().__reduce__()
        found = {name: getattr(self, name) for name in Subgraph.__slots__}
        every = {etype: torch.arange(index.shape[1]) for etype, index in self._edge_index.items()}
        return partial(Subgraph, **found), (rebuild(*parts), every)


def subgraph(
    model: Any,
    x: Any,
    output: str | int,
    *,
    size: int | None = None,
    share: float | None = None,
    n_random: int = 20,
    seed: int = 0,
) -> Subgraph:
    """The fewest edges that keep the prediction of one output over samples.

    Backward elimination: every edge that is left is masked alone (``edge_mask``), the tenth that changes the
    prediction least goes, and all are judged again, until ``size`` are left. Judging again is what keeps
    whole paths. Soft masks learned by gradient descent (Ying et al. 2019, arXiv 1903.03894) were tried and
    kept less: their first steps let go of edges that matter only together. Self edges are no choice of the
    graph and stay, as do edges on no path from an input to the output, which carry constants at most.

    Args:
        model: a trained GSNN, left as it was.
        x: samples (B, N_in) in the user's units; the prediction must differ between them.
        output: name or column of the output.
        size: how many edges to keep, or
        share: how many of those on a path from an input to the output, in (0, 1]. One of the two is given.
        n_random: random sets of edges to compare with.
        seed: fixes those, and which samples are looked at where there are more than 256.

    Returns:
        A :class:`Subgraph`: a graph with all nodes of the model's and the kept edges, its fidelity, and those
        of the random sets.

    Raises:
        ValueError: not one of ``size`` and ``share``, or out of range; no path leads to the output; the
            prediction is the same for all samples.
    """
    predictor = Predictor(model, output)
    values, _ = predictor.table(x, "x")
    graph: HeteroGraph = model.graph
    if (size is None) == (share is None):
        raise ValueError(f"one of size and share must be given, got size={size!r} and share={share!r}")
    on_path = _on_path(model, predictor.column)
    candidates = torch.as_tensor(np.flatnonzero(on_path), device=predictor.device)
    if not len(candidates):
        raise ValueError(f"output {predictor.output!r} cannot be reached from any input")
    if share is not None:
        within("share", share, "(0, 1]")
        size = max(1, math.ceil(share * len(candidates)))
    assert size is not None
    size = min(whole("size", size), len(candidates))

    always = torch.as_tensor(~on_path, device=predictor.device)
    with predictor.frozen():
        with torch.no_grad():
            full = predictor(values)
        spread = (full - full.mean()).square().sum()
        if not float(spread) > 0:
            raise ValueError(f"the prediction of {predictor.output!r} is the same for all samples")

        def masked(mask: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
            whole = always.to(values.dtype).index_copy(0, candidates, mask)
            return predictor(values[rows], edge_mask=whole)

        def fidelity(chosen: Tensor) -> float:
            mask = torch.zeros(len(candidates), dtype=values.dtype, device=values.device)
            mask[chosen] = 1.0
            with torch.no_grad():
                return float(1 - (masked(mask) - full).square().sum() / spread)

        rng = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(values), generator=rng)[:_SAMPLES].to(values.device)
        with torch.no_grad():
            order = _eliminated(lambda mask: masked(mask, some), full[some], len(candidates), size)
        found = fidelity(order)
        at_random = tuple(
            fidelity(torch.randperm(len(candidates), generator=rng)[:size]) for _ in range(n_random)
        )
    flat = candidates[order].cpu()
    kept: dict[tuple[str, str, str], Tensor] = {}
    start = 0
    for etype in EDGE_TYPES:  # the order of the flat graph
        n = graph.edge_index_dict[etype].shape[1]
        kept[etype] = flat[(flat >= start) & (flat < start + n)].sort().values - start
        start += n
    names = predictor.names("edges")
    return Subgraph(
        graph,
        kept,
        fidelity=found,
        random_fidelity=at_random,
        edges=tuple(names[k] for k in flat.tolist()),
        candidates=len(candidates),
    )


def _eliminated(masked: Callable[[Tensor], Tensor], full: Tensor, n: int, size: int) -> Tensor:
    """Edge numbers (size,) that are left when the least important go round by round, most important first."""
    mask = full.new_ones(n)
    while True:
        left = mask.nonzero().flatten()
        lost = full.new_empty(len(left))
        for row, edge in enumerate(left.tolist()):
            mask[edge] = 0
            lost[row] = (masked(mask) - full).square().sum()
            mask[edge] = 1
        order = lost.argsort(stable=True)
        if len(left) <= size:
            return left[order.flip(0)]
        n_out = min(len(left) - size, max(1, int(_SHARE_OUT * len(left))))
        mask[left[order[:n_out]]] = 0


def _is_self(model: Any) -> np.ndarray:
    """(E,) bool: the self edges that the network adds."""
    source, target = model.edge_index.cpu().numpy()
    own = np.zeros(len(source), dtype=bool)
    listed = sum(model.graph.edge_index_dict[etype].shape[1] for etype in EDGE_TYPES)
    own[listed:] = source[listed:] == target[listed:]
    return own


def _on_path(model: Any, column: int) -> np.ndarray:
    """(E,) bool: edges on a walk from an input to the output, the added self edges left out."""
    source, target = model.edge_index.cpu().numpy()
    own = _is_self(model)
    ahead = np.asarray(model.input_node_mask.cpu().numpy()).copy()
    behind = np.zeros(model.num_nodes, dtype=bool)
    behind[np.flatnonzero(model.output_node_mask.cpu().numpy())[column]] = True
    for reached, start, end in ((ahead, source, target), (behind, target, source)):
        while True:
            new = end[reached[start] & ~reached[end]]
            if not len(new):
                break
            reached[new] = True
    return ahead[source] & behind[target] & ~own
