"""Samples of paired features, kept as they are for as long as they are smaller than their moments.

Correlations of N features with N others, in P pairs, need either the co-moments, 16 P N^2 bytes, or the n
samples themselves, 16 P n N bytes. A big network is looked at through fewer samples than it has nodes, a
small one through more: `Collector` keeps whichever is smaller. Both kinds answer the same questions
(`Statistics`), a few columns at a time, so that nothing of size N x N need exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from gsnn.stats.moments import CoMoments, add_samples, merge

_ROWS_PER_PRODUCT = 256  # samples gathered before one matrix product, so that small batches cost no more


@dataclass
class Samples:
    """n samples of P pairs of N features (x_i) with N features (y_j), in float64.

    Attributes:
        shift_x, shift_y: (P, N) the mean of some of the samples.
        x, y: blocks (P, b, N), in order, of distances from it. So a constant is exactly 0, and sums over
            samples lose nothing where the mean is large against the spread.

    `n`, `mean_x`, `mean_y`, `m_x`, `m_y`, `cross` and `gram` are those of `CoMoments`.
    """

    shift_x: Tensor
    shift_y: Tensor
    x: list[Tensor]
    y: list[Tensor]

    @property
    def n(self) -> int:
        """Samples seen."""
        return sum(block.shape[1] for block in self.x)

    @cached_property
    def _off_x(self) -> Tensor:
        return torch.stack([block.sum(1) for block in self.x]).sum(0) / self.n  # (P, N)

    @cached_property
    def _off_y(self) -> Tensor:
        return torch.stack([block.sum(1) for block in self.y]).sum(0) / self.n

    @property
    def mean_x(self) -> Tensor:
        """(P, N) means."""
        return self.shift_x + self._off_x

    @property
    def mean_y(self) -> Tensor:
        """(P, N) means."""
        return self.shift_y + self._off_y

    @cached_property
    def m_x(self) -> Tensor:
        """(P, N) sums of squared deviations from the mean."""
        return _squares(self.x, self._off_x)

    @cached_property
    def m_y(self) -> Tensor:
        """(P, N) sums of squared deviations from the mean."""
        return _squares(self.y, self._off_y)

    def cross(self, targets: Tensor) -> Tensor:
        """sum over samples of (x_i - mean)(y_j - mean) for j in `targets` (T,): (P, N, T)."""
        pairs, features = self.shift_x.shape
        # Made as (P, T, N): with few targets, its product is up to twice as fast as the other one.
        out = self.shift_x.new_zeros(pairs, len(targets), features)
        for x, y in zip(self.x, self.y, strict=True):
            out.baddbmm_((y[:, :, targets] - self._off_y[:, None, targets]).mT, x)
        return out.mT

    def gram(self, pair: int, rows: Tensor) -> Tensor:
        """The same of x_s, s in `rows` (R,), with every x_i of one pair: (R, N)."""
        out = self.shift_x.new_zeros(len(rows), self.shift_x.shape[1])
        for block in self.x:
            x = block[pair]
            out.addmm_((x[:, rows] - self._off_x[pair, rows]).T, x)
        return out

    def shifted_to(self, shift_x: Tensor, shift_y: Tensor) -> Samples:
        """The same samples as distances from other numbers; this one is overwritten and must be dropped."""
        for blocks, by in ((self.x, self.shift_x - shift_x), (self.y, self.shift_y - shift_y)):
            for block in blocks:
                block += by[:, None]
        return Samples(shift_x, shift_y, self.x, self.y)


Statistics: TypeAlias = CoMoments | Samples


def _squares(blocks: list[Tensor], mean: Tensor) -> Tensor:
    """Sums of squares (P, N) of blocks (P, b, N) less the mean."""
    return torch.stack([(block - mean[:, None]).square_().sum(1) for block in blocks]).sum(0)


def as_moments(state: Statistics) -> CoMoments:
    """The moments of `state`, which are itself if that is what it holds."""
    if isinstance(state, CoMoments):
        return state
    pairs, features = state.shift_x.shape
    out = CoMoments.empty(pairs, features, state.shift_x.device)
    for x, y in zip(state.x, state.y, strict=True):
        add_samples(out, x, y)
    out.mean_x += state.shift_x
    out.mean_y += state.shift_y
    return out


def extended(state: Statistics | None, x: Tensor, y: Tensor) -> Statistics:
    """`state` (None: nothing yet) and more samples, x and y (P, b, N) in float64, in the smaller form.

    All three may be overwritten and must be dropped; b is at least 1.
    """
    pairs, rows, features = x.shape
    if isinstance(state, CoMoments) or (0 if state is None else state.n) + rows >= features:
        moments = CoMoments.empty(pairs, features, x.device) if state is None else as_moments(state)
        add_samples(moments, x, y)
        return moments
    if state is None:
        shift_x, shift_y = (values[:, 0] + (values - values[:, :1]).mean(1) for values in (x, y))
        state = Samples(shift_x, shift_y, [], [])
    x, y = x.sub_(state.shift_x[:, None]), y.sub_(state.shift_y[:, None])
    return Samples(state.shift_x, state.shift_y, [*state.x, x], [*state.y, y])


def joined(first: Statistics, second: Statistics) -> Statistics:
    """Both together, in the smaller form. They may be overwritten and must be dropped."""
    if isinstance(first, CoMoments) and isinstance(second, CoMoments):
        return merge([first, second])
    if isinstance(second, CoMoments):
        first, second = second, first
    assert isinstance(second, Samples)
    for x, y in zip(second.x, second.y, strict=True):
        first = extended(first, x + second.shift_x[:, None], y + second.shift_y[:, None])
    return first


class Collector:
    """Takes batches of paired features and gives their `Statistics`.

    Memory: 16 P N min(n, N) bytes, and as much again for a moment when the N-th sample comes.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._rows = 0
        self._state: Statistics | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """x and y (P, B, N), float64."""
        if x.shape[1] == 0:
            return
        self._waiting.append((x, y))
        self._rows += x.shape[1]
        if self._rows >= _ROWS_PER_PRODUCT:
            self._flush()

    def result(self) -> Statistics | None:
        """What was collected, None without a sample; the collector is empty afterwards."""
        if self._waiting:
            self._flush()
        state, self._state = self._state, None
        return state

    def _flush(self) -> None:
        x, y = (torch.cat(parts, 1) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._rows = 0
        self._state = extended(self._state, x, y)
