"""A settled network as a linear function of the weights of edges that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gsnn._memory import memory_advice
from gsnn._modes import evaluation_mode
from gsnn.data.scaling import scaling_of
from gsnn.models.GSNN import GSNN
from gsnn.optim.layer_captures import LayerCaptures
from gsnn.optim.staging import Samples

_RIDGES = (0.03, 0.3, 3.0, 30.0)  # of the mean of the diagonal; 0 effect competes with them
_BATCH = 256


class Linearised:
    """A settled network as a linear function of the weights of edges that it lacks.

    With h (n, P, D) the signals of the sources and J (n, P, N_out, C) the derivative of the outputs with
    respect to z_j of each pair's second layer, weights W (P, D, C) change the prediction by sum_p J_p (W_p'
    h_p). They are fitted by ridge regression to the residuals that are left once biases of z_j are fitted in
    the same way, on the samples `fitting`; the ridge is chosen between the two halves of these.
    """

    @memory_advice("fewer samples or fewer candidate edges take less")
    def __init__(
        self, model: GSNN, samples: Samples, fitting: Any, names: Sequence[str], targets: Sequence[int]
    ) -> None:
        scaling = scaling_of(model)
        samples = samples if scaling is None else samples.scaled(scaling)
        self.fitting = torch.as_tensor(fitting)
        self.half = self.fitting & (self.fitting.cumsum(0) % 2 == 0)
        self._read(model, samples, names, targets)
        self._left: dict[int, Tensor] = {}  # residuals after the biases
        self._changes: dict[tuple[int, int], Tensor] = {}
        self._products: dict[int, Tensor] = {}

    def _read(self, model: GSNN, samples: Samples, names: Sequence[str], targets: Sequence[int]) -> None:
        captures, param = LayerCaptures(model, names), next(model.parameters())
        h, left, slopes = [], [], []
        with evaluation_mode(model), captures.recording(), torch.enable_grad():
            for x, y in zip(samples.x.split(_BATCH), samples.y.split(_BATCH), strict=True):
                prediction = model(x.to(param).requires_grad_())
                z = captures.tensors()[1:]
                after = [t.detach() for t in captures.activations()[:-1]]
                h.append(torch.stack([captures.by_node(t).double() for t in after], 1).cpu())
                measured = ~y.isnan()
                left.append(torch.where(measured, y - prediction.detach().cpu(), 0.0).double())
                rows = []
                for k in range(prediction.shape[1]):
                    grads = torch.autograd.grad(
                        prediction[:, k].sum(), z, retain_graph=True, allow_unused=True
                    )
                    full = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, z, strict=True)]
                    of_targets = torch.stack([captures.by_node(g)[:, list(targets)] for g in full], 1)
                    rows.append(of_targets.double().cpu() * measured[:, k, None, None, None])
                slopes.append(torch.stack(rows, 3))  # (B, P, T, N_out, C)
        self.residual = torch.cat(left)
        self.slopes = dict(zip(targets, torch.cat(slopes).unbind(2), strict=True))  # (n, P, N_out, C)
        signals = torch.cat(h)  # (n, P, N, C)
        signals = signals - signals[self.fitting].mean(0)
        own = signals[self.fitting].permute(1, 2, 3, 0)
        w, v = torch.linalg.eigh(own @ own.mT / own.shape[-1])
        scale = torch.where(w > 1e-6 * w[..., -1:].clamp(min=1e-12), w.clamp(min=1e-300).rsqrt(), 0.0)
        self.h = torch.einsum("npic,picd->npid", signals, v * scale[..., None, :])

    def before(self, target: int) -> Tensor:
        """(n,): each sample's squared error once the biases of the target are fitted."""
        return self._residual(target).square().sum(1)

    def after(self, source: int, target: int) -> Tensor:
        """(n,): the same once the edge is fitted too."""
        return (self._residual(target) - self.change(source, target)).square().sum(1)

    def change(self, source: int, target: int) -> Tensor:
        """(n, N_out): what the edge adds to the prediction."""
        edge = source, target
        if edge not in self._changes:
            self._changes[edge] = self._fitted(self.h[:, :, source], target, self._residual(target))
        return self._changes[edge]

    def likeness(self, wanted: Tensor, target: int) -> Tensor:
        """(N,): how much of a change (n, N_out) an edge from each source would bring, to first order.

        On the samples fitted to, in units of what one direction of the target's slopes would bring alone.
        """
        slopes = self.slopes[target][self.fitting]
        pull = torch.einsum("npoc,no->npc", slopes, wanted[self.fitting])
        each = torch.einsum("npid,npc->ipdc", self.h[self.fitting], pull).square().sum((1, 2, 3))
        return each / slopes.square().sum().clamp(min=1e-300)

    def _residual(self, target: int) -> Tensor:
        if target not in self._left:
            ones = self.h.new_ones(*self.h.shape[:2], 1)
            self._left[target] = self.residual - self._fitted(ones, target, self.residual)
        return self._left[target]

    def _fitted(self, h: Tensor, target: int, left: Tensor) -> Tensor:
        """(n, N_out): what weights of the signals h (n, P, D) add to the prediction."""
        slopes = self.slopes[target]
        if target not in self._products:
            self._products.clear()  # those of one target at a time: they are large
            self._products[target] = torch.einsum("npoc,nqod->pqncd", slopes, slopes)
        pull = torch.einsum("npoc,no->npc", slopes, left)
        pairs, d, c = h.shape[1], h.shape[2], slopes.shape[3]

        def normal(rows: Tensor) -> tuple[Tensor, Tensor]:
            part = h[rows]
            signals = torch.einsum("npa,nqb->pqnab", part, part).flatten(3)  # (P, P, n, D D)
            gram = signals.mT @ self._products[target][:, :, rows].flatten(3)  # (P, P, D D, C C)
            gram = gram.unflatten(3, (c, c)).unflatten(2, (d, d)).permute(0, 2, 4, 1, 3, 5)
            right = torch.einsum("npa,npc->pac", part, pull[rows])
            return gram.reshape(pairs * d * c, -1), right.reshape(-1)

        one, other = normal(self.half), normal(self.fitting & ~self.half)
        size = float((one[0] + other[0]).diagonal().mean())
        if not size > 0:
            return torch.zeros_like(left)
        best, ridge = 0.0, None
        for factor in _RIDGES:
            change = 0.0
            for (gram, right), (its_gram, its_right) in ((one, other), (other, one)):
                weights = _ridge(gram, right, factor * size / 2)
                change += float(weights @ (its_gram @ weights) - 2 * weights @ its_right)
            if change < best:
                best, ridge = change, factor
        if ridge is None:  # no effect predicts the other half better than any
            return torch.zeros_like(left)
        weights = _ridge(one[0] + other[0], one[1] + other[1], ridge * size).view(pairs, d, c)
        return torch.einsum("npoc,npc->no", slopes, torch.einsum("npa,pac->npc", h, weights))


def _ridge(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    gram = gram.clone()
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(gram))[:, 0]
