"""A stack of residual blocks as one differentiable operation, for their most common form.

``lin_in``, a norm that averages (or none), ELU, an optional constant factor (dropout, node mask) and
``lin_out`` with its residual. One operation keeps a few tensors per block for the backward pass and
spares autograd's bookkeeping between the steps, which is where a small network's time goes. Which kernel
computes it :mod:`gsnn.kernels.registry` says. Where captures lie on the way to the output the compiled
kernel runs the stack as a chain (``gsnn.kernels._chain``). Anything else, and such captures with any other
kernel, runs as the separate operations of :mod:`gsnn.kernels.bucketed` and :mod:`gsnn.kernels.channels`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from gsnn.kernels._chain import run_chain
from gsnn.kernels.bucketed import Tensor, differentiable_grads
from gsnn.kernels.form import Form, Weights, split
from gsnn.kernels.interface import BlockKernel
from gsnn.kernels.plan import Plan
from gsnn.kernels.reference import Inside, plain_stack
from gsnn.kernels.registry import pick


class Stack(torch.autograd.Function):
    """The blocks by a kernel, and twice differentiable by the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: BlockKernel,
        form: Form,
        plan: Plan,
        keep: bool,
        inside: Inside | None,
        state: Tensor,
        *flat: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """The new state, two statistics of each block, and what is given aside."""
        result, saved, statistics, aside, _ = kernel.forward(state, split(flat), form, plan, keep)
        ctx.kernel, ctx.form, ctx.plan, ctx.inside, ctx.n_flat = kernel, form, plan, inside, len(flat)
        ctx.save_for_backward(state, *flat, *saved)
        ctx.mark_non_differentiable(*(t for t in statistics if t is not None))
        ctx.set_materialize_grads(False)
        return result, *statistics, *aside

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> Any:
        """The gradients of the state and of the weights."""
        form, plan = ctx.form, ctx.plan
        kept = ctx.saved_tensors
        inputs, saved = kept[: ctx.n_flat + 1], kept[ctx.n_flat + 1 :]
        needed = ctx.needs_input_grad[5:]
        blocks = split(inputs[1:])
        read_grads = others[2 * len(blocks) :] if form.aside else [None] * len(blocks)
        if grad is None:  # only what was given aside has been used
            grad = torch.zeros_like(inputs[0])
        if ctx.inside is not None:
            ctx.inside.pass_back(grad, read_grads)
        nothing = (None,) * 5
        if torch.is_grad_enabled():
            return *nothing, *_plain_grads(form, plan, inputs, needed, grad, read_grads)
        state_grad, grads = ctx.kernel.backward(
            grad, inputs[0], blocks, saved, form, plan, read_grads, needed
        )
        return *nothing, state_grad, *(g for of_block in grads for g in of_block)


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


def run_blocks(
    state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor | None]], list[Tensor], Inside | None]:
    """Each block in turn: ``lin_out(factor * elu(norm(lin_in(state)))) + relu(residual) state``.

    For ``form.inside`` see :func:`run_with_captures`.

    Args:
        state: (R, B) edge state in the plan's rows, contiguous.
        blocks: the tensors of each block.
        form: what all of them compute.
        plan: the network's plan.

    Returns:
        The new state (R, B); for each block the ``1 / sqrt(v + 1e-5)`` and mean of a norm over the
        batch (else None); and,
        for ``form.aside``, for each block the activations (N, C, B) that ``lin_out`` read, and,
        where there are gradients, what its captures can be read from.
    """
    flat = [tensor for block in blocks for tensor in block]
    keep = _has_gradients(state, blocks)
    kernel = pick(state, blocks, form, plan)
    inside = Inside(state, flat, form, plan) if form.aside and keep else None
    state, *others = Stack.apply(kernel, form, plan, keep, inside, state, *flat)
    statistics, aside = others[: 2 * len(blocks)], others[2 * len(blocks) :]
    return state, list(zip(statistics[::2], statistics[1::2], strict=True)), aside, inside


def run_with_captures(
    state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor | None]], Sequence[Tensor], Sequence[Tensor]]:
    """The same with the captures on the way to the result, by a kernel that does not refuse ``form.inside``.

    Returns:
        The new state (R, B); the statistics; and of each block the result of ``lin_in`` and what ``lin_out``
        read, both (B, N*C), nodes in the given order.

    Raises:
        RuntimeError: the kernel refuses.
    """
    keep = _has_gradients(state, blocks)
    kernel = pick(state, blocks, form, plan)
    refused = kernel.refuses(state, blocks, form, plan)
    if refused is not None:
        raise RuntimeError(f"the blocks' tensors cannot be run with captures: {refused}")
    with torch.no_grad():
        passed = kernel.forward(state, blocks, form, plan, keep)
    statistics = list(zip(passed.statistics[::2], passed.statistics[1::2], strict=True))
    if not keep:
        return passed.state, statistics, passed.before, passed.aside
    result, before, aside = run_chain(passed, state, blocks, form, plan)
    return result, statistics, before, aside


def _has_gradients(state: Tensor, blocks: Sequence[Weights]) -> bool:
    if not torch.is_grad_enabled():
        return False
    every = [state, *(tensor for block in blocks for tensor in block[:-1])]
    return any(tensor is not None and tensor.requires_grad for tensor in every)
