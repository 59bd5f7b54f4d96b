"""Models on a larger graph: every weight that was there is kept, and the outputs with it.

A new edge carries a signal from the start that nobody reads yet (Chen, Goodfellow & Shlens 2016, Net2Net,
grow networks by other maps that keep the function, too). Its weights out of the source are small random
numbers and those into the target are 0: the target's get a gradient at the first step, the source's
as soon as the target listens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar, overload

import torch

from gsnn.graph.container import EDGE_TYPES, HeteroGraph
from gsnn.graph.edits import name_pairs
from gsnn.models.signs import turned

_BETWEEN = EDGE_TYPES[0]


Model = TypeVar("Model", bound="Growing")


class Growing(torch.nn.Module):
    """A model that can grow: what is read of it, and the method. :class:`gsnn.models.GSNN.GSNN` is one.

    Attributes:
        graph, config, channels, edge_index, checkpoint, ResBlocks: as in GSNN.
        scaling: of its training tables, where a fit has set one.
    """

    graph: HeteroGraph
    config: dict[str, Any]
    channels: int
    edge_index: torch.Tensor
    checkpoint: bool
    ResBlocks: torch.nn.ModuleList
    scaling: Any

    @overload
    def grown(
        self: Model,
        pairs: Iterable[tuple[str, str]],
        seed: int = 0,
        *,
        signs: Iterable[float] | None = None,
        optimizer: None = None,
    ) -> Model: ...
    @overload
    def grown(
        self: Model,
        pairs: Iterable[tuple[str, str]],
        seed: int = 0,
        *,
        signs: Iterable[float] | None = None,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[Model, torch.optim.Optimizer]: ...

    def grown(
        self: Model,
        pairs: Iterable[tuple[str, str]],
        seed: int = 0,
        *,
        signs: Iterable[float] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Model | tuple[Model, torch.optim.Optimizer]:
        """A new model on the graph with more function -> function edges, its outputs those of this one.

        All weights, biases and running statistics are kept, and dtype, device, training modes, frozen
        parameters and ``scaling`` too. The new edges follow the function -> function edges that were there,
        in the given order, so that the flat edges after them move up. Their ``lin_in`` weights and their
        biases are 0; their ``lin_out`` weights are uniform on [-1, 1] over sqrt(C * out-degree of the
        source), whatever ``init`` is. The outputs are equal, to rounding where the sums of a node are now
        taken in other groups. This model is not changed.

        Args:
            pairs: names (source, target) of function nodes.
            seed: of a generator of its own that draws the new weights.
            signs: one number per pair, its weight in the new graph; see ``HeteroGraph.with_edges``. A model
                with ``edge_signs='respect'`` binds the new edges to them; without, they are free.
            optimizer: an optimizer of the model's parameters; then a new one of its class comes back too, for
                the new model, with the options and the state of the old one and zeros for the new entries.
                Parameters that are not the model's stay in it as they are.

        Returns:
            The new model, or with ``optimizer`` the pair of new model and new optimizer.

        Raises:
            TypeError: a pair that is not two names.
            ValueError: a name that is no function node, a self pair, an edge that exists or is given twice.
        """
        graph = _larger_graph(self.graph, pairs, signs)
        old, new = (g.edge_index_dict[_BETWEEN].shape[1] for g in (self.graph, graph))
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced at once
            larger = type(self)(
                graph.edge_index_dict,
                graph.node_names_dict,
                edge_weight_dict=graph.edge_weight_dict,
                **self.config,
            )
        param = next(self.parameters())
        larger.to(param.device, param.dtype)
        rng = torch.Generator().manual_seed(seed)
        larger.load_state_dict(_grown_state(self, larger, old, new - old, rng))
        larger.checkpoint = self.checkpoint
        for mine, its in zip(larger.modules(), self.modules(), strict=True):
            mine.training = its.training
        for new_param, old_param in zip(larger.parameters(), self.parameters(), strict=True):
            new_param.requires_grad_(old_param.requires_grad)
        if hasattr(self, "scaling"):
            larger.scaling = self.scaling
        if optimizer is None:
            return larger
        return larger, _grown_optimizer(optimizer, self, larger, old, new - old)


def _larger_graph(
    graph: HeteroGraph, pairs: Iterable[tuple[str, str]], signs: Iterable[float] | None
) -> HeteroGraph:
    wanted = name_pairs(pairs)
    known = set(graph.node_names_dict["function"])
    for pair in wanted:
        for name in pair:
            if name not in known:
                raise ValueError(f"pairs must name function nodes, got {name!r} in {pair!r}")
    return graph.with_edges(wanted, signs)


def _inserted(tensor: torch.Tensor, start: int, rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor[:start], rows.to(tensor), tensor[start:]])


def _grown_state(
    model: Growing, larger: Growing, n_old: int, n_new: int, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """``model``'s state with entries for ``n_new`` edges after the first ``n_old`` flat ones.

    Weights stand edge by edge, C each, in both linear maps, and function -> function edges come first.
    """
    state = dict(model.state_dict())
    channels, source = model.channels, larger.edge_index[0].cpu()
    n_function = len(model.graph.node_names_dict["function"])
    out_degree = torch.bincount(source, minlength=n_function)[source[n_old : n_old + n_new]]
    bound = (out_degree.double() * channels).rsqrt().repeat_interleave(channels)
    drawn: dict[int, torch.Tensor] = {}
    for number, block in enumerate(model.ResBlocks):
        lin_in: Any = block.lin_in
        lin_out: Any = block.lin_out
        if id(lin_out) not in drawn:  # blocks that share their weights share the new ones
            drawn[id(lin_out)] = bound * (2 * torch.rand(len(bound), generator=rng, dtype=torch.float64) - 1)
        new_out = drawn[id(lin_out)]
        wider: Any = larger.ResBlocks[number]
        if wider.lin_out.signs is not None:
            new_out = turned(new_out, wider.lin_out.signs[n_old * channels :][: len(bound)].cpu())
        rows = {"lin_in": torch.zeros(len(bound)), "lin_out": new_out}
        for side, linear in (("lin_in", lin_in), ("lin_out", lin_out)):
            name = f"ResBlocks.{number}.{side}."
            start = _start(linear, n_old * channels)
            state[name + "values"] = _inserted(linear.values.detach(), start, rows[side])
            if linear.kept is not None:
                kept = torch.ones(len(bound), dtype=torch.bool)
                state[name + "kept"] = _inserted(linear.kept, n_old * channels, kept)
        if lin_out.bias is not None:
            bias = lin_out.bias.detach()
            state[f"ResBlocks.{number}.lin_out.bias"] = _inserted(bias, n_old, torch.zeros(n_new))
    return state


def _start(linear: Any, place: int) -> int:
    """Where the weight at ``place`` of the unpruned pattern stands in ``values``."""
    return place if linear.kept is None else int(linear.kept[:place].sum())


def _grown_optimizer(
    optimizer: torch.optim.Optimizer, model: Growing, larger: Growing, n_old: int, n_new: int
) -> torch.optim.Optimizer:
    """``optimizer`` for the parameters of ``larger``, its state with zeros for the new entries."""
    counterpart: dict[torch.Tensor, torch.Tensor] = dict(
        zip(model.parameters(), larger.parameters(), strict=True)
    )
    starts: dict[torch.Tensor, int] = {}
    for block in model.ResBlocks:
        lin_in: Any = block.lin_in
        lin_out: Any = block.lin_out
        for linear in (lin_in, lin_out):
            starts[linear.values] = _start(linear, n_old * model.channels)
        if lin_out.bias is not None:
            starts[lin_out.bias] = n_old
    groups = [
        {**group, "params": [counterpart.get(param, param) for param in group["params"]]}
        for group in optimizer.param_groups
    ]
    taken = inspect.signature(type(optimizer)).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in taken}
    new: torch.optim.Optimizer = type(optimizer)(groups, **defaults)
    for param, state in optimizer.state.items():
        its = counterpart.get(param, param)
        for name, value in state.items():
            if torch.is_tensor(value):
                if param in starts and value.shape == param.shape:
                    value = _inserted(value, starts[param], value.new_zeros(len(its) - len(param)))
                value = value.clone()
            new.state[its][name] = value
    return new
