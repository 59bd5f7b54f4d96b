"""Element-wise work on the channels (N, C, B), fused into few passes over memory."""

import math
from typing import Any

import torch

from gsnn.functional.sparse import plain_needed

EPS = 1e-5
_LOG2_E = math.log2(math.e)

Dims = tuple[int, ...]


def _standardize_plain(
    z: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, dims: Dims, centre: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    mean = z.mean(dims, keepdim=True) if centre else None
    centred = z if mean is None else z - mean
    scale = (centred.square().mean(dims, keepdim=True) + EPS).rsqrt()
    unit = centred * scale
    result = unit if weight is None or bias is None else unit * weight + bias
    return result, scale.detach(), None if mean is None else mean.detach()


class _Standardize(torch.autograd.Function):
    """Returns (scaled and shifted, unit, scale, mean).

    ``unit`` and ``scale`` are outputs only so that the backward pass, which is written in terms of
    them, can itself be differentiated.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        dims: Dims,
        centre: bool,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        mean = None
        if centre:
            mean = z.mean(dims, keepdim=True)
            z = z - mean
        scale = z.square().mean(dims, keepdim=True).add_(EPS).rsqrt_()
        unit = z.mul_(scale) if centre else z * scale
        result = None if weight is None else (unit * weight).add_(bias)
        ctx.dims, ctx.centre = dims, centre
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(unit, scale, weight)
        if mean is not None:
            ctx.mark_non_differentiable(mean)
        return result, unit, scale, mean

    @staticmethod
    def backward(
        ctx: Any,
        result_grad: torch.Tensor | None,
        unit_grad: torch.Tensor | None,
        scale_grad: torch.Tensor | None,
        _: Any,
    ) -> Any:
        unit, scale, weight = ctx.saved_tensors
        dims, centre = ctx.dims, ctx.centre
        if result_grad is None or unit_grad is not None or scale_grad is not None or torch.is_grad_enabled():
            return _standardize_grads(
                unit, scale, weight, dims, centre, result_grad, unit_grad, scale_grad
            )
        product = result_grad * unit
        product_mean = product.mean(dims, keepdim=True)
        grad_mean = result_grad.mean(dims, keepdim=True)
        count = unit.numel() // grad_mean.numel()
        z_grad = torch.mul(unit, product_mean, out=product).neg_().add_(result_grad)
        if centre:
            z_grad.sub_(grad_mean)
        z_grad.mul_(scale * weight)
        weight_grad = product_mean.sum((1, 2), keepdim=True).mul_(count)
        bias_grad = grad_mean.sum((1, 2), keepdim=True).mul_(count)
        return z_grad, weight_grad, bias_grad, None, None


def _standardize_grads(
    unit: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor | None,
    dims: Dims,
    centre: bool,
    result_grad: torch.Tensor | None,
    unit_grad: torch.Tensor | None,
    scale_grad: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None, None]:
    """The same gradients by differentiable operations, for every output."""
    weight_grad = bias_grad = None
    total = unit_grad
    if result_grad is not None and weight is not None:
        weight_grad = (result_grad * unit).sum((1, 2), keepdim=True)
        bias_grad = result_grad.sum((1, 2), keepdim=True)
        through = result_grad * weight
        total = through if total is None else total + through
    z_grad = None
    if total is not None:
        z_grad = total - unit * (total * unit).mean(dims, keepdim=True)
        if centre:
            z_grad = z_grad - total.mean(dims, keepdim=True)
        z_grad = z_grad * scale
    if scale_grad is not None:
        count = unit.numel() // scale.numel()
        through = -scale_grad * scale.square() * unit / count
        z_grad = through if z_grad is None else z_grad + through
    return z_grad, weight_grad, bias_grad, None, None


def standardize(
    z: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, dims: Dims, centre: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Unit mean square over ``dims``, then scale and shift: ``weight (z - m) / sqrt(v + 1e-5) + bias``.

    Args:
        z: (N, C, B).
        weight, bias: (N, 1, 1) scale and shift of each node, or both None.
        dims: dimensions of z that are averaged over.
        centre: subtract the mean m first; otherwise m = 0 and v is the mean square.

    Returns:
        The result (N, C, B), and without gradient ``1 / sqrt(v + 1e-5)`` and m (None unless centred).
    """
    if plain_needed():
        return _standardize_plain(z, weight, bias, dims, centre)
    result, unit, scale, mean = _Standardize.apply(z, weight, bias, dims, centre)
    return unit if result is None else result, scale.detach(), mean


class _Elu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        # exp2 is vectorised everywhere, exp goes to a vendor library that can be five times slower.
        result = z.clamp(max=0).mul_(_LOG2_E).exp2_().sub_(1)
        torch.maximum(z, result, out=result)  # exp(z) - 1 >= z
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (result,) = ctx.saved_tensors
        # The slope exp(z) of the negative side is the result plus one.
        return grad * (result.clamp(max=0) + 1)


def elu(z: torch.Tensor) -> torch.Tensor:
    """``z`` where positive, else ``exp(z) - 1``; keeps only its result for the backward pass."""
    return torch.nn.functional.elu(z) if plain_needed() else _Elu.apply(z)
