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

Model = TypeVar("Model", bound="Growing")


class Growing(torch.nn.Module):
    """A model that can grow: what is read of it, and the method. :class:`gsnn.models.GSNN.GSNN` is one.

    Attributes:
        graph, config, channels, edge_index, num_nodes, checkpoint, ResBlocks: as in GSNN.
        scaling: of its training tables, where a fit has set one.
    """

    graph: HeteroGraph
    config: dict[str, Any]
    channels: int
    edge_index: torch.Tensor
    num_nodes: int
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
        """A new model on the graph with more edges, its outputs those of this one.

        All weights, biases and running statistics are kept, and dtype, device, training modes, frozen
        parameters and ``scaling`` too. The new edges follow the edges of their type that were there, in the
        given order, so that the flat edges after them move up. Nothing comes of them yet:

        - function -> function: ``lin_in`` weights 0, ``lin_out`` weights uniform on [-1, 1] over
          sqrt(C * out-degree of the source), whatever ``init`` is;
        - input -> function: ``lin_in`` weights 0, so that the input's value is carried but not read;
        - function -> output: ``lin_out`` weights 0. An output divides by the root of its in-degree, which
          grows from d to d', so the weights and biases of the edges that it had are multiplied by
          sqrt(d' / d), the only change of old values.

        All new biases are 0. The outputs are equal, to rounding where the sums of a node are now taken in
        other groups. This model is not changed.

        Args:
            pairs: names (source, target); what is a function -> function edge is one, where a name stands
                for two nodes.
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
            ValueError: an unknown name, a pair from an output or into an input, a self pair, an edge that
                exists or is given twice.
        """
        graph = self.graph.with_edges(name_pairs(pairs), signs)
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
        places = _Places(self, larger)
        larger.load_state_dict(_grown_state(self, larger, places, rng))
        larger.checkpoint = self.checkpoint
        for mine, its in zip(larger.modules(), self.modules(), strict=True):
            mine.training = its.training
        for new_param, old_param in zip(larger.parameters(), self.parameters(), strict=True):
            new_param.requires_grad_(old_param.requires_grad)
        if hasattr(self, "scaling"):
            larger.scaling = self.scaling
        if optimizer is None:
            return larger
        return larger, _grown_optimizer(optimizer, self, larger, places)


