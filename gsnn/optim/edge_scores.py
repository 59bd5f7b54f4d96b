"""Simple scores of every pair i -> j of function nodes, to judge an edge inferer by.

They share nothing with the inferers but the captures that they read. Two need the kept edges only, two need
magnitudes only, and three are the first-order effect that the missing edge would have on the loss, alone or
beside all others. All are (N, N) float64 arrays, [source, target]; larger is a better candidate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnn._checks import positive
from gsnn.optim.batch_scale import Crit
from gsnn.optim.edge_table import KeptEdges
from gsnn.optim.gradient_pass import Batch, over_batches
from gsnn.optim.layer_captures import LayerCaptures

Scores = NDArray[np.float64]
NAMES = ("activation_corr", "activation_gradient", "gradient_sv", "whitened_sv", "joint_sv")
_RANK_FLOOR = 1e-6  # of the largest eigenvalue of a node's channels: a direction below it is rounding


def common_neighbours(data: Any) -> Scores:
    """How many function nodes are joined to both i and j by a kept edge, in any direction.

    The classical link predictor; it is symmetric, so it knows nothing of direction. Self counts nothing.
    """
    mask = KeptEdges.of(data).mask
    joined = (mask | mask.T).astype(np.float64)
    np.fill_diagonal(joined, 0.0)
    return joined @ joined


def degree_product(data: Any) -> Scores:
    """Kept edges out of i times kept edges into j, between function nodes (preferential attachment)."""
    mask = KeptEdges.of(data).mask
    return np.outer(mask.sum(1), mask.sum(0)).astype(np.float64)


def edge_scores(
    model: nn.Module,
    data: Any,
    dataloader: Iterable[Any],
    crit: Crit | None = None,
    ridge: float = 1.0,
    verbose: bool = True,
) -> dict[str, Scores]:
    """Scores that need a trained model, from one forward and backward pass over `dataloader`.

    With z_i^p the pre-norm activation, h_i^p the one after the nonlinearity, which `lin_out` reads, and
    g_j^p the gradient of a sample's loss with respect to z_j^p, all (C,), and means over the P pairs of
    adjacent layers:

    - `activation_corr`: correlation over samples of ||z_i^p||_1 with ||z_j^(p+1)||_1. No gradient.
    - `activation_gradient`: mean over samples of ||h_i^p||_1 ||g_j^(p+1)||_1, the rule by which RigL grows
      connections (Evci et al. 2020), for nodes instead of weights.
    - `gradient_sv`: largest singular value of the C x C matrix M_ij = E[h_i^p g_j^(p+1)'], E over samples. A
      new edge of weights W = u v' (out of i, into j) changes the loss by tr(M' W) to first order, so this is
      its steepest decrease.
    - `whitened_sv`: the same with h_i^p centred and whitened. It does not depend on the scale or the mixing
      of i's channels: it is the steepest decrease by a signal of unit variance made from them.
    - `joint_sv`: largest singular value of the (i, j) block of the ridge regression of g_j^(p+1) on the
      centred and whitened activations of all nodes at once. A node that only goes along with the one that is
      missing, or with a kept parent, gets less than by itself.

    The model runs in eval mode; its mode, its parameters' `.grad` and its captures are left as they were. A
    pair without any variation scores 0.

    Args:
        model, data: as for `MagnitudeEdgeInferer`.
        dataloader: yields (x, y); x (B, N_in), y (B, N_out).
        crit: loss, mean squared error by default, with NaN in y as a missing measurement.
        ridge: of `joint_sv`, above 0, against a variance of 1 of every regressor.
        verbose: show progress.

    Memory: about 50 P (N C)^2 bytes: this is for networks of some hundred nodes.

    Raises:
        TypeError, ValueError: as for `MagnitudeEdgeInferer`, and a dataloader without samples.
    """
    positive("ridge", ridge)
    kept = KeptEdges.of(data)
    captures = LayerCaptures(model, kept.names)
    sums: _Sums | None = None

    def take(batch: Batch) -> None:
        nonlocal sums
        z = captures.pre_norms()
        parts = [
            batch.counted(torch.stack([captures.by_node(t.detach()).double() for t in tensors]))
            for tensors in (z, captures.activations()[:-1], batch.gradients(z[1:]))
        ]
        if parts[0].shape[1] == 0:
            return
        if sums is None:
            sums = _Sums(*parts)
        sums.add(parts[0], parts[1], parts[2] * batch.scale)

    over_batches(model, captures, dataloader, take, crit, verbose=verbose)
    if sums is None:
        raise ValueError("dataloader must yield at least one sample with a measured output, got none")
    return sums.scores(ridge)


class _Sums:
    """Sums over samples; z (L, B, N, C), h and g (P, B, N, C).

    Covariances are sums of products of distances from the first batch's mean: centred well enough in
    float64, and a plain sum.
    """

    def __init__(self, z: Tensor, h: Tensor, g: Tensor) -> None:
        self.pairs, _, self.nodes, self.channels = h.shape
        size = self.nodes * self.channels
        self.n = 0
        self.x0 = z.abs().sum(-1).mean(1, keepdim=True)  # (L, 1, N)
        self.h0 = h.mean(1, keepdim=True)  # (P, 1, N, C)
        self.x_sum = torch.zeros_like(self.x0)
        self.x_squares = torch.zeros_like(self.x0)
        self.x_products = h.new_zeros(self.pairs, self.nodes, self.nodes)
        self.magnitudes = h.new_zeros(self.nodes, self.nodes)
        self.h_sum = torch.zeros_like(self.h0)
        self.g_sum = torch.zeros_like(self.h0)
        self.hh = h.new_zeros(self.pairs, size, size)
        self.hg = h.new_zeros(self.pairs, size, size)

    def add(self, z: Tensor, h: Tensor, g: Tensor) -> None:
        self.n += z.shape[1]
        x = z.abs().sum(-1) - self.x0
        self.x_sum += x.sum(1, keepdim=True)
        self.x_squares += x.square().sum(1, keepdim=True)
        self.x_products += x[:-1].mT @ x[1:]
        self.magnitudes += (h.abs().sum(-1).mT @ g.abs().sum(-1)).sum(0)
        h = h - self.h0
        self.h_sum += h.sum(1, keepdim=True)
        self.g_sum += g.sum(1, keepdim=True)
        h, g = h.flatten(2), g.flatten(2)
        self.hh += h.mT @ h
        self.hg += h.mT @ g

    def scores(self, ridge: float) -> dict[str, Scores]:
        n = self.n
        shift = self.x_sum / n
        spread = (self.x_squares / n - shift.square()).clamp(min=0.0).sqrt()
        size = (self.x0 + shift).abs()
        inverse = torch.where(spread > 1e-6 * size, 1.0 / spread, 0.0)  # 0 where a magnitude is constant
        r = (self.x_products / n - shift[:-1].mT @ shift[1:]) * inverse[:-1].mT * inverse[1:]

        mean_h, mean_g = self.h_sum / n, self.g_sum / n  # of h less h0
        centred = self._blocks(self.hg / n - mean_h.flatten(2).mT @ mean_g.flatten(2))
        M = centred + self._blocks((mean_h + self.h0).flatten(2).mT @ mean_g.flatten(2))
        cov = self._blocks(self.hh / n - mean_h.flatten(2).mT @ mean_h.flatten(2))
        w, v = torch.linalg.eigh(cov.diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2))  # (P, N, C), (P, N, C, C)
        # Below this a direction is the rounding of the activations, in single precision.
        noise = 1e-12 * (mean_h + self.h0)[:, 0].square().sum(-1, keepdim=True)
        floor = torch.maximum(_RANK_FLOOR * w[..., -1:], noise)
        whiten = v.mT * torch.where(w > floor, w.clamp(min=1e-300).rsqrt(), 0.0)[..., None]
        alone = whiten[:, :, None] @ centred
        joint = self._flat(whiten[:, :, None] @ cov @ whiten.mT[:, None])
        joint.diagonal(dim1=1, dim2=2).add_(ridge)
        beside = self._blocks(torch.linalg.solve(joint, self._flat(alone)))
        found = (
            r.mean(0),
            self.magnitudes / (n * self.pairs),
            _largest(M),
            _largest(alone),
            _largest(beside),
        )
        return {name: values.cpu().numpy() for name, values in zip(NAMES, found, strict=True)}

    def _blocks(self, flat: Tensor) -> Tensor:
        """(P, N C, N C) -> (P, N, N, C, C), the C x C matrix of each pair of nodes."""
        sizes = (self.nodes, self.channels)
        return flat.unflatten(2, sizes).unflatten(1, sizes).transpose(2, 3)

    @staticmethod
    def _flat(blocks: Tensor) -> Tensor:
        """The inverse of `_blocks`."""
        return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


def _largest(matrices: Tensor) -> Tensor:
    """Mean over P of the largest singular values of (P, N, N, C, C): (N, N)."""
    return torch.stack([torch.linalg.matrix_norm(part, 2) for part in matrices]).mean(0)
