"""Streaming centred co-moments of paired features, and the correlations they give.

P independent pairs of features are followed at once: x and y, each (B, N) per pair. Everything is kept
in float64 and *centred*: means plus sums of products of deviations, merged by the pairwise update of
Chan, Golub & LeVeque 1983 ("Algorithms for computing the sample variance"). Raw sums of squares would
lose every digit once the mean is large against the spread; centred sums do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

# A quotient of residual to total variance below this is rounding, whatever the ridge.
_RESIDUAL_FLOOR = 1e-12
_BLOCK_ELEMENTS = 2**22  # values per temporary array: 32 MiB

LayerAgg = Literal["mean", "max"]


class PairMoments(Protocol):
    """What correlations are made of: the vectors of `CoMoments`, and its matrices some columns at a time."""

    @property
    def n(self) -> int:
        """Samples seen."""

    @property
    def mean_x(self) -> Tensor:
        """Means of x: (P, N)."""

    @property
    def mean_y(self) -> Tensor:
        """Means of y: (P, N)."""

    @property
    def m_x(self) -> Tensor:
        """Sums of squared deviations of x from its mean: (P, N)."""

    @property
    def m_y(self) -> Tensor:
        """Sums of squared deviations of y from its mean: (P, N)."""

    def cross(self, targets: Tensor) -> Tensor:
        """Sums of products of the deviations of x with those of y for T `targets`: (P, N, T)."""

    def gram(self, pair: int, rows: Tensor) -> Tensor:
        """Sums of products of the deviations of x_s, s in `rows` (R,), with those of x, one pair: (R, N)."""


@dataclass
class CoMoments:
    """Centred moments of n samples of P pairs of N features (x_i) with N features (y_j).

    Attributes:
        n: samples seen.
        mean_x, mean_y: (P, N) means.
        m_x, m_y: (P, N) sums of squared deviations from the mean.
        m_xy: (P, N, N) sums over samples of (x_i - mean)(y_j - mean), i along dim 1 and j along dim 2.
        m_xx: (P, N, N) the same of x with x; what partial correlations condition with.
    """

    n: int
    mean_x: Tensor
    mean_y: Tensor
    m_x: Tensor
    m_y: Tensor
    m_xy: Tensor
    m_xx: Tensor

    @classmethod
    def empty(cls, pairs: int, features: int, device: torch.device | str = "cpu") -> CoMoments:
        """The moments of no sample; 16 * pairs * features**2 bytes."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        vectors = [zeros(pairs, features) for _ in range(4)]
        matrices = [zeros(pairs, features, features) for _ in range(2)]
        return cls(0, *vectors, *matrices)

    def cross(self, targets: Tensor) -> Tensor:
        """The columns `targets` (T,) of m_xy, copied: (P, N, T)."""
        return self.m_xy[:, :, targets]

    def gram(self, pair: int, rows: Tensor) -> Tensor:
        """The rows `rows` (R,) of one pair's m_xx, copied: (R, N)."""
        return self.m_xx[pair][rows]


