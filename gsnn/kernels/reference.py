"""The mathematics of a stack of blocks by differentiable operations: what every kernel is to equal.

It serves as the kernel ``reference``, gives second derivatives for all kernels, and the captures inside a
stack that ran as one operation.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gsnn.kernels.bucketed import permute_rows, plain_in, plain_out
from gsnn.kernels.channels import plain_unit
from gsnn.kernels.form import N_WEIGHTS, Form, Weights, split
from gsnn.kernels.interface import Passed
from gsnn.kernels.plan import Plan


class Products(NamedTuple):
    """The two sparse products of a block, differentiable.

    Attributes:
        lin_in: called like :func:`gsnn.kernels.bucketed.plain_in`.
        lin_out: called like :func:`gsnn.kernels.bucketed.plain_out`.
    """

    lin_in: Callable[..., Tensor]
    lin_out: Callable[..., Tensor]


BATCHED = Products(plain_in, plain_out)
CAPTURES_ON = "captures are on the way to the output"


def capture(z: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """(B, N*C) in given order, and z again, computed from it so that gradients pass through."""
    if not plan.natural:
        z = permute_rows(z, plan.rank, plan.order)
    captured = z.flatten(0, 1).t()
    z = captured.t().view_as(z)
    return captured, z if plan.natural else permute_rows(z, plan.order, plan.rank)


def middle(
    z: Tensor, w: Weights, form: Form, plan: Plan
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """What lies between a block's two products, (N, C, B) in plan order, and the statistics of its norm."""
    scale, shift = (
        None if t is None else plan.to_nodes(t.view(plan.n_nodes, -1, 1)) for t in (w.scale, w.shift)
    )
    of_norm: tuple[Tensor | None, Tensor | None] = (None, None)
    if form.dims is not None:
        z, unit_scale, mean = plain_unit(z, scale, shift, form.dims, form.centre)
        if form.over_batch:
            of_norm = (unit_scale, mean)
    elif scale is not None and shift is not None:
        z = z * scale + shift
    z = torch.nn.functional.elu(z)
    return (z if w.factor is None else z * w.factor), of_norm


def plain_stack(
    state: Tensor,
    flat: Sequence[Tensor | None],
    form: Form,
    plan: Plan,
    tapped: list[Tensor] | None = None,
    statistics: list[Tensor | None] | None = None,
    products: Products = BATCHED,
) -> tuple[Tensor, list[Tensor]]:
    """The stack by differentiable operations: its result and what each ``lin_out`` reads, in the given order.

    ``tapped`` gets two captures of each block that lie on the way: before the norm, and what is read;
    ``statistics`` the two of each block's norm.
    """
    read = []

    def tap(z: Tensor) -> Tensor:
        if tapped is None:
            return z
        captured, z = capture(z, plan)
        tapped.append(captured)
        return z

    for w in split(flat):
        z = tap(products.lin_in(state, w.in_values.view(-1, form.channels), w.in_bias, plan))
        z, of_norm = middle(z, w, form, plan)
        if statistics is not None:
            statistics.extend(of_norm)
        z = tap(z)
        read.append(plan.from_nodes(z))
        through = None if w.residual is None else state
        out_values = w.out_values.view(-1, form.channels)
        state = products.lin_out(z, out_values, w.out_bias, through, w.residual, plan)
    return state, read


class Reference:
    """Any type on any device; keeps nothing and computes the stack again for its gradients."""

    name = "reference"
    products = BATCHED

    def missing(self) -> str | None:
        """None: PyTorch is always there."""
        return None

    def refuses(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan) -> str | None:
        """None but for captures on the way: it runs everything else."""
        return CAPTURES_ON if form.inside else None

    def forward(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan, keep: bool) -> Passed:
        """See :class:`gsnn.kernels.interface.BlockKernel`."""
        statistics: list[Tensor | None] = []
        flat = [tensor for block in blocks for tensor in block]
        result, read = plain_stack(state, flat, form, plan, statistics=statistics, products=self.products)
        return Passed(result, [], statistics, read if form.aside else [])

    def backward(
        self,
        grad: Tensor,
        state: Tensor,
        blocks: Sequence[Weights],
        saved: Sequence[Tensor | None],
        form: Form,
        plan: Plan,
        read_grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[list[Tensor | None]]]:
        """See :class:`gsnn.kernels.interface.BlockKernel`."""
        inputs = [state, *(tensor for block in blocks for tensor in block)]
        with torch.enable_grad():
            own = [
                None if tensor is None else tensor.detach().requires_grad_(need)
                for tensor, need in zip(inputs, needed, strict=True)
            ]
            assert own[0] is not None
            result, read = plain_stack(own[0], own[1:], form, plan, products=self.products)
            given = [
                (result, grad),
                *((z, g) for z, g in zip(read, read_grads, strict=True) if g is not None),
            ]
            wanted = [tensor for tensor in own if tensor is not None and tensor.requires_grad]
            found = iter(torch.autograd.grad([z for z, _ in given], wanted, [g for _, g in given]))
        grads = [None if t is None or not t.requires_grad else next(found) for t in own]
        of_blocks = grads[1:]
        return grads[0], [of_blocks[k : k + N_WEIGHTS] for k in range(0, len(of_blocks), N_WEIGHTS)]


class Inside:
    """The captures inside a stack that ran as one operation, computed again when somebody reads them.

    What is read is made of the stack's inputs, so what is computed from it has its gradients there; and the
    stack's backward pass adds to ``grad``, where it is retained, what the output passes back to it.
    """

    def __init__(self, state: Tensor, flat: Sequence[Tensor | None], form: Form, plan: Plan) -> None:
        self._state, self._flat, self._form, self._plan = state, flat, form, plan
        self._versions = self._now()
        self._made: list[Tensor] | None = None

    def _now(self) -> list[int | None]:
        return [None if t is None else t._version for t in (self._state, *self._flat)]

    def read(self, block: int) -> tuple[Tensor, Tensor] | None:
        """(B, N*C) before the norm and as ``lin_out`` reads it; None once a weight has changed."""
        if self._made is None:
            if self._versions != self._now():
                return None
            self._made = []
            with torch.enable_grad():
                plain_stack(self._state, self._flat, self._form, self._plan, self._made)
        return self._made[2 * block], self._made[2 * block + 1]

    def pass_back(self, grad: Tensor, read_grads: Sequence[Tensor | None]) -> None:
        """Add to the retained gradients those of the stack's result and of what it gave aside."""
        wanted = [k for k, t in enumerate(self._made or ()) if t.retains_grad]
        if not wanted or self._made is None:
            return
        inside: list[Tensor] = []
        with torch.enable_grad():
            flat = [None if t is None else t.detach() for t in self._flat]
            state = self._state.detach().requires_grad_()
            result, read = plain_stack(state, flat, self._form, self._plan, inside)
            outputs = [
                (result, grad),
                *((z, g) for z, g in zip(read, read_grads, strict=True) if g is not None),
            ]
            found = torch.autograd.grad(
                [z for z, _ in outputs],
                [inside[k] for k in wanted],
                [g for _, g in outputs],
                allow_unused=True,
            )
        for k, more in zip(wanted, found, strict=True):
            kept = self._made[k]
            if more is not None:
                kept.grad = more if kept.grad is None else kept.grad + more
