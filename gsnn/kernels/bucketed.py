"""The two sparse products of a block, over a :class:`gsnn.kernels.plan.Plan`.

``lin_in`` reads the edge state (R, B) and gives the channels (N, C, B) of the function nodes;
``lin_out`` writes the channels back onto the edges and adds the residual. Samples are innermost: a
bucket is one batched product whose rows are contiguous over the batch, and no tensor of edges x
channels x samples exists at any time.

Results are written in place into one buffer, which autograd cannot follow, so the backward passes
are written by hand. Where PyTorch traces or transforms the code (``torch.compile``, ``torch.func``,
a second derivative) the same mathematics runs as plain differentiable operations instead.

Padding rows repeat the weight of the first edge. On the way in they meet the state's zero row, on the
way out they fill rows that nothing reads and whose gradient is zero.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from gsnn.kernels.plan import Bucket, Plan

Tensor = torch.Tensor


def plain_needed() -> bool:
    """Whether the operations must be visible to PyTorch one by one."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def differentiable_grads(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor | Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` that can themselves be differentiated, None where not needed."""
    # Views, since one input may be given twice (shared layers) or be a part of another's past.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need and tensor is not None]
    grads = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return [next(grads) if need else None for need in needed]


def _blocks(table: Tensor, buckets: Sequence[Bucket]) -> list[Tensor]:
    """(n, degree, width) view of the rows of each bucket."""
    width = table.shape[1]
    if len(buckets) == 1:
        bucket = buckets[0]
        rows = table if table.shape[0] == bucket.size else table[: bucket.size]
        return [rows.view(bucket.nodes, bucket.degree, width)]
    return [
        table.narrow(0, bucket.row, bucket.size).view(bucket.nodes, bucket.degree, width)
        for bucket in buckets
    ]


def _nodes(channels: Tensor, buckets: Sequence[Bucket]) -> list[Tensor]:
    """(n, C, B) view of the nodes of each bucket."""
    if len(buckets) == 1:
        return [channels]
    return [channels.narrow(0, bucket.start, bucket.nodes) for bucket in buckets]


def in_table(values: Tensor, plan: Plan) -> Tensor:
    """Weights into function nodes, one row of C per padded slot."""
    return values.index_select(0, plan.in_weight_rows)


def out_table(values: Tensor, plan: Plan) -> Tensor:
    """Weights out of function nodes, one row of C per padded slot."""
    return values.index_select(0, plan.out_weight_rows)


