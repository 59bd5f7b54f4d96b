"""Forward and backward passes of the compiled blocks, over whole stacks and over the parts of one block."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from gsnn.kernels import compiled as native
from gsnn.kernels.compiled import BlockArguments, empty, in_memory, padded
from gsnn.kernels.form import Form, Weights
from gsnn.kernels.interface import Passed
from gsnn.kernels.plan import Plan

Tensor = torch.Tensor
Part = Literal["out", "middle", "in"]
#: What the backward pass of a part leaves out, as bits of ``without`` in blocks.c.
_WITHOUT: dict[Part, int] = {"out": 2 | 4, "middle": 1 | 4, "in": 1 | 2}
#: The fields of ``Weights`` whose gradients each part gives.
_FIELDS: dict[Part, tuple[int, ...]] = {"out": (4, 5), "middle": (2, 3), "in": (0, 1, 6)}


class Inner(NamedTuple):
    """Full gradients inside a stack, of one block.

    Attributes:
        after: (R, W), for the state that the block gives, W the padded B.
        aside, before: (B, N*C) for what ``lin_out`` read and for the result of ``lin_in``.
    """

    after: Tensor
    aside: Tensor
    before: Tensor


def _pointers(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _inputs(state: Tensor, w: Weights, form: Form, plan: Plan, samples: int) -> list[Any]:
    """The fields of :class:`BlockArguments` up to the strides of the factor."""
    strides: tuple[int, ...] = (0, 0, 0)
    if w.factor is not None:
        strides = w.factor.expand(plan.n_nodes, form.channels, samples).stride()
    gate = 0.0 if w.residual is None else max(w.residual.detach().item(), 0.0)
    per_channel = w.scale is not None and w.scale.numel() > plan.n_nodes
    sizes = (state.dtype == torch.float64, form.channels, samples, state.shape[1], native.NORMS[form.dims])
    pointers = _pointers((state, *w[:6], w.factor))
    return [*sizes, form.centre, per_channel, gate, *pointers, *strides]


def forward(state: Tensor, weights: Sequence[Weights], form: Form, plan: Plan, keep: bool) -> Passed:
    """Run the blocks one after the other.

    Args:
        state: (R, B).
        weights: the tensors of each block.
        form: what each computes.
        plan: the network's plan.
        keep: keep the state that enters each block, (R, W) with W the padded B, for :func:`backward`.
    """
    samples = state.shape[1]
    now = padded(state)
    kept, statistics, aside, before, blocks = [], [], [], [], []
    alive = [now]  # what the blocks point to lives until they have run
    spare: list[Tensor] = []
    for w in weights:
        result = spare.pop() if spare else empty(plan, now.shape, now)
        scale = mean = read = z = None
        if form.over_batch and form.dims is not None:
            shape = (plan.n_nodes, 1 if 1 in form.dims else form.channels, 1)
            scale, mean = now.new_empty(shape), now.new_empty(shape)
        if form.inside:
            z, read = (new_capture(plan, form.channels, samples, now) for _ in range(2))
            before.append(z)
            aside.append(read)
        elif form.aside:
            read = empty(plan, (plan.n_nodes, form.channels, samples), now)
            aside.append(read)
        statistics += [scale, mean]
        outputs = _pointers((result, z, read, scale, mean))
        blocks.append(BlockArguments(*_inputs(now, w, form, plan, samples), *outputs))
        if keep:
            kept.append(now)
        elif len(blocks) > 1:  # the state that came in is not ours to write to
            spare.append(now)
        now = result
        alive.append(now)
    native.run(plan, blocks, 0)
    # Not a view where nothing was padded, since autograd refuses to change those in place.
    result = now if now.shape[1] == samples else now[:, :samples].contiguous()
    return Passed(result, kept, statistics, aside, before)


def new_capture(plan: Plan, channels: int, samples: int, like: Tensor) -> Tensor:
    """(B, N*C) uninitialised, samples innermost: (N, C, B) for the passes."""
    return empty(plan, (plan.n_nodes * channels, samples), like, turned=True)


def backward(
    grad: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Weights],
    form: Form,
    plan: Plan,
    read_grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[list[Tensor | None]], list[Inner]]:
    """Gradients of :func:`forward`.

    Args:
        grad: (R, B) for the new state.
        states: what :func:`forward` kept.
        weights, form, plan: as there.
        read_grads: (N, C, B) of each block, further gradients for the activations given aside, or None.
        needed: whether the state, then each tensor of each block, needs its gradient.

    Returns:
        The gradient (R, B) for the state; for each block those for its tensors; None where not needed; and
        for ``form.inside`` those inside each block, else none.
    """
    samples, n_fields = grad.shape[1], len(weights[0])
    grad = in_memory(grad)
    read_grads = [None if read_grad is None else in_memory(read_grad) for read_grad in read_grads]
    now = padded(grad.contiguous())
    # Summed by place, not by thread, so that the number of threads does not matter.
    dots = torch.empty(len(weights), plan.n_nodes + 1, dtype=torch.float64)
    grads = _weight_grads(weights, [needed[1 + k * n_fields :] for k in range(len(weights))], plan)
    blocks: list[BlockArguments] = []
    inner: list[Inner] = []
    alive: list[Tensor] = []  # as in the forward pass
    spare: list[Tensor] = []
    for k in range(len(weights) - 1, -1, -1):
        w, residual_needed = weights[k], needed[1 + k * n_fields + 6]
        through = None
        if k > 0 or needed[0]:
            through = spare.pop() if spare else empty(plan, now.shape, now)
        alive.append(now)
        captured: tuple[Tensor | None, Tensor | None] = (None, None)
        if form.inside:
            before, aside = (new_capture(plan, form.channels, samples, now) for _ in range(2))
            captured = before, aside
            inner.append(Inner(now, aside, before))
        read_grad = read_grads[k]
        strides = (0, 0, 0) if read_grad is None else read_grad.stride()
        inputs = _inputs(states[k], w, form, plan, samples)
        given = (*(None,) * 5, 0, *_pointers((now, read_grad)), *strides)
        written = _pointers((*captured, through, *grads[k][:6], dots[k] if residual_needed else None))
        blocks.append(BlockArguments(*inputs, *given, *written))
        if through is not None:
            if k < len(weights) - 1 and not form.inside:  # what came from outside is not ours to write to
                spare.append(now)
            now = through
    native.run(plan, blocks, 1)
    gates = [block.gate for block in reversed(blocks)]  # 0 where the residual weight lets nothing through
    sums = dots.sum(1).to(grad.dtype).unbind()
    for k, (total, gate, of_block) in enumerate(zip(sums, gates, grads, strict=True)):
        if needed[1 + k * n_fields + 6]:
            of_block[6] = total if gate else torch.zeros_like(total)
    return now[:, :samples].contiguous() if needed[0] else None, grads, inner[::-1]


def _weight_grads(
    weights: Sequence[Weights], needed: Sequence[Sequence[bool]], plan: Plan
) -> list[list[Tensor | None]]:
    """Uninitialised, by the fields of ``Weights``, where needed: parts of one piece of memory."""
    wanted = [
        (k, field, tensor)
        for k, (w, want) in enumerate(zip(weights, needed, strict=True))
        for field, tensor in enumerate(w[:6])
        # The passes write scale and shift together.
        if tensor is not None and (want[field] or (field in (2, 3) and (want[2] or want[3])))
    ]
    grads: list[list[Tensor | None]] = [[None] * len(w) for w in weights]
    if wanted:
        # Each begins with a line of the cache: rows of channels across two lines take longer.
        line = native.LINE // wanted[0][2].element_size()
        sizes = [size for _, _, tensor in wanted for size in (tensor.numel(), -tensor.numel() % line)]
        parts = empty(plan, (sum(sizes),), wanted[0][2]).split(sizes)
        for (k, field, tensor), part in zip(wanted, parts[::2], strict=True):
            grads[k][field] = part if tensor.dim() == 1 else part.view(tensor.shape)
    return grads


def backward_part(
    part: Part,
    given: Tensor | None,
    after: Tensor | None,
    state: Tensor,
    w: Weights,
    form: Form,
    plan: Plan,
    samples: int,
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The backward pass of one part of one block.

    Args:
        part: ``out`` takes the gradient for the block's state to that for what ``lin_out`` reads, ``middle``
            that to the one for the result of ``lin_in``, ``in`` that to the one for the state that came in.
        given: (B, N*C), the gradient that ``middle`` and ``in`` begin with; None for zeros.
        after: (R, W), the gradient for the block's state, for ``out`` and, because of the residual, ``in``.
        state: (R, W), the state that came in.
        w, form, plan, samples: of the block.
        needed: which of the fields of ``Weights`` need their gradients.

    Returns:
        (B, N*C), of ``in`` (R, W), and the gradients for the fields of ``Weights``, None where not needed.
    """
    wanted = [need and field in _FIELDS[part] for field, need in enumerate(needed)]
    (grads,) = _weight_grads([w], [wanted], plan)
    nodes = None
    if given is not None:
        nodes = in_memory(given).t().unflatten(0, (plan.n_nodes, form.channels))
    if after is None:
        after = torch.zeros_like(state)
    dots = torch.empty(plan.n_nodes + 1, dtype=torch.float64) if wanted[6] else None
    result = (
        empty(plan, state.shape, state) if part == "in" else new_capture(plan, form.channels, samples, state)
    )
    block = BlockArguments(
        *_inputs(state, w, form, plan, samples),
        *(None,) * 5,
        _WITHOUT[part],
        *_pointers((after, nodes)),
        *((0, 0, 0) if nodes is None else nodes.stride()),
        *_pointers((result if part == "middle" else None, result if part == "out" else None)),
        *_pointers((result if part == "in" else None, *grads[:6], dots)),
    )
    native.run(plan, [block], 1)
    if dots is not None:
        total = dots.sum().to(state.dtype)
        grads[6] = total if block.gate else torch.zeros_like(total)
    return result, grads