def add_samples(state: CoMoments, x: Tensor, y: Tensor) -> None:
    """Add B samples to `state` in place: x and y are (P, B, N).

    The correction for the distance between the old and the new means is one more row under the
    deviations, so a batch costs exactly one matrix product per pair and matrix, accumulated in place.
    """
    if x.shape != y.shape or x.ndim != 3 or (x.shape[0], x.shape[2]) != tuple(state.mean_x.shape):
        pairs, features = state.mean_x.shape
        raise ValueError(
            f"x and y must be (P={pairs}, B, N={features}), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    batch = x.shape[1]
    if batch == 0:
        return
    total = state.n + batch
    weight = math.sqrt(state.n * batch / total)
    deviations = []
    for values, mean in ((x.double(), state.mean_x), (y.double(), state.mean_y)):
        # Summed as distances from the first sample: exactly 0, not rounding, where a feature is constant.
        batch_mean = values[:, 0] + (values - values[:, :1]).mean(1)  # (P, N)
        shift = batch_mean - mean
        deviations.append(
            torch.cat([values - batch_mean[:, None], weight * shift[:, None]], 1)
        )  # (P, B+1, N)
        mean += shift * (batch / total)
    dx, dy = deviations
    state.m_x += dx.square().sum(1)
    state.m_y += dy.square().sum(1)
    for pair in range(x.shape[0]):
        state.m_xy[pair].addmm_(dx[pair].T, dy[pair])
        state.m_xx[pair].addmm_(dx[pair].T, dx[pair])
    state.n = total


def merge(states: Sequence[CoMoments]) -> CoMoments:
    """The moments of all samples of `states` together, as if one state had seen them.

    Every term is a plain sum over the states once the common mean is known, so the same arithmetic
    serves an all-reduce over processes.
    """
    if not states:
        raise ValueError("states must hold at least one CoMoments, got none")
    shapes = {tuple(s.mean_x.shape) for s in states}
    if len(shapes) > 1:
        raise ValueError(f"states must be of one shape (P, N), got {sorted(shapes)}")
    first = states[0]
    pairs, features = first.mean_x.shape
    out = CoMoments.empty(pairs, features, first.mean_x.device)
    out.n = sum(s.n for s in states)
    if out.n == 0:
        return out
    for s in states:
        out.mean_x += s.mean_x * (s.n / out.n)
        out.mean_y += s.mean_y * (s.n / out.n)
    for s in states:
        dx, dy = s.mean_x - out.mean_x, s.mean_y - out.mean_y
        out.m_x += s.m_x + s.n * dx.square()
        out.m_y += s.m_y + s.n * dy.square()
        for pair in range(dx.shape[0]):
            out.m_xy[pair].add_(s.m_xy[pair]).addr_(dx[pair], dy[pair], alpha=s.n)
            out.m_xx[pair].add_(s.m_xx[pair]).addr_(dx[pair], dx[pair], alpha=s.n)
    return out


def spread(m: Tensor, mean: Tensor, n: int, eps: float) -> Tensor:
    """Root of the centred sum of squares `m`, NaN where the feature is constant.

    Constant means: a standard deviation of at most 8 * `eps` times the root mean square, `eps` being
    the machine precision of what the features were computed from. The floor is relative, so it does
    not depend on the unit of the feature, and it separates a spread from the rounding of a constant.
    """
    floor = (8.0 * eps) ** 2 * (m + n * mean.square())
    return torch.where(m > floor, m.sqrt(), torch.nan)


def correlation(state: PairMoments, targets: Tensor, eps: float = 2.0**-52) -> Tensor:
    """Pearson correlation of every x_i with y_j for j in `targets` (T,), per pair: (P, N, T).

    NaN where either is constant; see `spread` for `eps`.
    """
    sx = spread(state.m_x, state.mean_x, state.n, eps)
    sy = spread(state.m_y, state.mean_y, state.n, eps)[:, targets]
    return state.cross(targets).div_(sx[:, :, None]).div_(sy[:, None, :]).clamp_(-1.0, 1.0)


def partial_correlation(
    state: PairMoments, targets: Tensor, parents: Tensor, ridge: float = 1e-8, eps: float = 2.0**-52
) -> Tensor:
    """Correlation of x_i and y_j, both with x_s, s in S_j, projected off: (P, N, T).

    `targets` (T,) are the j; `parents` (T, k) their S_j, -1 after those of a target that has fewer than k
    (but one at least where k is not 0). `ridge` is added to the diagonal of the parents' *correlation*
    matrix, so it is relative to their scale. A constant parent carries nothing and is skipped. NaN where x_i
    or y_j is constant, where i is in S_j, and where the parents determine x_i or y_j to within the ridge.

    With A = R_SS + ridge I = V diag(w) V', the rows of F' = diag(w)^-1/2 V' whiten the parents: u_i = F' r_Si
    and v_j = F' r_Sy turn the partial correlation into (r_ij - u_i.v_j) / sqrt((1 - u_i.u_i)(1 - v_j.v_j)).
    The correlations of each different parent with all x_i are made once for all targets.
    """
    r_xy = correlation(state, targets, eps)  # (P, N, T)
    count = parents.shape[1]
    if count == 0:
        return r_xy
    sx = spread(state.m_x, state.mean_x, state.n, eps)
    floor = max(4.0 * ridge, _RESIDUAL_FLOOR)
    eye = torch.eye(count, dtype=torch.bool, device=parents.device)
    real = parents >= 0
    parents = torch.where(real, parents, parents[:, :1])
    some, place = parents.unique(return_inverse=True)  # (U,), (T, k)
    step = max(1, _BLOCK_ELEMENTS // (count * r_xy.shape[1]))
    for pair, s in enumerate(sx):
        # A constant parent gets 0: no correlation with anything.
        inverse = torch.where(s.isnan(), 0.0, 1.0 / s)
        rows = state.gram(pair, some).mul_(inverse[some, None]).div_(s)  # (U, N)
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            given, at, r = parents[part], place[part], r_xy[pair, :, part]  # (t, k), (t, k), (N, t)
            known = real[part]  # the others are as constants
            r_ss = rows[at[:, :, None], given[:, None, :]].nan_to_num(0.0)
            r_ss = torch.where(known[:, :, None] & known[:, None, :], r_ss, 0.0)
            r_ss = torch.where(eye, 1.0, r_ss)
            w, v = torch.linalg.eigh(r_ss)  # (t, k), (t, k, k)
            w = w.clamp(min=0.0) + ridge
            whiten = v * torch.where(w > count * 1e-14, w.rsqrt(), 0.0)[:, None, :]
            whiten = torch.where(known[:, :, None], whiten, 0.0)
            u = whiten.mT @ rows[at]  # (t, k, N)
            r_sy = r[given, torch.arange(len(given), device=given.device)[:, None]].nan_to_num(0.0)
            z = whiten.mT @ r_sy[:, :, None]  # (t, k, 1)
            left_x = 1.0 - u.square().sum(1)  # (t, N)
            left_y = 1.0 - z.square().sum(1)  # (t, 1)
            numerator = r.T - (u * z).sum(1)
            left_x = torch.where(left_x > floor, left_x, torch.nan).scatter_(1, given, torch.nan)
            left_y = torch.where(left_y > floor, left_y, torch.nan)
            r.copy_((numerator / left_x.sqrt() / left_y.sqrt()).T)
    return r_xy.clamp_(-1.0, 1.0)


def aggregate(r: Tensor, how: LayerAgg) -> Tensor:
    """One value per entry from (P, ...): NaN pairs left out, NaN where every pair is NaN.

    `how` is 'mean', or 'max' for the signed value of largest magnitude.
    """
    missing = r.isnan()
    if how == "mean":
        return torch.where(missing, 0.0, r).sum(0) / (~missing).sum(0)  # 0 / 0 is the NaN that is meant
    if how == "max":
        best = torch.where(missing, -1.0, r.abs()).argmax(0, keepdim=True)
        return r.gather(0, best)[0]
    raise ValueError(f"layer_agg must be 'mean' or 'max', got {how!r}")
