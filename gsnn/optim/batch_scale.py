"""Losses whose per-sample gradients do not depend on how the data was cut into batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Crit = Callable[[Tensor, Tensor], Tensor]


class BatchScale:
    """The loss of a batch, and the factor that makes its per-sample gradients independent of B."""

    def __init__(self, crit: Crit | None) -> None:
        self.crit = crit
        self.is_mean: bool | None = None  # unknown until a batch has a gradient to look at

    def __call__(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """(loss, samples to count or None for all, factor)."""
        if self.crit is None:
            if target.shape != prediction.shape:
                raise ValueError(
                    f"y must have the shape of the model's output {tuple(prediction.shape)}, "
                    f"got {tuple(target.shape)}"
                )
            measured = ~target.isnan()
            residual = torch.where(measured, prediction - target, 0.0)
            loss = residual.square().sum() / prediction.shape[1]
            counted = measured.any(1)
            return loss, None if bool(counted.all()) else counted, 1.0
        loss = self.crit(prediction, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"crit must return a scalar tensor, got {got}")
        if self.is_mean is None and loss.requires_grad:
            self.is_mean = self._averages(self.crit, prediction.detach(), target)
        return loss.reshape(()), None, float(len(prediction)) if self.is_mean else 1.0

    @staticmethod
    def _averages(crit: Crit, prediction: Tensor, target: Tensor) -> bool | None:
        """Whether each sample's gradient halves when the batch is given twice; None if there is none."""

        def gradient(times: int) -> Tensor:
            leaf = torch.cat([prediction] * times).requires_grad_()
            (grad,) = torch.autograd.grad(crit(leaf, torch.cat([target] * times)).reshape(()), leaf)
            return grad[: len(prediction)].double()

        once, twice = gradient(1), gradient(2)
        size = once.abs().max()
        if not bool(size > 0) or not bool(once.isfinite().all()):
            return None
        ratio = float((once / size * (twice / size)).sum() / (once / size).square().sum())
        for is_mean, expected in ((True, 0.5), (False, 1.0)):
            if abs(ratio - expected) < 0.05:
                return is_mean
        raise ValueError(
            "crit must be a mean or a sum over samples, got a loss whose gradient is multiplied by "
            f"{ratio:.3g} when every sample is given twice"
        )


def unpack(batch: Any, device: torch.device, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """The (x, y) of a batch on `device`, floating point ones in the model's dtype."""
    parts = tuple(batch)[:2] if isinstance(batch, (tuple, list)) else ()
    if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts):
        got = f"a {type(batch).__name__}"
        if isinstance(batch, (tuple, list)):
            got += f" of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
        raise TypeError(f"dataloader must yield (x, y) pairs of tensors, got {got}")
    x, y = (part.to(device, dtype if part.is_floating_point() else None) for part in parts)
    return x, y


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's tensors are; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: torch.nn.Module) -> torch.dtype | None:
    """The type of the model's first floating point parameter; None if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
