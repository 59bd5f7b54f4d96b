"""Weights bound to the signs of the edges that they belong to, for ``GSNN(..., edge_signs='respect')``.

An edge i -> j has a weight out of each channel of i and one into each channel of j; what it does is their
product. Channels have no sign of their own, so they are given one: the even channels of a node rise with its
activity, the odd ones fall. (With rising channels only, a node of convex nonlinearity could answer only in a
convex way; Runje & Shankaranarayana 2023, Constrained monotonic neural networks, arXiv 2205.11775.) Weights
into a channel have the channel's sign, weights out of it the channel's sign times that of the edge; for an
edge from an input, whose one weight is that into the channel, both at once. So the product along an edge that
activates raises what rises in j with i and lowers what falls, and along an edge that inhibits it is the
reverse. A self edge keeps what a node is: it activates. An edge of unknown sign (0) is free.

As the residual connections and the scales of norms cannot be negative either, an output never falls when an
input rises if all paths between them are, by the product of their signs, activating, and never rises if all
are inhibiting: in eval mode, for every weight that the training may find.

A weight on the wrong side acts as 0, and gets the gradient that it would have at 0, so that it comes back
when it is wanted: projection at the time of use, as in dual averaging (Nesterov 2009) and BinaryConnect
(Courbariaux et al. 2015). What acts is ``SparseLinear.weights()``; ``values`` are what the optimizer moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch

from gsnn.graph.container import EDGE_TYPES, HeteroGraph

EdgeSigns = Literal["free", "respect"]
EDGE_SIGNS: tuple[EdgeSigns, ...] = get_args(EdgeSigns)
#: Norms that treat a node's channels one by one, or scale all of them alike without a look at the sample.
MONOTONE_NORMS = ("none", "batch", "groupbatch")


def bound(values: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """``values``, 0 where they have not the sign in ``signs`` (1, -1, or 0 for free).

    The gradient passes as it comes, so that it is a sum over samples and over blocks like any other.
    """
    return values + (torch.where(values * signs < 0, 0.0, values) - values).detach()


def turned(values: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """``values`` with the ``signs`` that are not 0, their sizes kept."""
    return torch.where(signs == 0, values, values.abs() * signs)


def check_signs(
    edge_signs: EdgeSigns,
    graph: HeteroGraph,
    norm: str,
    node_mlp: bool,
    nonlin: Callable[[], torch.nn.Module],
) -> None:
    """Refuse what ``edge_signs`` cannot hold its promise with.

    Raises:
        ValueError: an unknown value; with ``respect`` a graph without weights, a norm or a node MLP that
            mixes channels, or a nonlinearity that falls somewhere between -10 and 10.
    """
    if edge_signs not in EDGE_SIGNS:
        raise ValueError(f"edge_signs must be one of {', '.join(EDGE_SIGNS)}, got {edge_signs!r}")
    if edge_signs == "free":
        return
    if graph.edge_weight_dict is None:
        raise ValueError(
            "edge_signs='respect' needs edge_weight_dict, whose signs are those of the edges, got none"
        )
    if norm not in MONOTONE_NORMS:
        raise ValueError(
            f"edge_signs='respect' needs a norm that keeps the channels of a node apart, one of "
            f"{', '.join(MONOTONE_NORMS)}, got {norm!r}"
        )
    if node_mlp:
        raise ValueError(
            "edge_signs='respect' needs node_mlp=False, as it mixes the channels of a node, got True"
        )
    with torch.no_grad():
        answer = nonlin()(torch.linspace(-10.0, 10.0, 2001))
    if bool((answer.diff() < -1e-6).any()):
        raise ValueError(f"edge_signs='respect' needs a nonlin that never falls, got {nonlin!r}")


def signs_of_edges(graph: HeteroGraph, self_edges: bool) -> torch.Tensor:
    """(E,) 1, -1 or 0 of each flat edge, from the weights of the graph; self edges have 1."""
    weights = graph.edge_weight_dict
    assert weights is not None
    parts = [weights[etype].cpu().sign().float() for etype in EDGE_TYPES]
    if self_edges:
        parts.append(torch.ones(len(graph.node_names_dict["function"])))
    return torch.cat(parts)


@torch.no_grad()
def bind(
    blocks: Iterable[Any],
    signs: torch.Tensor,
    from_input: torch.Tensor,
    in_edges: torch.Tensor,
    out_edges: torch.Tensor,
) -> None:
    """Bind the linear maps and norms of ResBlocks to ``signs`` (E,), and give their weights those signs.

    ``from_input`` (E,) says which edges leave an input; ``in_edges`` and ``out_edges`` are the flat edges of
    the weights of ``lin_in`` and ``lin_out``, C weights each.
    """
    into = torch.where(from_input, signs, signs.abs())
    done: set[int] = set()
    for block in blocks:
        block.norm.positive = True
        polarity = 1.0 - 2.0 * (torch.arange(block.channels) % 2)
        for linear, own in ((block.lin_in, into[in_edges]), (block.lin_out, signs[out_edges])):
            if id(linear) in done:
                continue
            done.add(id(linear))
            linear.signs = (own[:, None] * polarity).flatten()
            linear.values.copy_(turned(linear.values, linear.signs))


def signs_of_parameters(model: torch.nn.Module) -> list[torch.Tensor]:
    """For each of ``model.parameters()`` the signs that its values are bound to, 0 for free."""
    found: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(getattr(module, "signs", None), torch.Tensor):
            found[id(module.values)] = module.signs  # type: ignore[assignment]
        if getattr(module, "positive", False) and module.weight is not None:
            found[id(module.weight)] = torch.ones_like(module.weight)  # type: ignore[arg-type]
    return [found.get(id(param), torch.zeros_like(param)).detach() for param in model.parameters()]
