"""A stack of blocks whose captures lie on the way to its output.

One forward pass of a kernel computes everything. To autograd the stack is then a chain of nodes: *between*
two blocks (``lin_out``, residual, the next block's ``lin_in``) and *inside* each (norm, nonlinearity,
factor). What passes from one to the next are the captures, so whoever reads them, adds to their gradients, or
changes these by a hook sees and does what he would with separate operations.

The backward pass is also computed at once, by the first node that it reaches. It hands out the gradients at
the captures one by one, and each node that gets exactly what was handed to it passes on what is known
already. One that gets something else, because something was added on the way, computes its own part, as do
those after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gsnn.kernels._passes import Inner, Part, backward, backward_part
from gsnn.kernels.bucketed import differentiable_grads, plain_in, plain_out
from gsnn.kernels.form import N_WEIGHTS, Form, Weights, split
from gsnn.kernels.interface import Passed
from gsnn.kernels.plan import Plan
from gsnn.kernels.reference import middle

# Positions of the fields of `Weights` among the arguments of `_Between` and `_Inside`.
_OF_OUT, _OF_IN, _OF_MIDDLE = (4, 5, 6), (0, 1, 6), (2, 3)


class _Known(NamedTuple):
    """Gradients that one backward pass has found for all blocks."""

    state: Tensor | None
    weights: list[list[Tensor | None]]
    inner: list[Inner]
    versions: list[tuple[int, ...]]
    complete: bool  # whether the gradients of all weights that have any are among them


class _Pass:
    """What the nodes of one forward pass share. It holds no tensor of the graph, which would be a cycle."""

    def __init__(self, form: Form, plan: Plan, samples: int, needed: Sequence[bool]) -> None:
        self.form, self.plan, self.samples, self.needed = form, plan, samples, needed
        self.known: _Known | None = None

    def find(self, grad: Tensor, saved: Sequence[Tensor | None], weights_too: bool) -> _Known:
        """Everything that follows from ``grad`` (R, B) for the stack's result."""
        n_blocks = (len(self.needed) - 1) // N_WEIGHTS
        states, blocks = saved[:n_blocks], split(saved[n_blocks:])
        needed = [need and (weights_too or k == 0) for k, need in enumerate(self.needed)]
        found = backward(grad, states, blocks, self.form, self.plan, [None] * n_blocks, needed)  # type: ignore[arg-type]
        versions: list[tuple[int, ...]] = [(a._version, b._version, c._version) for a, b, c in found[2]]
        self.known = _Known(*found, versions, weights_too)
        return self.known

    def part(
        self, part: Part, given: Tensor | None, after: Tensor | None, state: Tensor, w: Weights, needed: Any
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        return backward_part(part, given, after, state, w, self.form, self.plan, self.samples, needed)

    def nodes(self, captured: Tensor) -> Tensor:
        """(B, N*C) -> (N, C, B) in plan order."""
        return self.plan.to_nodes(captured.t().unflatten(0, (-1, self.form.channels)))

    def captured(self, nodes: Tensor) -> Tensor:
        """(N, C, B) in plan order -> (B, N*C)."""
        return self.plan.from_nodes(nodes).flatten(0, 1).t()


def _is(grad: Tensor | None, known: _Known, k: int, field: int) -> bool:
    """Whether this gradient is the very one of ``Inner`` that was handed out, and unchanged."""
    return grad is not None and grad is known.inner[k][field] and grad._version == known.versions[k][field]


class _Between(torch.autograd.Function):
    """From what block ``k`` reads to the next block's ``lin_in``: (B, N*C), (R, W) -> (R, W), (B, N*C).

    Before the first block it begins with the state (R, B), after the last it ends with it. Where no graph is
    made, the gradient for the state that goes around block k is the one for the state after it: the
    part ``in`` multiplies it by the residual's weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shared: _Pass,
        k: int,
        made: tuple[Tensor, ...],
        saved: Sequence[Tensor | None],
        read: Tensor | None,
        state: Tensor,
        *weights: Tensor | None,
    ) -> Any:
        ctx.shared, ctx.k = shared, k
        ctx.save_for_backward(read, state, *weights, *saved)
        ctx.set_materialize_grads(False)
        return made if len(made) > 1 else made[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        shared: _Pass = ctx.shared
        k, nothing, needed = ctx.k, (None,) * 4, ctx.needs_input_grad[4:]
        of_out, of_in = needed[2:5], needed[5:8]
        if all(grad is None for grad in grads):
            return *nothing, *(None,) * 8
        if torch.is_grad_enabled():
            return *nothing, *_between_plainly(ctx, shared, needed, grads)
        n_blocks = (len(shared.needed) - 1) // N_WEIGHTS
        if k == n_blocks:
            _, _, *kept = ctx.saved_tensors
            learnt = [shared.needed[1 + (k - 1) * N_WEIGHTS + field] for field in _OF_OUT[:2]]
            made = shared.find(grads[0], kept[6:], any(of_out[:2]) or not any(learnt))  # type: ignore[arg-type]
            inner, found = made.inner[k - 1], made.weights[k - 1]
            return *nothing, inner.aside, inner.after, found[4], found[5], None, None, None, None
        if (
            (known := shared.known) is not None
            and _is(grads[0], known, k, 0)
            and _is(grads[1], known, k, 2)
            and (known.complete or not any(needed[2:]))
        ):
            found = known.weights[k]
            if k == 0:
                shared.known = None
                return *nothing, None, known.state, None, None, None, found[0], found[1], found[6]
            inner, before = known.inner[k - 1], known.weights[k - 1]
            return (
                *(*nothing, inner.aside, inner.after, before[4], before[5], None),
                *(found[0], found[1], found[6]),
            )
        _, _, *kept = ctx.saved_tensors
        states, blocks = kept[6:8], split(kept[8:])
        wanted = [False] * N_WEIGHTS
        for field, need in zip(_OF_IN, of_in, strict=True):
            wanted[field] = need
        after, found = shared.part("in", grads[1], grads[0], states[1], blocks[1], wanted)
        assert after is not None
        if k == 0:
            state = after[:, : shared.samples].contiguous() if needed[1] else None
            return *nothing, None, state, None, None, None, found[0], found[1], found[6]
        wanted = [field in (4, 5) and of_out[field - 4] for field in range(N_WEIGHTS)]
        read, before = shared.part("out", None, after, states[0], blocks[0], wanted)
        return *nothing, read, after, before[4], before[5], None, found[0], found[1], found[6]


def _between_plainly(
    ctx: Any, shared: _Pass, needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of :class:`_Between` that can be differentiated again."""
    form, plan = shared.form, shared.plan

    def outputs(read: Any, state: Tensor, *weights: Any) -> list[Tensor]:
        out_values, out_bias, residual, in_values, in_bias, _ = weights
        state = state[:, : shared.samples]
        if read is not None:
            through = None if residual is None else state
            values = out_values.view(-1, form.channels)
            state = plain_out(shared.nodes(read), values, out_bias, through, residual, plan)
        if in_values is None:
            return [state]
        z = shared.captured(plain_in(state, in_values.view(-1, form.channels), in_bias, plan))
        width = 0 if grads[0] is None else grads[0].shape[1] - shared.samples
        both = [torch.nn.functional.pad(state, (0, width)), z]
        return [t for t, of in zip(both, asked, strict=True) if of]

    # What goes around the first block is the state that came in: no weight, and often no input, is behind it.
    through = shared.needed[0] or ctx.k > 0
    asked = [grad is not None and (through or place > 0) for place, grad in enumerate(grads)]
    if not any(asked):
        return [None] * 8
    given = [grad for grad, of in zip(grads, asked, strict=True) if of and grad is not None]
    return differentiable_grads(outputs, ctx.saved_tensors[:8], [*needed[:7], False], given)


class _Inside(torch.autograd.Function):
    """From the result of ``lin_in`` to what ``lin_out`` reads: (B, N*C) -> (B, N*C)."""

    @staticmethod
    def forward(
        ctx: Any,
        shared: _Pass,
        k: int,
        made: Tensor,
        saved: Sequence[Tensor | None],
        z: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        ctx.shared, ctx.k = shared, k
        ctx.save_for_backward(z, *saved)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        shared: _Pass = ctx.shared
        k, nothing, needed = ctx.k, (None,) * 4, ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            z, _, *weights = ctx.saved_tensors
            w = Weights(*weights)

            def outputs(z: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
                block = w._replace(scale=scale, shift=shift)
                return shared.captured(middle(shared.nodes(z), block, shared.form, shared.plan)[0])

            return *nothing, *differentiable_grads(outputs, (z, w.scale, w.shift), needed, grad)
        if (
            (known := shared.known) is not None
            and _is(grad, known, k, 1)
            and (known.complete or not any(needed[1:]))
        ):
            found = known.weights[k]
            return *nothing, known.inner[k].before, found[2], found[3]
        _, state, *weights = ctx.saved_tensors
        wanted = [field in _OF_MIDDLE and needed[field - 1] for field in range(N_WEIGHTS)]
        before, found = shared.part("middle", grad, None, state, Weights(*weights), wanted)
        return *nothing, before, found[2], found[3]


def run_chain(
    passed: Passed, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Put what a compiled forward pass has computed on the autograd graph, node by node.

    Args:
        passed: of the forward pass, with the states that entered each block and, for ``form.inside``, what is
            inside them.
        state: (R, B), what came in.
        blocks, form, plan: as for the pass.

    Returns:
        The new state (R, B), and of each block the result of ``lin_in`` and what ``lin_out`` reads, (B, N*C).
    """
    flat = [tensor for block in blocks for tensor in block]
    needed = [t is not None and t.requires_grad for t in (state, *flat)]
    shared = _Pass(form, plan, state.shape[1], needed)
    states = list(passed.saved)
    # The first is the state that came in, which is a tensor of the graph already.
    carried, read = states[0].detach(), None  # type: ignore[union-attr]
    before: list[Tensor] = []
    aside: list[Tensor] = []
    given: Tensor = state
    for k, w in enumerate(blocks):
        out = blocks[k - 1] if k else Weights(*(None,) * N_WEIGHTS)  # type: ignore[arg-type]
        weights = (out.out_values, out.out_bias, out.residual, w.in_values, w.in_bias, w.residual)
        made = (carried if k == 0 else states[k], passed.before[k])
        saved = (states[k - 1] if k else None, states[k], *out, *w)
        given, z = _Between.apply(shared, k, made, saved, read, given, *weights)
        read = _Inside.apply(shared, k, passed.aside[k], (states[k], *w), z, w.scale, w.shift)
        before.append(z)
        aside.append(read)
    w = blocks[-1]
    last = (w.out_values, w.out_bias, w.residual, None, None, None)
    kept = (*states, *flat)
    result = _Between.apply(shared, len(blocks), (passed.state,), kept, read, given, *last)
    return result, before, aside
