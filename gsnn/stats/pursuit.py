"""Group-wise orthogonal matching pursuit on streamed moments: which group of C channels to add next.

A group is what one node shows: C channels. Sources h (P, n, S, C) and targets g (P, n, T, D) are seen batch
by batch; what is kept are their centred second moments in float64. Source: Pati, Rezaiifar & Krishnaprasad
1993 (orthogonal matching pursuit), with ridge and whole groups, each whitened, in place of single columns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

_RANK_FLOOR = 1e-6  # of a group's largest eigenvalue: a direction below it is rounding


class GroupMoments:
    """Centred sums of products of h and g over samples, merged batch by batch (Chan et al. 1983).

    Attributes:
        n: samples seen.
        shape, target_shape: (P, S, C) and (P, T, D).
        mean_h, mean_g: (P, S C) and (P, T D).
        hh: (P, S C, S C), sums of products of centred h; hg (P, S C, T D) the same of h with g.
        gg: (P, T, D, D), of each group of g with itself.
        jj: (P, T, D, D), the same of the slopes, not centred; 0 where none were given.
    """

    def __init__(
        self,
        pairs: int,
        nodes: int,
        channels: int,
        device: torch.device | None = None,
        targets: tuple[int, int] | None = None,
    ) -> None:
        size = nodes * channels
        others, width = targets or (nodes, channels)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.n = 0
        self.shape = (pairs, nodes, channels)
        self.target_shape = (pairs, others, width)
        self.mean_h, self.mean_g = zeros(pairs, size), zeros(pairs, others * width)
        self.hh, self.hg = zeros(pairs, size, size), zeros(pairs, size, others * width)
        self.gg = zeros(pairs, others, width, width)
        self.jj = zeros(pairs, others, width, width)

    def add(self, h: Tensor, g: Tensor, slopes: Tensor | None = None) -> None:
        """Count the samples of h (P, B, S, C) and g (P, B, T, D), and of slopes like g."""
        batch = h.shape[1]
        if batch == 0:
            return
        h, g = h.double().flatten(2), g.double().flatten(2)
        if slopes is not None:
            rows = slopes.double().transpose(1, 2)  # (P, T, B, D)
            self.jj += rows.mT @ rows
        new_h, new_g = h.mean(1), g.mean(1)
        self._join(batch, new_h, new_g, h - new_h[:, None], g - new_g[:, None])

    def merge(self, other: GroupMoments) -> None:
        """Count the samples that `other` has seen."""
        if other.n == 0:
            return
        no_h, no_g = (mean.new_zeros(len(mean), 0, mean.shape[1]) for mean in (self.mean_h, self.mean_g))
        self._join(other.n, other.mean_h, other.mean_g, no_h, no_g)
        self.hh += other.hh
        self.hg += other.hg
        self.gg += other.gg
        self.jj += other.jj

    def _join(self, count: int, mean_h: Tensor, mean_g: Tensor, h: Tensor, g: Tensor) -> None:
        """Add centred rows, and one row more for the distance between the two means."""
        total = self.n + count
        step_h, step_g = mean_h - self.mean_h, mean_g - self.mean_g
        weight = (self.n * count / total) ** 0.5
        h = torch.cat([h, weight * step_h[:, None]], 1)
        g = torch.cat([g, weight * step_g[:, None]], 1)
        self.hh.baddbmm_(h.mT, h)
        self.hg.baddbmm_(h.mT, g)
        groups = g.unflatten(2, self.target_shape[1:]).transpose(1, 2)  # (P, T, B + 1, D)
        self.gg += groups.mT @ groups
        self.mean_h += step_h * (count / total)
        self.mean_g += step_g * (count / total)
        self.n = total

    def in_units_of_curvature(self, ridge: float) -> GroupMoments:
        """The same of g K^(-1/2) in place of g, K the second moments of a target's slopes and a ridge.

        `ridge` is in units of the mean of the diagonals of all K.
        """
        curvature = self.jj / self.n
        size = curvature.diagonal(dim1=-2, dim2=-1).mean()
        w, v = torch.linalg.eigh(curvature)
        root = (v * (w.clamp(min=0.0) + ridge * size).rsqrt()[..., None, :]) @ v.mT
        if not float(size) > 0:  # no output depends on any target: g is 0 too
            return self
        turned = copy.copy(self)
        by_target = self.hg.unflatten(2, self.target_shape[1:])
        turned.hg = torch.einsum("pstc,ptcd->pstd", by_target, root).flatten(2)
        turned.mean_g = torch.einsum("ptc,ptcd->ptd", self.mean_g.view(self.target_shape), root).flatten(1)
        turned.gg = root @ self.gg @ root
        return turned

    def effects(self) -> Tensor:
        """M (P, S, T, C, D): M[p, i, j] = mean over samples of h_i^p g_j^p', not centred."""
        products = self.hg / self.n + self.mean_h[:, :, None] * self.mean_g[:, None, :]
        return products.unflatten(2, self.target_shape[1:]).unflatten(1, self.shape[1:]).transpose(2, 3)


