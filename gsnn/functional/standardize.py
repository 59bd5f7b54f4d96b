"""Shifting and scaling magnitudes by running moments, with floors relative to their size."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by B) over the last dimension of (..., B)."""
    mean = values.mean(-1)
    return mean, (values - mean[..., None]).square().mean(-1)  # torch.var_mean is ten times slower here


def mixed_moments(
    mean: Tensor, var: Tensor, new_mean: Tensor, new_var: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture that is `weight` new and 1 - `weight` old."""
    shift = new_mean - mean
    return mean + weight * shift, (1 - weight) * (var + weight * shift.square()) + weight * new_var


def standardized(values: Tensor, mean: Tensor, var: Tensor, eps: float, scale: bool = True) -> Tensor:
    """(values - mean) / sqrt(var), 0 where constant, for values (..., B); only shifted unless `scale`.

    Constant means: a standard deviation of at most 8 `eps` times the root mean square, `eps` being the
    machine precision of what the values were computed from. The floor is relative, so units do not matter.
    """
    moving = var > (8.0 * eps) ** 2 * (var + mean.square())
    factor = torch.where(moving, var.rsqrt() if scale else 1.0, 0.0)
    return (values - mean[..., None]) * factor[..., None]
