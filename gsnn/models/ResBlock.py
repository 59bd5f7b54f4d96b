"""One residual block: edges -> channels of the function nodes -> edges."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from gsnn.captures import MODES, Capture, CaptureNames, Mode
from gsnn.kernels import bucketed, scatter
from gsnn.kernels.bucketed import plain_needed
from gsnn.kernels.channels import elu
from gsnn.kernels.form import Form, Weights
from gsnn.kernels.interface import Case
from gsnn.kernels.plan import Plan
from gsnn.kernels.reference import capture
from gsnn.kernels.registry import pick
from gsnn.kernels.stack import run_blocks, run_with_captures
from gsnn.models.config import Config
from gsnn.models.norms import NodeNorm, update_statistics
from gsnn.models.SparseLinear import SparseLinear


class NodeMLP(torch.nn.Sequential):
    """Two-layer network on a node's channels, the same for all nodes; (N, C, B) -> (N, C, B)."""

    def __init__(
        self, channels: int, hidden: int, nonlin: Callable[[], torch.nn.Module], dropout: float
    ) -> None:
        super().__init__(
            torch.nn.Linear(channels, hidden),
            torch.nn.LayerNorm(hidden),
            nonlin(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(hidden, channels),
            torch.nn.Dropout(dropout),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Channels z (N, C, B) to channels (N, C, B)."""
        return super().forward(z.transpose(1, 2)).transpose(1, 2)


class ResBlock(CaptureNames, torch.nn.Module):
    """``x -> lin_out(mask(mlp(dropout(nonlin(norm(lin_in(x))))))) + relu(r) x`` on the edge state.

    Built by :class:`gsnn.models.GSNN.GSNN`, which shares ``lin_in``, ``lin_out`` and the node MLP
    between blocks when asked to.

    Args:
        lin_in: weights from edges to channels.
        lin_out: weights from channels to edges.
        norm: normalisation of the channels.
        node_mlp: network on each node's channels, or None.
        config: of the network; nonlinearity, dropout, order and residual are its.
        channel_groups: (N*C,) flat node index of each channel.

    Attributes:
        capture: what a forward pass leaves of the activations, and whether; see :mod:`gsnn.captures`.
        _store_activations: its switch by an older name; when True, each forward keeps
            ``_last_pre_norm_activation`` and ``_last_activation``, both (B, N*C) in the order of
            ``channel_groups`` and on the autograd graph of the output.
    """

    channel_groups: torch.Tensor
    residual_weight: torch.Tensor | None

    def __init__(
        self,
        lin_in: SparseLinear,
        lin_out: SparseLinear,
        norm: NodeNorm,
        node_mlp: NodeMLP | None,
        config: Config,
        channel_groups: torch.Tensor,
    ) -> None:
        super().__init__()
        self.lin_in = lin_in
        self.lin_out = lin_out
        self.norm = norm
        self.channels = config.channels
        self.nonlin = config.nonlin()
        self.dropout = torch.nn.Dropout(config.dropout)
        self.node_mlp = node_mlp
        self.norm_first = config.norm_first
        if config.residual and config.learn_residual:
            self.residual_weight = torch.nn.Parameter(torch.ones(()))
        else:
            one = torch.ones(()) if config.residual else None
            self.register_buffer("residual_weight", one, persistent=False)
        self.register_buffer("channel_groups", channel_groups, persistent=False)
        self.capture = Capture()

    def forward(
        self,
        state: torch.Tensor,
        plan: Plan,
        node_mask: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Edge state (R, B) in the plan's rows -> the same.

        Args:
            state: (R, B).
            plan: the network's plan.
            node_mask: (N, 1, 1) or (N, 1, B) in plan order, multiplies the channels.
            gate: (N, 1, B) in plan order, multiplies them too, before they are captured.
        """
        if gate is None and runs_fused([self], state, plan, node_mask):
            return run_fused([self], state, plan, node_mask)
        in_values = self.lin_in.table().view(-1, self.channels)
        out_values = self.lin_out.table().view(-1, self.channels)
        residual = self.residual_weight
        products = scatter if self.lin_in.backend == "scatter" else bucketed
        z = products.lin_in(state, in_values, self.lin_in.bias, plan)
        captured = self.capture.mode != "off"
        pre_norm = activation = None
        if captured:
            pre_norm, z = capture(z, plan)
        z = self._nonlin(self.norm(z, plan)) if self.norm_first else self.norm(self._nonlin(z), plan)
        if self.dropout.p:
            z = self.dropout(z)
        if self.node_mlp is not None:
            z = self.node_mlp(z)
        if gate is not None:
            z = z * gate
        if captured:
            activation, z = capture(z, plan)
            self.capture.leave(pre_norm, activation)
        if node_mask is not None:
            z = z * node_mask
        through = state if residual is not None else None
        return products.lin_out(z.contiguous(), out_values, self.lin_out.bias, through, residual, plan)

    @property
    def _plain_elu(self) -> bool:
        nonlin = self._modules["nonlin"]
        return type(nonlin) is torch.nn.ELU and nonlin.alpha == 1

    def fusible(self, node_mask: torch.Tensor | None) -> bool:
        """Whether a forward pass is now of the form that :func:`run_fused` runs as one operation."""
        return self.why_separate(node_mask) is None

    def why_separate(self, node_mask: torch.Tensor | None) -> str | None:
        """Why a forward pass is now no single operation, None where it is one."""
        modules = self._modules
        norm: Any = modules["norm"]
        lin_in: Any = modules["lin_in"]
        if node_mask is not None and self.capture.mode != "off":
            return "captures lie before the node mask"
        if not self._plain_elu:
            return "the nonlinearity is not ELU with alpha 1"
        if not norm.fusible:
            return f"the norm is {norm.kind}"
        if norm.kind != "none" and not self.norm_first:
            return "the norm comes after the nonlinearity"
        if self.node_mlp is not None:
            return "there is a node MLP"
        if node_mask is not None and node_mask.requires_grad:
            return "the node mask has a gradient"
        if lin_in.backend != "bucketed":
            return f"the backend is {lin_in.backend}"
        return "PyTorch traces or transforms the code" if plain_needed() else None

    def weights(self, state: torch.Tensor, plan: Plan, node_mask: torch.Tensor | None) -> Weights:
        """The block's tensors; dropout and node mask become one constant factor on the channels."""
        dropout: Any = self._modules["dropout"]
        factor = node_mask
        if dropout.p and dropout.training:
            kept = 1 - dropout.p
            factor = state.new_empty(plan.n_nodes, self.channels, state.shape[1]).bernoulli_(kept).div_(kept)
            if node_mask is not None:
                factor.mul_(node_mask)
        return self._weights(factor)

    def _weights(self, factor: torch.Tensor | None) -> Weights:
        # Straight from the dictionaries: for a small network, Module.__getattr__ costs what a product does.
        modules: dict[str, Any] = self._modules
        norm, lin_in, lin_out = (modules[name] for name in ("norm", "lin_in", "lin_out"))
        residual = self._parameters.get("residual_weight", self._buffers.get("residual_weight"))
        scale, shift = norm.maps()
        return Weights(
            lin_in.table(),
            lin_in._parameters["bias"],
            scale,
            shift,
            lin_out.table(),
            lin_out._parameters["bias"],
            residual,
            factor,
        )

    def form(self, mode: Mode) -> Form:
        """What the block computes besides its products, with captures of this mode."""
        norm = self.norm
        return Form(self.channels, norm.dims, norm.centre, aside=mode == "aside", inside=mode == "on")

    def _nonlin(self, z: torch.Tensor) -> torch.Tensor:
        return elu(z) if self._plain_elu else self.nonlin(z)


def kernel_cases(blocks: Sequence[ResBlock], x: torch.Tensor, plan: Plan) -> list[Case]:
    """How each block would be run for x (B, N_in); what :func:`gsnn.kernels.registry.chosen` asks."""
    state = x.new_empty(plan.n_rows, len(x))
    return [
        Case(
            block.why_separate(None),
            state,
            block._weights(None),
            block.form(block.capture.mode),
            plan,
        )
        for block in blocks
    ]


def _most(blocks: Sequence[ResBlock]) -> Mode:
    """The most that a capture of any of the blocks asks for."""
    return max((block.capture.mode for block in blocks), key=MODES.index)


def runs_fused(
    blocks: Sequence[ResBlock], state: torch.Tensor, plan: Plan, node_mask: torch.Tensor | None
) -> bool:
    """Whether :func:`run_fused` may run blocks of one form: all fit, and a kernel takes their captures."""
    if not all(block.fusible(node_mask) for block in blocks):
        return False
    form = blocks[0].form(_most(blocks))
    if not form.inside:  # whatever is picked takes everything else
        return True
    weights = [blocks[0]._weights(None)]  # the others are of the same sizes
    return pick(state, weights, form, plan).refuses(state, weights, form, plan) is None


def run_fused(
    blocks: Sequence[ResBlock], state: torch.Tensor, plan: Plan, node_mask: torch.Tensor | None
) -> torch.Tensor:
    """The blocks in turn, as one differentiable operation; all of one form and ``fusible``."""
    form = blocks[0].form(_most(blocks))
    weights = [block.weights(state, plan, node_mask) for block in blocks]
    if form.inside:
        result, statistics, before, after = run_with_captures(state, weights, form, plan)
        for block, z, activation in zip(blocks, before, after, strict=True):
            if block.capture.mode != "off":
                block.capture.leave(z, activation)
    else:
        result, statistics, aside, inside = run_blocks(state, weights, form, plan)
        for k, (block, nodes) in enumerate(zip(blocks, aside, strict=False)):  # none where none is wanted
            if block.capture.mode != "off":
                block.capture.leave_aside(nodes, None, None if inside is None else partial(inside.read, k))
    size = len(blocks[0].channel_groups) * state.shape[1]
    update_statistics([block.norm for block in blocks], statistics, size, plan)
    return result