class Pursuit:
    """Steps of matching pursuit: what of E[h_i g_j'] is left given groups that j has already.

    h is centred, and each of its groups whitened, so that nothing depends on the scale or the mixing of a
    node's channels. A group is projected off others by ridge regression.

    Args:
        moments: of at least one sample.
        ridge: added to the whitened groups' covariance, whose diagonal is 1.
    """

    def __init__(self, moments: GroupMoments, ridge: float = 0.05) -> None:
        self.n = moments.n
        self.shape = pairs, nodes, channels = moments.shape
        self.ridge = ridge
        cov = moments.hh / moments.n
        at = torch.arange(nodes, device=cov.device)
        own = cov.view(pairs, nodes, channels, nodes, channels)[:, at, :, at].transpose(0, 1)
        self.whiten, self.ranks = whitener(own, moments.mean_h.view(pairs, nodes, channels))
        left = self._whitened(cov)  # (P, S C, S C), rows whitened
        self.cov = self._whitened(left.mT)
        self.cross = self._whitened(moments.hg / moments.n)  # (P, S C, T D), whitened h with g
        self._own_g = moments.gg / moments.n
        self._size_g = moments.mean_g.view(moments.target_shape)

    def _whitened(self, flat: Tensor) -> Tensor:
        pairs, nodes, channels = self.shape
        return (self.whiten @ flat.view(pairs, nodes, channels, -1)).flatten(1, 2)

    def _columns(self, groups: Sequence[int]) -> Tensor:
        channels = self.shape[2]
        at = torch.as_tensor(list(groups), dtype=torch.long, device=self.cov.device)
        return (at[:, None] * channels + torch.arange(channels, device=at.device)).flatten()

    def left(self, target: int, given: Sequence[int]) -> Tensor:
        """(P, S, C, D): E[r_i g_j'], r_i the whitened h_i less its ridge regression on the groups `given`."""
        _, nodes, channels = self.shape
        width = self._size_g.shape[2]
        cross = self.cross[:, :, target * width : (target + 1) * width]
        if len(given):
            at = self._columns(given)
            cross = cross - self.cov[:, :, at] @ torch.linalg.solve(self._inner(at), cross[:, at])
        return cross.unflatten(1, (nodes, channels))

    def _inner(self, at: Tensor) -> Tensor:
        inner = self.cov[:, at][:, :, at].clone()
        inner.diagonal(dim1=1, dim2=2).add_(self.ridge)
        return inner

    def scores(self, target: int, given: Sequence[int]) -> Tensor:
        """(P, S): largest singular values of `left`."""
        return largest(self.left(target, given))

    def p_values(self, target: int, given: Sequence[int]) -> NDArray[np.float64]:
        """(S,): of the hypothesis that g_j is uncorrelated with what is left of each h_i, in every pair.

        The score test of multivariate regression, n tr(Cov(r)^-1 E[r g'] Cov(g)^-1 E[g r']), chi-squared with
        rank(r) rank(g) degrees; the smallest of the P pairs times P (Bonferroni). NaN where nothing is left.
        """
        pairs, nodes, channels = self.shape
        left = self.left(target, given)
        blocks = self.cov.view(pairs, nodes, channels, nodes, channels)
        at = torch.arange(nodes, device=self.cov.device)
        own = blocks[:, at, :, at].transpose(0, 1)  # (P, S, C, C)
        if len(given):
            columns = self._columns(given)
            rows = self.cov[:, :, columns]  # (P, S C, s)
            fit = torch.linalg.solve(self._inner(columns), rows.mT)  # (P, s, S C)
            inside = (self.cov[:, columns][:, :, columns] @ fit).mT.unflatten(1, (nodes, channels))
            rows, by_node = (part.unflatten(1, (nodes, channels)) for part in (rows, fit.mT))
            own = own - rows @ by_node.mT - by_node @ rows.mT + inside @ by_node.mT
        zero = own.new_zeros(())
        white_r, rank_r = whitener(own, zero, floor=1e-4)
        white_g, rank_g = whitener(self._own_g[:, target], self._size_g[:, target])
        kept = (white_r @ left @ white_g[:, None].mT).square().sum((2, 3))
        freedom = (rank_r * rank_g[:, None]).cpu().numpy()
        statistic = (self.n * kept).cpu().numpy()
        p = np.where(freedom > 0, stats.chi2.sf(statistic, np.maximum(freedom, 1)), np.nan)
        return np.where(
            np.isnan(p).all(0), np.nan, np.minimum(1.0, pairs * np.where(np.isnan(p), 1.0, p).min(0))
        )


def largest(matrices: Tensor) -> Tensor:
    """Largest singular values of (..., C, D): the root of the largest eigenvalue of A'A."""
    return torch.linalg.eigvalsh(matrices.mT @ matrices)[..., -1].clamp(min=0.0).sqrt()


def whitener(cov: Tensor, mean: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """W (..., C, C) with W cov W' the identity on the directions that vary, and their number (...)."""
    w, v = torch.linalg.eigh(cov)
    # Below this a direction is the rounding of the activations, in single precision.
    noise = 1e-12 * mean.square().sum(-1, keepdim=True) if mean.ndim else mean
    least = torch.maximum(_RANK_FLOOR * w[..., -1:], noise).clamp(min=floor)
    varies = (w > least) & (w > 0)
    return v.mT * torch.where(varies, w.clamp(min=1e-300).rsqrt(), 0.0)[..., None], varies.sum(-1)