class _Places:
    """Where the flat edges of the larger graph were before, and what becomes of tensors with a row an edge.

    Attributes:
        place: rows of biases, ``lin_in`` and ``lin_out`` in the larger model -> the row that each was before,
            -1 for a new edge.
        between: rows of ``lin_out`` of the new function -> function edges.
        scale: (E,) what the weights and the bias of an edge into an output are multiplied by; None where all
            outputs have the edges that they had.
    """

    def __init__(self, model: Growing, larger: Growing) -> None:
        before, after = (
            [g.edge_index_dict[e].shape[1] for e in EDGE_TYPES] for g in (model.graph, larger.graph)
        )
        own = model.edge_index.shape[1] - sum(before)  # self edges
        parts, start = [], 0
        for old, new in zip([*before, own], [*after, own], strict=True):
            parts += [torch.arange(start, start + old), torch.full((new - old,), -1)]
            start += old
        flat = torch.cat(parts)
        n_function, self.channels = len(model.graph.node_names_dict["function"]), model.channels
        (source, target), (old_source, old_target) = larger.edge_index.cpu(), model.edge_index.cpu()

        def among(now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
            rank = torch.cat([then.long().cumsum(0) - 1, torch.tensor([-1])])  # -1 stays -1
            return rank[flat[now]]

        self.place = {
            "bias": flat,
            "lin_in": among(target < n_function, old_target < n_function),
            "lin_out": among(source < n_function, old_source < n_function),
        }
        inner = (flat < 0) & (source < n_function) & (target < n_function)
        self.between = inner[source < n_function].nonzero().flatten()
        self.source = source[inner]
        self.out_degree = torch.bincount(source, minlength=n_function)
        self.scale: torch.Tensor | None = None
        if bool(((flat < 0) & (target >= n_function)).any()):
            now, then = (torch.bincount(t, minlength=larger.num_nodes).double() for t in (target, old_target))
            ratio = (now / then.clamp(min=1.0)).sqrt()
            self.scale = torch.where(target < n_function, 1.0, ratio[target])
            self.scale_out = self.scale[source < n_function]

    def weights(
        self, tensor: torch.Tensor, linear: Any, side: str
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``tensor`` (nnz,), which goes with the values of ``linear``, in the larger model.

        As (edges, C) of the unpruned pattern, 0 for new edges; and which of them are kept, None for all.
        """
        kept, place = linear.kept, self.place[side]
        full = tensor if kept is None else tensor.new_zeros(len(kept)).masked_scatter(kept, tensor)
        table = _moved(full.view(-1, self.channels), place, 0)
        return table, None if kept is None else _moved(kept.view(-1, self.channels), place, True).flatten()

    def packed(self, tensor: torch.Tensor, linear: Any, side: str) -> torch.Tensor:
        """The same as the larger model's values have it, pruned ones left out."""
        table, kept = self.weights(tensor, linear, side)
        return table.flatten() if kept is None else table.flatten()[kept]


def _moved(table: torch.Tensor, place: torch.Tensor, fresh: float) -> torch.Tensor:
    """Rows of ``table`` (n, ...) at their new places, ``fresh`` where ``place`` is -1."""
    moved = table.new_full((len(place), *table.shape[1:]), fresh)
    old = (place >= 0).to(table.device)
    moved[old] = table[place[place >= 0].to(table.device)]
    return moved


def _grown_state(
    model: Growing, larger: Growing, places: _Places, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """``model``'s state with entries for the new edges."""
    state = dict(model.state_dict())
    channels, between = model.channels, places.between
    bound = (places.out_degree[places.source].double() * channels).rsqrt().repeat_interleave(channels)
    drawn: dict[int, torch.Tensor] = {}
    for number, block in enumerate(model.ResBlocks):
        wider: Any = larger.ResBlocks[number]
        for side in ("lin_in", "lin_out"):
            linear, name = getattr(block, side), f"ResBlocks.{number}.{side}."
            table, kept = places.weights(linear.values.detach(), linear, side)
            if side == "lin_out":
                if id(linear) not in drawn:  # blocks that share their weights share the new ones
                    uniform = 2 * torch.rand(len(bound), generator=rng, dtype=torch.float64) - 1
                    drawn[id(linear)] = (bound * uniform).view(-1, channels)
                new = drawn[id(linear)]
                if wider.lin_out.signs is not None:
                    new = turned(new, wider.lin_out.signs.cpu().view(-1, channels)[between])
                table[between.to(table.device)] = new.to(table)
                if places.scale is not None:
                    table = table * places.scale_out[:, None].to(table)
            state[name + "values"] = table.flatten() if kept is None else table.flatten()[kept]
            if kept is not None:
                state[name + "kept"] = kept
        lin_out: Any = block.lin_out
        if lin_out.bias is not None:
            moved = _moved(lin_out.bias.detach(), places.place["bias"], 0)
            if places.scale is not None:
                moved = moved * places.scale.to(moved)
            state[f"ResBlocks.{number}.lin_out.bias"] = moved
    return state


def _grown_optimizer(
    optimizer: torch.optim.Optimizer, model: Growing, larger: Growing, places: _Places
) -> torch.optim.Optimizer:
    """``optimizer`` for the parameters of ``larger``, its state with zeros for the new entries."""
    counterpart: dict[torch.Tensor, torch.Tensor] = dict(
        zip(model.parameters(), larger.parameters(), strict=True)
    )
    weights: dict[torch.Tensor, tuple[Any, str]] = {}
    biases: set[torch.Tensor] = set()
    for block in model.ResBlocks:
        for side in ("lin_in", "lin_out"):
            linear = getattr(block, side)
            weights[linear.values] = (linear, side)
        lin_out: Any = block.lin_out
        if lin_out.bias is not None:
            biases.add(lin_out.bias)
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
                if value.shape == param.shape and param in weights:
                    value = places.packed(value, *weights[param])
                elif value.shape == param.shape and param in biases:
                    value = _moved(value, places.place["bias"], 0)
                value = value.clone()
            new.state[its][name] = value
    return new
