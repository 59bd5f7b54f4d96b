"""What every kernel offers: a stack of blocks of the common form, forward and backward.

:mod:`gsnn.kernels.stack` makes one differentiable operation of any of them, and
``tests/test_kernels.py`` holds all of them against the differentiable reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from gsnn.kernels.form import Form, Weights
from gsnn.kernels.plan import Plan


class Passed(NamedTuple):
    """What a forward pass gives.

    Attributes:
        state: (R, B), the new state.
        saved: tensors for the backward pass, besides the state that came in and the weights.
        statistics: two for each block: where the norm is over the batch ``1 / sqrt(v + 1e-5)`` and the mean,
            (N, 1, 1) or (N, C, 1) in plan order, else None and None.
        aside: for ``form.aside`` what ``lin_out`` read, (N, C, B) of each block, nodes in the given order;
            for ``form.inside`` (B, N*C); else none.
        before: for ``form.inside`` the results of ``lin_in``, (B, N*C) of each block.
    """

    state: Tensor
    saved: Sequence[Tensor | None]
    statistics: Sequence[Tensor | None]
    aside: Sequence[Tensor]
    before: Sequence[Tensor] = ()


class BlockKernel(Protocol):
    """One way to compute ``lin_out(factor * elu(norm(lin_in(state)))) + relu(residual) state`` in each block.

    Attributes:
        name: what :func:`gsnn.kernels.registry.use` calls it.

    ``form.inside`` asks for what ``gsnn.kernels._chain`` needs; a kernel may refuse it.
    """

    name: str

    def missing(self) -> str | None:
        """Why it cannot run on this machine at all, None where it can."""

    def refuses(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan) -> str | None:
        """Why it cannot run these, None where it can.

        It is asked at every forward pass, so it must be quick, and must not look at values.
        """

    def forward(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan, keep: bool) -> Passed:
        """The stack on ``state`` (R, B), without autograd; writes to none of its arguments.

        Without ``keep`` there will be no backward pass.
        """

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
        """The gradient for the state (R, B) and, block by block, those for the fields of ``Weights``.

        It may be called several times.

        Args:
            grad: (R, B), for the new state.
            state, blocks, form, plan: as in the forward pass.
            saved: what it kept.
            read_grads: for each block what else depends on its ``aside``, or None.
            needed: the state first, then all fields of all blocks; what is not needed may be None.
        """


class Case(NamedTuple):
    """How one block of a model would be run now.

    Attributes:
        separate: why its steps are separate operations, so that no kernel is asked; None where one is.
        state, weights, form, plan: what a kernel is asked with; of the state only type and shape hold.
    """

    separate: str | None
    state: Tensor
    weights: Weights
    form: Form
    plan: Plan
