"""Normalisations of one function node's channels, (N, C, B) with nodes in plan order.

All but ``none`` end in one scale and one shift per node when ``affine``. Parameters and running
statistics are kept in the given order of the nodes, so that a saved model does not depend on how its
plan laid the nodes out.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from gsnn.kernels.channels import EPS, standardize
from gsnn.kernels.plan import Plan
from gsnn.models.signs import bound

#: Dimensions of (N, C, B) that a norm averages over.
_DIMS = {"layer": (1,), "rms": (1,), "groupbatch": (1, 2), "batch": (2,)}
Norm = Literal["layer", "rms", "softmax", "groupbatch", "batch", "none"]
NORMS: tuple[Norm, ...] = get_args(Norm)
MOMENTUM = 0.1


class NodeNorm(torch.nn.Module):
    """One of :data:`NORMS` over the channels of each function node.

    Args:
        kind: ``layer`` (mean and variance over the C channels of one node and sample; Ba et al.
            2016), ``rms`` (root mean square over them; Zhang & Sennrich 2019), ``softmax`` (over
            them), ``groupbatch`` (one mean and variance per node over batch and channels), ``batch``
            (per channel over the batch; Ioffe & Szegedy 2015) or ``none``. The two batch norms keep
            running statistics (momentum 0.1, unbiased variance) for eval mode.
        n_nodes: N.
        channels: C.
        affine: learn one scale and one shift per node; ``none`` has neither.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, kind: Norm, n_nodes: int, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.centre = kind != "rms"
        self.fusible = kind == "none" or kind in _DIMS  # the kernels compute it; see Form
        self.updates_statistics = True
        self.positive = False  # whether a scale below 0 acts as 0; see gsnn.models.signs
        learnt = affine and kind != "none"
        self.register_parameter("weight", torch.nn.Parameter(torch.ones(n_nodes)) if learnt else None)
        self.register_parameter("bias", torch.nn.Parameter(torch.zeros(n_nodes)) if learnt else None)
        if kind in ("groupbatch", "batch"):
            size = n_nodes if kind == "groupbatch" else n_nodes * channels
            self.register_buffer("running_mean", torch.zeros(size))
            self.register_buffer("running_var", torch.ones(size))

    @property
    def over_batch(self) -> bool:
        """Whether statistics are taken over the samples of a batch."""
        return self.kind in ("groupbatch", "batch")

    @property
    def dims(self) -> tuple[int, ...] | None:
        """Dimensions of (N, C, B) averaged over right now; None for a norm that averages nothing."""
        return None if self.over_batch and not self.training else _DIMS.get(self.kind)

    def maps(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Scale and shift that a kernel applies: the learnt ones (N,), or None.

        By running statistics they are all that the norm does, (N,) or, of the norm ``batch``, (N*C,).
        """
        scale: torch.Tensor | None = self.scale()
        shift: torch.Tensor | None = self._parameters["bias"]
        if not self.over_batch or self.training:
            return scale, shift
        unit = (self.running_var + EPS).rsqrt()
        if scale is None or shift is None:
            return unit, -self.running_mean * unit
        each = len(unit) // len(scale)
        if each > 1:
            scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
        scale = scale * unit
        return scale, shift - self.running_mean * scale

    def scale(self) -> torch.Tensor | None:
        """(N,) the learnt scales as they act, or None."""
        weight = self._parameters["weight"]
        return bound(weight, torch.ones_like(weight)) if self.positive and weight is not None else weight

    def forward(self, z: torch.Tensor, plan: Plan) -> torch.Tensor:
        """(N, C, B) -> (N, C, B), nodes in plan order."""
        if self.kind == "none":
            return z
        weight, bias = (
            None if per_node is None else plan.to_nodes(per_node.view(-1, 1, 1))
            for per_node in (self.scale(), self.bias)
        )
        if self.dims is not None:
            result, scale, mean = standardize(z, weight, bias, self.dims, self.centre)
            update_statistics([self], [(scale, mean)], z.numel(), plan)
            return result
        if self.over_batch:
            running_mean, running_var = (
                plan.to_nodes(statistic.view(z.shape[0], -1, 1))
                for statistic in (self.running_mean, self.running_var)
            )
            scale = (running_var + EPS).rsqrt()
            unit = z * scale - running_mean * scale
        else:
            unit = torch.softmax(z, dim=1)
        return unit if weight is None or bias is None else unit * weight + bias

    def extra_repr(self) -> str:
        """What ``repr`` says of it."""
        return f"{self.kind!r}, affine={self.weight is not None}"


@torch.no_grad()
def update_statistics(
    norms: Sequence[NodeNorm],
    statistics: Sequence[tuple[torch.Tensor | None, torch.Tensor | None]],
    size: int,
    plan: Plan,
) -> None:
    """Move the running statistics of norms over the batch towards those of a batch; no-op for others.

    Args:
        norms: norms of one kind.
        statistics: of each norm ``1 / sqrt(v + 1e-5)`` and the mean, (N, 1, 1) or (N, C, 1) in plan order.
        size: number of values, N C B, that they were taken from.
        plan: the network's plan.
    """
    found = [
        (norm, scale, mean)
        for norm, (scale, mean) in zip(norms, statistics, strict=True)
        if norm.over_batch and norm.updates_statistics and scale is not None and mean is not None
    ]
    if not found or not size:  # an empty batch says nothing
        return
    norms, scales, means = zip(*found, strict=True)
    count = size // means[0].numel()
    # All at once: for a small network the calls cost more than what they compute.
    all_means = plan.from_nodes(torch.cat(means, dim=2)).to(norms[0].running_mean)
    variances = plan.from_nodes(torch.cat(scales, dim=2)).to(norms[0].running_var)
    variances = variances.pow_(-2).sub_(EPS).clamp_(min=0).mul_(count / max(count - 1, 1))
    for norm, mean, variance in zip(norms, all_means.unbind(2), variances.unbind(2), strict=True):
        norm.running_mean.lerp_(mean.reshape(-1), MOMENTUM)
        if count > 1:  # one value has no variance to learn from
            norm.running_var.lerp_(variance.reshape(-1), MOMENTUM)
