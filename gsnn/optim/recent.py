"""The newest samples of a training loop, and what they say about pairs of nodes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnn.stats.regression import PooledFit, centred, pooled_least_squares

Array = NDArray[np.float64]


class RecentSamples:
    """The newest whole batches with at most `size` samples together, one batch at least.

    A batch is (N, slots, B): x of every (aggregator, pair), aggregator by aggregator, then y of the P pairs.
    Batches are never changed in place, so that a list of them is a snapshot.
    """

    def __init__(self, size: int, pairs: int) -> None:
        self.size = size
        self.pairs = pairs
        self.batches: list[Tensor] = []

    def push(self, batch: Tensor) -> None:
        """Add a batch, and drop the oldest ones that are not needed to fill the window."""
        batches = [*self.batches, batch]
        surplus = sum(b.shape[-1] for b in batches) - self.size
        while surplus > 0 and len(batches) > 1:
            surplus -= batches.pop(0).shape[-1]
        self.batches = batches

    def _magnitudes(self, eps: float, scale: bool) -> tuple[Array, Array, NDArray[np.int64]]:
        """x (slots - P, n, N), y (P, n, N) and groups (n,): each sample once, less the mean of its group.

        A group is a batch, so that what training moves from batch to batch does not count; batches of one
        sample are one group together. A sample that went through the same weights again, as when a loop
        repeats a batch, is left out: it says nothing new. Constant magnitudes are 0; `scale` gives the others
        unit variance.
        """
        sizes = [batch.shape[-1] for batch in self.batches]
        label = [-1 if size == 1 else k for k, size in enumerate(sizes)]
        groups = np.repeat(np.array(label, dtype=np.int64), sizes)
        seen = torch.cat([batch.cpu() for batch in self.batches], -1)
        seen = seen.to(torch.promote_types(seen.dtype, torch.float32))  # numpy knows no bfloat16
        rows = np.ascontiguousarray(seen.permute(2, 0, 1).numpy()).reshape(seen.shape[-1], -1)
        # As bytes, which `unique` can compare at once; its axis=0 would make one field of each column.
        _, first = np.unique(rows.view(np.dtype((np.void, rows.strides[0]))), return_index=True)
        first.sort()
        groups = groups[first]
        raw = seen[..., torch.from_numpy(first)].double().permute(1, 2, 0).contiguous().numpy()
        values = centred(raw, groups)
        variance = np.square(values).mean(1, keepdims=True)
        moving = variance > (8.0 * eps) ** 2 * np.square(raw).mean(1, keepdims=True)
        spread = np.sqrt(np.where(moving, variance, np.inf)) if scale else np.where(moving, 1.0, np.inf)
        values /= spread
        return values[: -self.pairs], values[-self.pairs :], groups

    def statistics(self, eps: float, scale: bool) -> tuple[Array, PooledFit]:
        """What the samples say about pairs.

        Returns:
            corr(x_i^p, y_j^(p+1)), (P, N, N), x by the first aggregator, NaN where either is constant; and
            least squares of y on x, pooled over slots, each standardized by itself, or only centred without
            `scale`.
        """
        x, y, groups = self._magnitudes(eps, scale)
        return _correlations(x[: self.pairs], y), pooled_least_squares(x, y, groups)


def _correlations(x: Array, y: Array) -> Array:
    """(P, N, N) of centred x (P, n, N) with y (P, n, N)."""
    size_x, size_y = (np.sqrt(np.square(part).sum(1)) for part in (x, y))
    found = x.transpose(0, 2, 1) @ y
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        found /= size_x[:, :, None]
        found /= size_y[:, None, :]
    return found.clip(-1.0, 1.0, out=found)
