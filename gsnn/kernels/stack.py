"""A stack of residual blocks as one differentiable operation, for their most common form.

``lin_in``, a norm that averages (or none), ELU, an optional constant factor (dropout, node mask) and
``lin_out`` with its residual. One operation keeps a few tensors per block for the backward pass and
spares autograd's bookkeeping between the steps, which is where a small network's time goes. Anything
else, and any block whose captures lie on the way to its output, runs as the separate operations of
:mod:`gsnn.kernels.bucketed` and :mod:`gsnn.kernels.channels`. On the CPU the same is handed to
:mod:`gsnn.kernels.compiled` where that is there; it keeps only the state that enters each block.
"""

from collections.abc import Sequence
from typing import Any

import torch

from gsnn.kernels import compiled as native
from gsnn.kernels.bucketed import Tensor, differentiable_grads
from gsnn.kernels.form import N_WEIGHTS, Form, Weights, split
from gsnn.kernels.operations import _backward, _forward, _Saved
from gsnn.kernels.plan import Plan
from gsnn.kernels.reference import Inside, plain_stack


class _Stack(torch.autograd.Function):
    """The blocks by PyTorch's operations."""

    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        plan: Plan,
        keep: bool,
        inside: Inside | None,
        state: Tensor,
        *flat: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        kept: list[Tensor | None] = [state, *flat]
        statistics: list[Tensor | None] = []
        aside: list[Tensor] = []
        for weights in split(flat):
            state, saved, mean, read = _forward(state, weights, form, plan)
            kept.extend(saved)
            if form.aside:
                aside.append(read)
            statistics += [saved.unit_scale, mean] if form.over_batch else [None, None]
        return _leave(ctx, form, plan, inside, kept, len(flat), state, statistics, aside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> Any:
        form, plan = ctx.form, ctx.plan
        kept = ctx.saved_tensors
        inputs, kept = kept[: ctx.n_flat + 1], kept[ctx.n_flat + 1 :]
        needed = ctx.needs_input_grad[4:]
        blocks, flat_grads = split(inputs[1:]), []
        read_grads = others[2 * len(blocks) :] if form.aside else [None] * len(blocks)
        if grad is None:  # only what was given aside has been used
            grad = inputs[0].new_zeros(plan.n_rows, inputs[0].shape[1])
        if ctx.inside is not None:
            ctx.inside.pass_back(grad, read_grads)
        if torch.is_grad_enabled():
            return None, None, None, None, *_plain_grads(form, plan, inputs, needed, grad, read_grads)
        state_grad: Tensor | None = grad.contiguous()
        n_saved = len(_Saved._fields)
        for k in range(len(blocks) - 1, -1, -1):
            assert state_grad is not None
            state_grad, weight_grads = _backward(
                state_grad,
                blocks[k],
                _Saved(*kept[k * n_saved : (k + 1) * n_saved]),
                form,
                plan,
                k > 0 or needed[0],
                needed[1 + k * N_WEIGHTS : 1 + (k + 1) * N_WEIGHTS],
                read_grads[k],
            )
            flat_grads.append(weight_grads)
        return None, None, None, None, state_grad, *(g for grads in reversed(flat_grads) for g in grads)


class _CompiledStack(torch.autograd.Function):
    """The blocks by :mod:`gsnn.kernels.compiled`, which keeps only the state that enters each block."""

    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        plan: Plan,
        keep: bool,
        inside: Inside | None,
        state: Tensor,
        *flat: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        result, states, statistics, aside = native.forward(state, split(flat), form, plan, keep)
        kept = [state, *flat, *states]
        return _leave(ctx, form, plan, inside, kept, len(flat), result, statistics, aside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> Any:
        form, plan = ctx.form, ctx.plan
        kept = ctx.saved_tensors
        inputs, states = kept[: ctx.n_flat + 1], kept[ctx.n_flat + 1 :]
        needed = ctx.needs_input_grad[4:]
        blocks = split(inputs[1:])
        read_grads = others[2 * len(blocks) :] if form.aside else [None] * len(blocks)
        if grad is None:  # only what was given aside has been used
            grad = torch.zeros_like(inputs[0])
        if ctx.inside is not None:
            ctx.inside.pass_back(grad, read_grads)
        if torch.is_grad_enabled():
            return None, None, None, None, *_plain_grads(form, plan, inputs, needed, grad, read_grads)
        if not native.usable([*states, *(tensor for block in blocks for tensor in block[:-1])]):
            raise RuntimeError("saved tensors must come back as they were saved, contiguous and of one type")
        state_grad, grads = native.backward(grad, states, blocks, form, plan, read_grads, needed)
        return None, None, None, None, state_grad, *(g for of_block in grads for g in of_block)


def _leave(
    ctx: Any,
    form: Form,
    plan: Plan,
    inside: Inside | None,
    kept: list[Tensor | None],
    n_flat: int,
    state: Tensor,
    statistics: list[Tensor | None],
    aside: list[Tensor],
) -> tuple[Tensor | None, ...]:
    """Save what the backward pass needs and give the outputs."""
    ctx.form, ctx.plan, ctx.inside, ctx.n_flat = form, plan, inside, n_flat
    ctx.save_for_backward(*kept)
    ctx.mark_non_differentiable(*(t for t in statistics if t is not None))
    ctx.set_materialize_grads(False)
    return state, *statistics, *aside


def _plain_grads(
    form: Form,
    plan: Plan,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
    read_grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again."""

    def outputs(state: Tensor, *flat: Tensor | None) -> list[Tensor]:
        result, read = plain_stack(state, flat, form, plan)
        return [result, *(z for z, g in zip(read, read_grads, strict=True) if g is not None)]

    given = [grad, *(g for g in read_grads if g is not None)]
    return differentiable_grads(outputs, inputs, needed, given)


def _fits(w: Weights, form: Form, plan: Plan, state: Tensor) -> bool:
    """Whether compiled code stays inside the tensors; PyTorch's operations tell what is wrong with others."""
    N, C = plan.n_nodes, form.channels
    sizes = (len(plan.in_edges) * C, N * C, N, N, len(plan.out_edges) * C, len(plan.row_of_edge), 1)
    factor = w.factor
    return (
        all(tensor is None or tensor.numel() == size for tensor, size in zip(w, sizes, strict=False))
        and (w.scale is None) == (w.shift is None)
        and (factor is None or (factor.dtype is state.dtype and factor.device == state.device))
    )


def run_blocks(
    state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor | None]], list[Tensor], Inside | None]:
    """Each block in turn: ``lin_out(factor * elu(norm(lin_in(state)))) + relu(residual) state``.

    Args:
        state: (R, B) edge state in the plan's rows, contiguous.
        blocks: the tensors of each block.
        form: what all of them compute.
        plan: the network's plan.

    Returns:
        The new state (R, B); for each block the ``1 / sqrt(v + 1e-5)`` and mean of a norm over the
        batch (else None); and,
        for ``form.aside``, for each block the activations (N, C, B) in plan order that ``lin_out`` read, and,
        where there are gradients, what its captures can be read from.
    """
    flat = [tensor for block in blocks for tensor in block]
    # A factor that broadcasts over (N, C, B) is read by its strides, whatever they are.
    every = [state, *(tensor for block in blocks for tensor in block[:-1])]
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in every)
    usable = (
        state.shape[1] > 0
        and state.shape[0] == plan.n_rows
        and native.usable(every)
        and all(_fits(block, form, plan, state) for block in blocks)
    )
    stack = _CompiledStack if usable else _Stack
    inside = Inside(state, flat, form, plan) if form.aside and keep else None
    state, *others = stack.apply(form, plan, keep, inside, state, *flat)
    statistics, aside = others[: 2 * len(blocks)], others[2 * len(blocks) :]
    return state, list(zip(statistics[::2], statistics[1::2], strict=True)), aside, inside
