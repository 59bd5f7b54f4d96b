"""The kernel ``torch``: a block of the common form by PyTorch's operations, on any device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gsnn.kernels.bucketed import (
    Tensor,
    in_table,
    out_table,
    product_in,
    product_in_grads,
    product_out,
    product_out_grads,
    residual_grad,
)
from gsnn.kernels.channels import elu_grad_, elu_values, unit_scale, unit_scale_grads
from gsnn.kernels.form import N_WEIGHTS, Form, Weights
from gsnn.kernels.interface import Passed
from gsnn.kernels.plan import Plan
from gsnn.kernels.reference import CAPTURES_ON


class Operations:
    """Any type on any device; keeps a few tensors for each block."""

    name = "torch"

    def missing(self) -> str | None:
        """None: PyTorch is always there."""
        return None

    def refuses(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan) -> str | None:
        """None but for captures on the way; PyTorch says what is wrong with tensors that do not fit."""
        return CAPTURES_ON if form.inside else None

    def forward(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan, keep: bool) -> Passed:
        """See :class:`gsnn.kernels.interface.BlockKernel`."""
        kept: list[Tensor | None] = []
        statistics: list[Tensor | None] = []
        aside: list[Tensor] = []
        for weights in blocks:
            state, saved, mean, read = _forward(state, weights, form, plan)
            kept.extend(saved)
            if form.aside:
                aside.append(plan.from_nodes(read))
            statistics += [saved.unit_scale, mean] if form.over_batch else [None, None]
        return Passed(state, kept, statistics, aside)

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
        through: Tensor | None = grad.contiguous()
        n_saved = len(_Saved._fields)
        grads = []
        for k in range(len(blocks) - 1, -1, -1):
            assert through is not None
            through, of_block = _backward(
                through,
                blocks[k],
                _Saved(*saved[k * n_saved : (k + 1) * n_saved]),  # type: ignore[arg-type]
                form,
                plan,
                k > 0 or needed[0],
                needed[1 + k * N_WEIGHTS : 1 + (k + 1) * N_WEIGHTS],
                read_grads[k],
            )
            grads.append(of_block)
        return through, grads[::-1]


class _Saved(NamedTuple):
    """What one block keeps for its backward pass, besides its weights."""

    state: Tensor
    in_table: Tensor
    out_table: Tensor
    unit: Tensor | None
    unit_scale: Tensor | None
    active: Tensor
    gate: Tensor | None


def _forward(
    state: Tensor, w: Weights, form: Form, plan: Plan
) -> tuple[Tensor, _Saved, Tensor | None, Tensor]:
    """New state, what to save, the mean that the norm subtracted, and what ``lin_out`` read."""
    table_in = in_table(w.in_values.view(-1, form.channels), plan)
    table_out = out_table(w.out_values.view(-1, form.channels), plan)
    z = product_in(state, table_in, w.in_bias, plan)
    unit = unit_scale_ = mean = None
    if form.dims is not None:
        unit, unit_scale_, mean = unit_scale(z, form.dims, form.centre)
        if w.scale is None or w.shift is None:
            z = unit
        else:
            z = torch.mul(unit, plan.to_nodes(w.scale.view(-1, 1, 1)), out=z)
            z.add_(plan.to_nodes(w.shift.view(-1, 1, 1)))
    elif w.scale is not None and w.shift is not None:
        unit = z
        scale, shift = (plan.to_nodes(t.view(plan.n_nodes, -1, 1)) for t in (w.scale, w.shift))
        z = torch.addcmul(shift, z, scale)
    active = elu_values(z)
    read = active if w.factor is None else active * w.factor
    gate = None if w.residual is None else w.residual.relu()
    result = product_out(read, table_out, w.out_bias, state, gate, plan)
    return result, _Saved(state, table_in, table_out, unit, unit_scale_, active, gate), mean, read


def _backward(
    grad: Tensor,
    w: Weights,
    saved: _Saved,
    form: Form,
    plan: Plan,
    state_needed: bool,
    needed: Sequence[bool],
    read_grad: Tensor | None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients for the state that entered the block and for its weights.

    ``read_grad`` is what else depends on the activations that ``lin_out`` read.
    """
    read = saved.active if w.factor is None else saved.active * w.factor
    z_grad, out_values_grad, out_bias_grad = product_out_grads(
        grad, read, saved.out_table, plan, (True, needed[4], needed[5])
    )
    assert z_grad is not None
    if read_grad is not None:
        z_grad.add_(plan.to_nodes(read_grad))
    if w.factor is not None:
        z_grad.mul_(w.factor)
    z_grad = elu_grad_(z_grad, saved.active)
    scale_grad = shift_grad = None
    if saved.unit is not None and saved.unit_scale is not None and form.dims is not None:
        scale = None if w.scale is None else plan.to_nodes(w.scale.view(-1, 1, 1))
        z_grad, scale_grad, shift_grad = unit_scale_grads(
            z_grad, saved.unit, saved.unit_scale, scale, form.dims, form.centre
        )
        if scale_grad is not None and shift_grad is not None:
            scale_grad = plan.from_nodes(scale_grad).view(-1)
            shift_grad = plan.from_nodes(shift_grad).view(-1)
    elif saved.unit is not None and w.scale is not None:  # scale and shift without a norm
        scale = plan.to_nodes(w.scale.view(plan.n_nodes, -1, 1))
        dims = (2,) if scale.shape[1] > 1 else (1, 2)
        scale_grad = plan.from_nodes((z_grad * saved.unit).sum(dims)).view(-1)
        shift_grad = plan.from_nodes(z_grad.sum(dims)).view(-1)
        z_grad = z_grad * scale
    state_grad, in_values_grad, in_bias_grad = product_in_grads(
        z_grad, saved.state, saved.in_table, plan, (state_needed, needed[0], needed[1])
    )
    r_grad = None
    if w.residual is not None and saved.gate is not None:
        if state_grad is not None:
            state_grad.add_(grad * saved.gate)
        if needed[6]:
            r_grad = residual_grad(grad, saved.state, w.residual)
    return state_grad, [
        None if in_values_grad is None else in_values_grad.view(-1),
        in_bias_grad,
        scale_grad,
        shift_grad,
        None if out_values_grad is None else out_values_grad.view(-1),
        out_bias_grad,
        r_grad,
        None,
    ]
