"""Element-wise work on the channels (N, C, B), in few passes over memory."""

import math
from typing import Any

import torch

from gsnn.kernels.bucketed import Tensor, differentiable_grads, plain_needed

EPS = 1e-5  # under the root of the norms that centre
_RMS_EPS = 1e-6  # and of the one that does not, as published
_LOG2_E = math.log2(math.e)

Dims = tuple[int, ...]


def unit_scale(z: Tensor, dims: Dims, centre: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """``(z - m) s`` with s = 1 / sqrt(v + eps); also s and m. Without autograd."""
    mean = None
    if centre:
        mean = z.mean(dims, keepdim=True)
        z = z - mean
    scale = z.square().mean(dims, keepdim=True).add_(EPS if centre else _RMS_EPS).rsqrt_()
    return (z.mul_(scale) if centre else z * scale), scale, mean


def unit_scale_grads(
    grad: Tensor, unit: Tensor, scale: Tensor, weight: Tensor | None, dims: Dims, centre: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``weight * unit + bias`` for (z, weight, bias)."""
    count = math.prod(unit.shape[dim] for dim in dims) or 1
    product = grad * unit
    product_sum = product.sum(dims, keepdim=True)
    z_grad = torch.sub(grad, torch.mul(unit, product_sum / count, out=product), out=product)
    if centre or weight is not None:
        grad_sum = grad.sum(dims, keepdim=True)
    if centre:
        z_grad.sub_(grad_sum / count)
    if weight is None:
        return z_grad.mul_(scale), None, None
    return (
        z_grad.mul_(scale * weight),
        product_sum.sum((1, 2), keepdim=True),
        grad_sum.sum((1, 2), keepdim=True),
    )


def plain_unit(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, dims: Dims, centre: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`standardize` by differentiable operations."""
    mean = z.mean(dims, keepdim=True) if centre else None
    centred = z if mean is None else z - mean
    scale = (centred.square().mean(dims, keepdim=True) + (EPS if centre else _RMS_EPS)).rsqrt()
    unit = centred * scale
    result = unit if weight is None or bias is None else unit * weight + bias
    return result, scale.detach(), None if mean is None else mean.detach()


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor | None, bias: Tensor | None, dims: Dims, centre: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        unit, scale, mean = unit_scale(z, dims, centre)
        ctx.dims, ctx.centre = dims, centre
        # z is kept for a second derivative only; where captures are on it is alive anyway.
        ctx.save_for_backward(z, unit, scale, weight, bias)
        ctx.mark_non_differentiable(*(t for t in (scale, mean) if t is not None))
        return (unit.clone() if weight is None or bias is None else (unit * weight).add_(bias)), scale, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        z, unit, scale, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = differentiable_grads(
                lambda z, w, b: plain_unit(z, w, b, ctx.dims, ctx.centre)[0],
                (z, weight, bias),
                ctx.needs_input_grad[:3],
                grad,
            )
            return *grads, None, None
        return *unit_scale_grads(grad, unit, scale, weight, ctx.dims, ctx.centre), None, None


def standardize(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, dims: Dims, centre: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Unit mean square over ``dims``, then scale and shift: ``weight (z - m) / sqrt(v + 1e-5) + bias``.

    Args:
        z: (N, C, B).
        weight, bias: (N, 1, 1) scale and shift of each node, or both None.
        dims: dimensions of z that are averaged over.
        centre: subtract the mean m first; otherwise m = 0 and v is the mean square.

    Returns:
        The result (N, C, B), and without gradient ``1 / sqrt(v + 1e-5)`` and m (None unless centred).
    """
    return (plain_unit if plain_needed() else _Standardize.apply)(z, weight, bias, dims, centre)


def elu_values(z: Tensor) -> Tensor:
    """ELU without autograd, for any z."""
    # exp2 is vectorised everywhere; exp goes to a vendor library that can be five times slower.
    result = z.clamp(max=0).mul_(_LOG2_E).exp2_().sub_(1)
    return torch.maximum(z, result, out=result)  # exp(z) - 1 >= z


def elu_grad_(grad: Tensor, result: Tensor) -> Tensor:
    """Turn the gradient for the result of :func:`elu_values` into that for z, in place."""
    return torch.ops.aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, True, result, grad_input=grad)


class _Elu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        result = elu_values(z)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (result,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # the slope exp(z) of the negative side is the result plus one
            return grad * (result.clamp(max=0) + 1)
        return elu_grad_(grad.clone(), result)


def elu(z: Tensor) -> Tensor:
    """``z`` where positive, else ``exp(z) - 1``; keeps only its result for the backward pass."""
    return torch.nn.functional.elu(z) if plain_needed() else _Elu.apply(z)
