"""Reading a model's captured activations, one row of channels per function node.

Nothing here knows a particular model. What is asked of it: `ResBlocks`, a sequence of L blocks, each with
`channel_groups` (function node of each channel) and the switch `_store_activations`, which makes a forward
pass leave `_last_pre_norm_activation` and `_last_activation`, (B, N*C), on the autograd graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Norms that treat a node's channels as one unit or not at all, so that a magnitude after them still says
# how large the node's signal is. The others fix the size of the channels of every single sample.
_MAGNITUDE_PRESERVING = ("batch", "groupbatch", "none")


class Captures:
    """The captures of a model's blocks: switched on and off, checked, and cut into nodes.

    Parameters
    ----------
    model : a module as described at the top of this file
    function_nodes : the N names that its captures must hold, in order
    use_pre_norm : read the activations before the norm (z_i^l), else those after the nonlinearity

    Raises
    ------
    TypeError : the model has no blocks with captures
    ValueError : it recomputes activations (`checkpoint=True`), has fewer than two blocks, other function
        nodes, or, with `use_pre_norm=False`, a norm after which magnitudes mean nothing
    """

    def __init__(self, model: nn.Module, function_nodes: Sequence[str], use_pre_norm: bool = True) -> None:
        blocks = list(getattr(model, "ResBlocks", ()))
        needed = ("channel_groups", "_store_activations")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise TypeError(
                "model must be the network itself, got a DistributedDataParallel: give its .module"
            )
        if hasattr(model, "_orig_mod"):  # compiled code does not run through the switches set here
            raise TypeError(
                "model must be the network itself, got one made by torch.compile: give its ._orig_mod"
            )
        if not blocks or not all(hasattr(b, name) for b in blocks for name in needed):
            raise TypeError(
                "model must have ResBlocks with channel_groups and the switch _store_activations, as GSNN "
                f"has; got {type(model).__name__} without them"
            )
        if getattr(model, "checkpoint", False):
            raise ValueError(
                "model must keep its activations, got one with checkpoint=True, which recomputes them; "
                "set model.checkpoint = False"
            )
        if len({id(b) for b in blocks}) < 2:
            raise ValueError(f"model must have at least 2 layers to have a pair of them, got {len(blocks)}")
        norm = getattr(model, "norm", None)
        if not use_pre_norm and norm not in _MAGNITUDE_PRESERVING:
            raise ValueError(
                f"use_pre_norm=False needs a model with norm one of {', '.join(_MAGNITUDE_PRESERVING)}, "
                f"got {norm!r}: it fixes the magnitude that would be read"
            )
        self._check_nodes(model, blocks[0].channel_groups, function_nodes)
        self.blocks = blocks
        self.L = len(blocks)
        self.N = len(function_nodes)
        self._attribute = "_last_pre_norm_activation" if use_pre_norm else "_last_activation"
        groups = blocks[0].channel_groups.cpu()
        order = torch.argsort(groups, stable=True)
        self._order = None if torch.equal(order, torch.arange(len(order))) else order
        self._found: list[tuple[Any, ...]] | None = None

    @staticmethod
    def _check_nodes(model: nn.Module, groups: Tensor, names: Sequence[str]) -> None:
        counts = torch.bincount(groups.cpu())
        if len(counts) != len(names):
            raise ValueError(
                f"data must have the model's {len(counts)} function nodes, got a graph with {len(names)}"
            )
        if len(set(counts.tolist())) != 1:
            raise ValueError("model must give every function node the same number of channels")
        for mine, theirs in zip(getattr(model, "homo_names", ()), names, strict=False):
            if mine != theirs:
                raise ValueError(
                    f"data must have the model's function nodes in the same order, got {theirs!r} where the "
                    f"model has {mine!r}"
                )

    def on(self) -> None:
        """Switch the captures on, and remember what `off` will put back."""
        if self._found is None:
            self._found = [
                (b, b._store_activations, _get(b, "_last_pre_norm_activation"), _get(b, "_last_activation"))
                for b in self.blocks
            ]
        for block in self.blocks:
            block._store_activations = True
            block._last_pre_norm_activation = block._last_activation = None

    def off(self) -> None:
        """Put the switches and the captured tensors back as `on` found them."""
        for block, switch, pre_norm, activation in self._found or ():
            block._store_activations = switch
            block._last_pre_norm_activation = pre_norm
            block._last_activation = activation
        self._found = None

    def release(self) -> None:
        """Put the switches back, for training: a block that was on keeps this forward pass's captures."""
        for block, switch, *_ in self._found or ():
            block._store_activations = switch
            if not switch:
                block._last_pre_norm_activation = block._last_activation = None
        self._found = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """`on` for the duration of a with statement, `off` whatever happens in it."""
        self.on()
        try:
            yield
        finally:
            self.off()

    def tensors(self) -> list[Tensor]:
        """The L captured tensors of the last forward pass, (B, N*C), as they lie on the autograd graph."""
        found = [_get(b, self._attribute) for b in self.blocks]
        missing = [layer for layer, tensor in enumerate(found) if tensor is None]
        if missing:
            raise RuntimeError(
                f"the forward pass left no capture in block {missing[0]} ({self._attribute} is None): "
                "the model must fill it while _store_activations is on"
            )
        return [t for t in found if t is not None]

    def by_node(self, captured: Tensor) -> Tensor:
        """(B, N*C) in the order of `channel_groups` -> (B, N, C)."""
        if self._order is not None:
            captured = captured.index_select(1, self._order.to(captured.device))
        return captured.unflatten(1, (self.N, -1))


def _get(block: Any, attribute: str) -> Tensor | None:
    return getattr(block, attribute, None)
