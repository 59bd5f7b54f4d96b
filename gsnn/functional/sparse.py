"""The two sparse products of a block, each as one differentiable operation over a :class:`Plan`.

``lin_in`` reads the edge state (R, B) and gives the channels (N, C, B) of the function nodes;
``lin_out`` writes the channels back onto the edges and adds the residual. Samples are innermost: a
bucket is one batched product whose rows are contiguous over the batch, and no tensor of edges x
channels x samples exists at any time.

Results are written in place into one buffer, which autograd cannot follow, so the backward passes
are written by hand. Where PyTorch traces or transforms the code (``torch.compile``, ``torch.func``,
a second derivative) the same mathematics runs as plain differentiable operations instead.
"""

from typing import Any

import torch

from gsnn.functional.plan import Bucket, Plan


def plain_needed() -> bool:
    """Whether the operations must be visible to PyTorch one by one."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _blocks(table: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """(n, degree, width) view of a bucket's rows."""
    return table[bucket.rows].view(bucket.stop - bucket.start, bucket.degree, table.shape[1])


def _out_table(values: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Weights out of function nodes, one row per padded slot; padding rows are zero."""
    if plan.out_padded:
        values = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return values.index_select(0, plan.out_weight_rows)


def _bias_rows(bias: torch.Tensor, plan: Plan) -> torch.Tensor:
    return torch.cat([bias, bias.new_zeros(1)]).index_select(0, plan.edge_of_row).unsqueeze(1)


def _node_bias(bias: torch.Tensor, plan: Plan) -> torch.Tensor:
    return plan.to_nodes(bias.view(len(plan.order), -1)).unsqueeze(2)


def _lin_in_plain(
    state: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, plan: Plan
) -> torch.Tensor:
    rows = state.index_select(0, plan.in_rows)
    table = values.index_select(0, plan.in_weight_rows)
    blocks = [torch.bmm(_blocks(table, b).transpose(1, 2), _blocks(rows, b)) for b in plan.in_buckets]
    channels = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
    return channels if bias is None else channels + _node_bias(bias, plan)


def _lin_out_plain(
    channels: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor | None,
    residual: torch.Tensor | None,
    plan: Plan,
) -> torch.Tensor:
    table = _out_table(values, plan)
    samples = channels.shape[2]
    blocks = [
        torch.bmm(_blocks(table, b), channels[b.start : b.stop]).view(-1, samples) for b in plan.out_buckets
    ]
    result = torch.cat([*blocks, channels.new_zeros(plan.n_rows - plan.n_out_slots, samples)])
    if bias is not None:
        result = result + _bias_rows(bias, plan)
    if state is not None and residual is not None:
        result = result + residual.relu() * state
    return result


def _differentiable_grads(output: torch.Tensor, inputs: tuple, needed: Any, grad: torch.Tensor) -> list:
    """Gradients that can themselves be differentiated, None where none is needed."""
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=False) if need]
    grads = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return [next(grads) if need else None for need in needed]


class _LinIn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, state: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, plan: Plan
    ) -> torch.Tensor:
        ctx.plan = plan
        ctx.save_for_backward(state, values, bias)
        rows = state.index_select(0, plan.in_rows)
        table = values.index_select(0, plan.in_weight_rows)
        channels = state.new_empty(len(plan.order), values.shape[1], state.shape[1])
        for bucket in plan.in_buckets:
            torch.bmm(
                _blocks(table, bucket).transpose(1, 2),
                _blocks(rows, bucket),
                out=channels[bucket.start : bucket.stop],
            )
        return channels if bias is None else channels.add_(_node_bias(bias, plan))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        plan: Plan = ctx.plan
        state, values, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            output = _lin_in_plain(state, values, bias, plan)
            return tuple(_differentiable_grads(output, (state, values, bias), ctx.needs_input_grad, grad))
        grad = grad.contiguous()
        state_grad = values_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            table = values.index_select(0, plan.in_weight_rows)
            row_grads = grad.new_empty(plan.n_in_slots + 1, grad.shape[2])
            row_grads[-1] = 0
            for bucket in plan.in_buckets:
                torch.bmm(
                    _blocks(table, bucket), grad[bucket.start : bucket.stop], out=_blocks(row_grads, bucket)
                )
            state_grad = row_grads.index_select(0, plan.in_rows_back)
        if ctx.needs_input_grad[1]:
            rows = state.index_select(0, plan.in_rows)
            table_grad = grad.new_empty(plan.n_in_slots, grad.shape[1])
            for bucket in plan.in_buckets:
                torch.bmm(
                    _blocks(rows, bucket),
                    grad[bucket.start : bucket.stop].transpose(1, 2),
                    out=_blocks(table_grad, bucket),
                )
            values_grad = table_grad.index_select(0, plan.in_slots)
        if ctx.needs_input_grad[2]:
            per_node = grad.sum(2)
            bias_grad = (per_node if plan.natural else per_node.index_select(0, plan.rank)).view(-1)
        return state_grad, values_grad, bias_grad, None


class _LinOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        channels: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor | None,
        state: torch.Tensor | None,
        residual: torch.Tensor | None,
        plan: Plan,
    ) -> torch.Tensor:
        ctx.plan = plan
        ctx.save_for_backward(channels, values, bias, state, residual)
        table = _out_table(values, plan)
        if state is not None and residual is not None:
            result = state * residual.relu()
        else:
            result = channels.new_zeros(plan.n_rows, channels.shape[2])
        if bias is not None:
            result += _bias_rows(bias, plan)
        for bucket in plan.out_buckets:
            if bucket.degree:
                _blocks(result, bucket).baddbmm_(_blocks(table, bucket), channels[bucket.start : bucket.stop])
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        plan: Plan = ctx.plan
        channels, values, bias, state, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (channels, values, bias, state, residual)
            output = _lin_out_plain(*inputs, plan)
            return tuple(_differentiable_grads(output, inputs, ctx.needs_input_grad, grad))
        grad = grad.contiguous()
        channels_grad = values_grad = bias_grad = state_grad = residual_grad = None
        if ctx.needs_input_grad[0]:
            table = _out_table(values, plan)
            channels_grad = torch.empty_like(channels, memory_format=torch.contiguous_format)
            for bucket in plan.out_buckets:
                torch.bmm(
                    _blocks(table, bucket).transpose(1, 2),
                    _blocks(grad, bucket),
                    out=channels_grad[bucket.start : bucket.stop],
                )
        if ctx.needs_input_grad[1]:
            table_grad = grad.new_empty(plan.n_out_slots, channels.shape[1])
            for bucket in plan.out_buckets:
                torch.bmm(
                    _blocks(grad, bucket),
                    channels[bucket.start : bucket.stop].transpose(1, 2),
                    out=_blocks(table_grad, bucket),
                )
            values_grad = table_grad.index_select(0, plan.out_slots)
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum(1).index_select(0, plan.row_of_edge)
        if ctx.needs_input_grad[3]:
            state_grad = grad * residual.relu()
        if ctx.needs_input_grad[4]:
            residual_grad = torch.dot(grad.view(-1), state.reshape(-1)) * (residual > 0)
        return channels_grad, values_grad, bias_grad, state_grad, residual_grad, None


def lin_in(
    state: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, plan: Plan
) -> torch.Tensor:
    """Channels of the function nodes from the edges that enter them.

    Args:
        state: (R, B) edge state in the plan's rows.
        values: (edges into function nodes, C) weights, rows in the order of ``plan.in_edges``.
        bias: (N*C,) in the given order of the nodes, or None.
        plan: the network's plan.

    Returns:
        (N, C, B), nodes in plan order.
    """
    return (_lin_in_plain if plain_needed() else _LinIn.apply)(state, values, bias, plan)


def lin_out(
    channels: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor | None,
    residual: torch.Tensor | None,
    plan: Plan,
) -> torch.Tensor:
    """Edge state from the channels of the function nodes, plus ``relu(residual) * state``.

    Args:
        channels: (N, C, B), nodes in plan order.
        values: (edges out of function nodes, C) weights, rows in the order of ``plan.out_edges``.
        bias: (E,) one per flat edge, or None.
        state: (R, B) the state that entered the block, or None for no residual.
        residual: scalar r, or None for no residual.
        plan: the network's plan.

    Returns:
        (R, B) edge state in the plan's rows.
    """
    apply = _lin_out_plain if plain_needed() else _LinOut.apply
    return apply(channels, values, bias, state, residual, plan)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order, back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        order, back = ctx.saved_tensors
        return _Permute.apply(grad, back, order), None, None


def permute_rows(rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """``rows[order]`` for a permutation whose inverse is ``back``: a gather in both directions."""
    return rows.index_select(0, order) if plain_needed() else _Permute.apply(rows, order, back)