def product_in(state: Tensor, table: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """``lin_in`` written in place, without autograd."""
    buckets = plan.in_buckets
    rows = state.index_select(0, plan.in_rows)
    channels = state.new_empty(plan.n_nodes, table.shape[1], state.shape[1])
    node_bias = None if bias is None else plan.to_nodes(bias.view(plan.n_nodes, -1, 1))
    for bucket, weights, x, z in zip(
        buckets, _blocks(table, buckets), _blocks(rows, buckets), _nodes(channels, buckets), strict=True
    ):
        if node_bias is None:
            torch.bmm(weights.transpose(1, 2), x, out=z)
        else:
            start = node_bias.narrow(0, bucket.start, bucket.nodes)
            torch.baddbmm(start, weights.transpose(1, 2), x, out=z)
    return channels


def product_in_grads(
    grad: Tensor, state: Tensor, table: Tensor, plan: Plan, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``lin_in`` for (state, values, bias), those that are ``needed``."""
    buckets = plan.in_buckets
    node_grads = _nodes(grad, buckets)
    state_grad = values_grad = bias_grad = None
    if needed[0]:
        row_grads = grad.new_empty(plan.n_in_slots + 1, grad.shape[2])
        row_grads.narrow(0, plan.n_in_slots, 1).zero_()
        for weights, g, x_grad in zip(
            _blocks(table, buckets), node_grads, _blocks(row_grads, buckets), strict=True
        ):
            torch.bmm(weights, g, out=x_grad)
        state_grad = row_grads.index_select(0, plan.in_rows_back)
    if needed[1]:
        rows = state.index_select(0, plan.in_rows)
        table_grad = torch.empty_like(table)
        for x, g, weights_grad in zip(
            _blocks(rows, buckets), node_grads, _blocks(table_grad, buckets), strict=True
        ):
            torch.bmm(x, g.transpose(1, 2), out=weights_grad)
        values_grad = table_grad.index_select(0, plan.in_slots)
    if needed[2]:
        bias_grad = plan.from_nodes(grad.sum(2)).view(-1)
    return state_grad, values_grad, bias_grad


def plain_in(state: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """``lin_in`` by differentiable operations."""
    rows = _blocks(state.index_select(0, plan.in_rows), plan.in_buckets)
    table = _blocks(in_table(values, plan), plan.in_buckets)
    channels = torch.cat([torch.bmm(w.transpose(1, 2), x) for w, x in zip(table, rows, strict=True)])
    return channels if bias is None else channels + plan.to_nodes(bias.view(plan.n_nodes, -1, 1))


def product_out(
    channels: Tensor,
    table: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    gate: Tensor | None,
    plan: Plan,
) -> Tensor:
    """``lin_out`` written in place, without autograd; ``gate`` is relu(r)."""
    if state is not None and gate is not None:
        result = state * gate
    else:
        result = channels.new_zeros(plan.n_rows, channels.shape[2])
    if bias is not None:
        result.add_(bias.index_select(0, plan.bias_rows).unsqueeze(1))
    buckets = plan.out_buckets
    for weights, z, rows in zip(
        _blocks(table, buckets), _nodes(channels, buckets), _blocks(result, buckets), strict=True
    ):
        rows.baddbmm_(weights, z)
    result.narrow(0, plan.n_rows - 1, 1).zero_()
    return result


def product_out_grads(
    grad: Tensor, channels: Tensor, table: Tensor, plan: Plan, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``lin_out`` for (channels, values, bias), those that are ``needed``."""
    buckets = plan.out_buckets
    row_grads = _blocks(grad, buckets)
    channels_grad = values_grad = bias_grad = None
    if needed[0]:
        channels_grad = torch.empty_like(channels)
        for weights, g, z_grad in zip(
            _blocks(table, buckets), row_grads, _nodes(channels_grad, buckets), strict=True
        ):
            torch.bmm(weights.transpose(1, 2), g, out=z_grad)
    if needed[1]:
        table_grad = torch.empty_like(table)
        for g, z, weights_grad in zip(
            row_grads, _nodes(channels, buckets), _blocks(table_grad, buckets), strict=True
        ):
            torch.bmm(g, z.transpose(1, 2), out=weights_grad)
        values_grad = table_grad.index_select(0, plan.out_slots)
    if needed[2]:
        bias_grad = grad.sum(1).index_select(0, plan.row_of_edge)
    return channels_grad, values_grad, bias_grad


def residual_grad(grad: Tensor, state: Tensor, residual: Tensor) -> Tensor:
    """Gradient of ``relu(r) * state`` for the scalar r."""
    product = torch.dot(grad.view(-1), state.view(-1))
    return torch.ops.aten.threshold_backward(product, residual, 0)


def plain_out(
    channels: Tensor,
    values: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    residual: Tensor | None,
    plan: Plan,
) -> Tensor:
    """``lin_out`` by differentiable operations."""
    table = _blocks(out_table(values, plan), plan.out_buckets)
    nodes = _nodes(channels, plan.out_buckets)
    blocks = [torch.bmm(weights, z).flatten(0, 1) for weights, z in zip(table, nodes, strict=True)]
    result = torch.cat([*blocks, channels.new_zeros(plan.n_rows - plan.n_out_slots, channels.shape[2])])
    if bias is not None:
        result = result + bias.index_select(0, plan.bias_rows).unsqueeze(1)
    if state is not None and residual is not None:
        result = result + residual.relu() * state
    # The last row is the zero that padding reads.
    return torch.cat([result[:-1], result.new_zeros(1, result.shape[1])])


class _LinIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(state, values, bias)
        return product_in(state, in_table(values, plan), bias, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        plan: Plan = ctx.plan
        state, values, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            inputs = (state, values, bias)
            return *differentiable_grads(partial(plain_in, plan=plan), inputs, needed, grad), None
        table = in_table(values, plan)
        return *product_in_grads(grad.contiguous(), state, table, plan, needed), None


class _LinOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        channels: Tensor,
        values: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        residual: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(channels, values, bias, state, residual)
        gate = None if residual is None else residual.relu()
        return product_out(channels, out_table(values, plan), bias, state, gate, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        plan: Plan = ctx.plan
        inputs = channels, values, _, state, residual = ctx.saved_tensors
        needed = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            return *differentiable_grads(partial(plain_out, plan=plan), inputs, needed, grad), None
        grad = grad.contiguous()
        grads = product_out_grads(grad, channels, out_table(values, plan), plan, needed)
        state_grad = grad * residual.relu() if needed[3] else None
        gate_grad = residual_grad(grad, state, residual) if needed[4] else None
        return *grads, state_grad, gate_grad, None


def lin_in(state: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """Channels of the function nodes from the edges that enter them.

    Args:
        state: (R, B) edge state in the plan's rows, contiguous.
        values: (edges into function nodes, C) weights, rows in the order of ``plan.in_edges``.
        bias: (N*C,) in the given order of the nodes, or None.
        plan: the network's plan.

    Returns:
        (N, C, B), nodes in plan order.
    """
    return (plain_in if plain_needed() else _LinIn.apply)(state, values, bias, plan)


def lin_out(
    channels: Tensor,
    values: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    residual: Tensor | None,
    plan: Plan,
) -> Tensor:
    """Edge state from the channels of the function nodes, plus ``relu(residual) * state``.

    Args:
        channels: (N, C, B), nodes in plan order, contiguous.
        values: (edges out of function nodes, C) weights, rows in the order of ``plan.out_edges``.
        bias: (E,) one per flat edge, or None.
        state: (R, B) the state that entered the block, contiguous, or None for no residual.
        residual: scalar r, or None for no residual.
        plan: the network's plan.

    Returns:
        (R, B) edge state in the plan's rows.
    """
    apply = plain_out if plain_needed() else _LinOut.apply
    return apply(channels, values, bias, state, residual, plan)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        order, back = ctx.saved_tensors
        return _Permute.apply(grad, back, order), None, None


def permute_rows(rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """``rows[order]`` for a permutation whose inverse is ``back``: a gather in both directions."""
    return rows.index_select(0, order) if plain_needed() else _Permute.apply(rows, order, back)


def _plain_read(state: Tensor, depth: float, plan: Plan) -> Tensor:
    rows = state.index_select(0, plan.read_rows)
    sums = [
        rows.narrow(0, bucket.row, bucket.size).view(bucket.nodes, bucket.degree, rows.shape[1]).sum(1)
        for bucket in plan.read_buckets
    ]
    outputs = sums[0] if len(sums) == 1 else torch.cat(sums).index_select(0, plan.read_back)
    return (outputs * _read_scale(depth, outputs.dtype, plan)).t().contiguous()


def _read_scale(depth: float, dtype: torch.dtype, plan: Plan) -> Tensor:
    return plan.read_degree.to(dtype).rsqrt_().mul_(depth).unsqueeze(1)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, depth: float, plan: Plan) -> Tensor:
        ctx.depth, ctx.plan = depth, plan
        return _plain_read(state, depth, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # The operation is linear, so this is differentiable as it stands.
        scaled = grad.t() * _read_scale(ctx.depth, grad.dtype, ctx.plan)
        padded = torch.cat([scaled, scaled.new_zeros(1, scaled.shape[1])])
        return padded.index_select(0, ctx.plan.output_of_row), None, None


def read_outputs(state: Tensor, depth: float, plan: Plan) -> Tensor:
    """(B, N_out): the incoming edges of each output, summed, times ``depth`` over sqrt(its in-degree)."""
    return (_plain_read if plain_needed() else _Read.apply)(state, depth, plan)
