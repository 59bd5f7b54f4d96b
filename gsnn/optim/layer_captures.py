"""Captures as edge inferers read them: of pairs of layers, one row of channels per function node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gsnn.captures import Captures

# Norms that treat a node's channels as one unit or not at all, so that a magnitude after them still says
# how large the node's signal is. The others fix the size of the channels of every single sample.
_MAGNITUDE_PRESERVING = ("batch", "groupbatch", "none")


class LayerCaptures(Captures):
    """What an edge inferer reads: captures of at least two layers, cut into nodes.

    Args:
        model: a :class:`CapturingModel`.
        function_nodes: the N names that its captures must hold, in order.
        use_pre_norm: read the activations before the norm (z_i^l), else those after the nonlinearity.

    Raises:
        TypeError: the model has no blocks with captures, or is wrapped.
        ValueError: it recomputes activations (``checkpoint=True``), has fewer than two blocks, other
            function nodes, or, with ``use_pre_norm=False``, a norm after which magnitudes mean nothing.
    """

    def __init__(self, model: nn.Module, function_nodes: Sequence[str], use_pre_norm: bool = True) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise TypeError(
                "model must be the network itself, got a DistributedDataParallel: give its .module"
            )
        if hasattr(model, "_orig_mod"):  # compiled code does not run through the switches set here
            raise TypeError(
                "model must be the network itself, got one made by torch.compile: give its ._orig_mod"
            )
        super().__init__(model)
        if getattr(model, "checkpoint", False):
            raise ValueError(
                "model must keep its activations, got one with checkpoint=True, which recomputes them; "
                "set model.checkpoint = False"
            )
        if len({id(block) for block in self.blocks}) < 2:
            raise ValueError(f"model must have at least 2 layers to have a pair of them, got {self.L}")
        norm = getattr(model, "norm", None)
        if not use_pre_norm and norm not in _MAGNITUDE_PRESERVING:
            raise ValueError(
                f"use_pre_norm=False needs a model with norm one of {', '.join(_MAGNITUDE_PRESERVING)}, "
                f"got {norm!r}: it fixes the magnitude that would be read"
            )
        groups = self.blocks[0].channel_groups.cpu()
        self._check_nodes(model, groups, function_nodes)
        self.N = len(function_nodes)
        self.use_pre_norm = use_pre_norm
        order = torch.argsort(groups, stable=True)
        self._order = None if torch.equal(order, torch.arange(len(order))) else order

    @staticmethod
    def _check_nodes(model: nn.Module, groups: Tensor, names: Sequence[str]) -> None:
        counts = torch.bincount(groups)
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

    def tensors(self) -> list[Tensor]:
        """:meth:`pre_norms` where ``use_pre_norm``, else :meth:`activations`."""
        return self.pre_norms() if self.use_pre_norm else self.activations()

    def by_node(self, captured: Tensor) -> Tensor:
        """(B, N*C) in the order of ``channel_groups`` -> (B, N, C)."""
        if self._order is not None:
            captured = captured.index_select(1, self._order.to(captured.device))
        return captured.unflatten(1, (self.N, -1))
