"""Normalisations of one function node's channels, (N, C, B) with nodes in plan order.

All but ``none`` end in one scale and one shift per node when ``affine``. Parameters and running
statistics are kept in the given order of the nodes, so that a saved model does not depend on how its
plan laid the nodes out.
"""

import torch

from gsnn.functional.channels import EPS, standardize
from gsnn.functional.plan import Plan

#: Dimensions of (N, C, B) that a norm averages over.
_DIMS = {"layer": (1,), "rms": (1,), "groupbatch": (1, 2), "batch": (2,)}
NORMS = ("layer", "rms", "softmax", "groupbatch", "batch", "none")
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

    def __init__(self, kind: str, n_nodes: int, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.centre = kind != "rms"
        self.updates_statistics = True
        learnt = affine and kind != "none"
        self.register_parameter("weight", torch.nn.Parameter(torch.ones(n_nodes)) if learnt else None)
        self.register_parameter("bias", torch.nn.Parameter(torch.zeros(n_nodes)) if learnt else None)
        if kind in ("groupbatch", "batch"):
            size = n_nodes if kind == "groupbatch" else n_nodes * channels
            self.register_buffer("running_mean", torch.zeros(size))
            self.register_buffer("running_var", torch.ones(size))

    @property
    def over_batch(self) -> bool:
        return self.kind in ("groupbatch", "batch")

    @property
    def dims(self) -> tuple[int, ...] | None:
        """Dimensions of (N, C, B) averaged over right now; None for a norm that averages nothing."""
        return None if self.over_batch and not self.training else _DIMS.get(self.kind)

    def forward(self, z: torch.Tensor, plan: Plan) -> torch.Tensor:
        """(N, C, B) -> (N, C, B), nodes in plan order."""
        if self.kind == "none":
            return z
        weight, bias = (
            None if per_node is None else plan.to_nodes(per_node.view(-1, 1, 1))
            for per_node in (self.weight, self.bias)
        )
        if self.dims is not None:
            result, scale, mean = standardize(z, weight, bias, self.dims, self.centre)
            self.update_statistics(scale, mean, z.numel(), plan)
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

    @torch.no_grad()
    def update_statistics(
        self, scale: torch.Tensor | None, mean: torch.Tensor | None, size: int, plan: Plan
    ) -> None:
        """Move the running statistics towards those of a batch of ``size`` values; no-op for other norms."""
        if not self.over_batch or not self.updates_statistics or mean is None or scale is None:
            return

        def in_given_order(statistic: torch.Tensor) -> torch.Tensor:
            return plan.from_nodes(statistic).reshape(-1).to(self.running_mean)

        count = size // mean.numel()
        self.running_mean.lerp_(in_given_order(mean), MOMENTUM)
        if count > 1:  # one value has no variance to learn from
            variance = in_given_order(scale).pow(-2).sub_(EPS).clamp_(min=0)
            self.running_var.lerp_(variance.mul_(count / (count - 1)), MOMENTUM)

    def extra_repr(self) -> str:
        return f"{self.kind!r}, affine={self.weight is not None}"
