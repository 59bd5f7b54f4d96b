"""Shifting and scaling magnitudes by running moments, with floors relative to their size."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by B) over the last dimension of (..., B)."""
    mean = values.mean(-1)
    return mean, (values - mean[..., None]).square().mean(-1)  # torch.var_mean is ten times slower here


def running_moments(
    mean: Tensor, var: Tensor, new_mean: Tensor, new_var: Tensor, weight: float, between: bool
) -> tuple[Tensor, Tensor]:
    """Exponential averages of batch means and variances, the new batch with `weight`.

    The variance is that within batches, so that a feature which is constant in every batch stays constant
    while training moves it. `between` adds what batch means vary, for batches that have no spread.
    """
    shift = new_mean - mean
    if between:
        new_var = new_var + (1 - weight) * shift.square()
    return mean + weight * shift, var + weight * (new_var - var)


def standardized(values: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """(values - mean) / sqrt(var) for values (..., B), 0 where they are constant.

    Constant means: a standard deviation of at most 8 `eps` times the root mean square, `eps` being the
    machine precision of what the values were computed from. The floor is relative, so units do not matter.
    """
    moving = var > (8.0 * eps) ** 2 * (var + mean.square())
    factor = torch.where(moving, var.rsqrt(), 0.0)
    return (values - mean[..., None]) * factor[..., None]
