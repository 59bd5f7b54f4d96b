"""The two sparse products by torch-scatter: one message per weight and sample, then sums over segments.

The kernel ``scatter`` runs whole blocks with it (``gsnn.kernels.use("scatter")``), and a
:class:`gsnn.models.GSNN.GSNN` of ``backend='scatter'`` each of its products; both need the extra
``scatter``. Use what is asked by default to train: it never builds a tensor of edges x channels x samples,
which here takes ``edges * C * B`` numbers for each product. Use this to check results against an independent
implementation, to compare costs, or where its kernels suit a device better than batched matrix products.
The results are the same up to rounding, and the same weights serve either.

All follows from one sum over weights k, with row ``r_k`` and node ``n_k``::

    T(x, v, z) = sum_k sum_c sum_b  x[r_k, b] v[k, c] z[n_k, c, b],

whose derivatives for z, x and v are the functions ``_spread``, ``_collect`` and ``_dots``. Derivatives of
each are the other two, so they may be differentiated as often as one likes. Sums run over sorted
segments, forward and backward, without atomics, so that a run repeats to the bit.

Where PyTorch traces or transforms the code (``torch.compile``, ``torch.func``), which kernels that it
does not know would stop, the same sums are its own ``index_add``.
"""

from functools import cache
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch

from gsnn.kernels.bucketed import Tensor, plain_needed
from gsnn.kernels.plan import Bucket, Plan

Backend = Literal["bucketed", "scatter"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def check_backend(backend: Backend) -> None:
    """Refuse what is no backend, or what is not installed.

    Raises:
        ValueError: ``backend`` is not one of :data:`BACKENDS`.
        ImportError: it is ``scatter`` and torch-scatter is missing.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "scatter":
        _kernels()


@cache
def _kernels() -> ModuleType:
    try:
        import torch_scatter
    except ImportError as error:
        raise ImportError(
            "backend='scatter' needs torch-scatter: pip install 'gsnn[scatter]' --no-build-isolation "
            f"(it is compiled against the torch that is installed, which takes some minutes): {error}"
        ) from None
    return torch_scatter


def missing() -> str | None:
    """Why these products cannot run on this machine, None where they can."""
    try:
        _kernels()
    except ImportError as error:
        return str(error).removeprefix("backend='scatter' ")
    return None


class Incidence(NamedTuple):
    """The row and the node of each of n weights, and their order by either.

    Attributes:
        order, back: (n,) the weights sorted by node, and the place of each in that order.
        rows, nodes: (n,) row and node of each weight, sorted by node.
        node_starts: (N + 1,) where the weights of each node begin and end in that order.
        by_row: (n,) places in that order, sorted by row.
        row_starts: (R + 1,) where those of each row begin and end.
    """

    order: Tensor
    back: Tensor
    rows: Tensor
    nodes: Tensor
    node_starts: Tensor
    by_row: Tensor
    row_starts: Tensor

    def to(self, device: torch.device) -> "Incidence":
        """The same on another device."""
        return Incidence(*(tensor.to(device) for tensor in self))


def incidence(rows: Tensor, nodes: Tensor, n_rows: int, n_nodes: int) -> Incidence:
    """The :class:`Incidence` of weights with these ``rows`` and ``nodes``, (n,) each."""
    order = torch.argsort(nodes, stable=True)
    rows, nodes = rows[order], nodes[order]
    return Incidence(
        order,
        torch.argsort(order),
        rows,
        nodes,
        _starts(nodes, n_nodes),
        torch.argsort(rows, stable=True),
        _starts(rows, n_rows),
    )


def _starts(numbers: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(torch.bincount(numbers, minlength=size).cumsum(0), (1, 0))


def _of_nodes(z: Tensor, where: Incidence) -> Tensor:
    return z.index_select(0, where.nodes) if plain_needed() else _kernels().gather_csr(z, where.node_starts)


def _sums(messages: Tensor, starts: Tensor, index: Tensor) -> Tensor:
    """Sums over segments; by ``index``, in any order, where PyTorch must see what happens."""
    if plain_needed():
        return messages.new_zeros(len(starts) - 1, *messages.shape[1:]).index_add(0, index, messages)
    return _kernels().segment_csr(messages, starts)


def _spread(x: Tensor, values: Tensor, where: Incidence) -> Tensor:
    messages = values.index_select(0, where.order).unsqueeze(2) * x.index_select(0, where.rows).unsqueeze(1)
    return _sums(messages, where.node_starts, where.nodes)


def _collect(z: Tensor, values: Tensor, where: Incidence) -> Tensor:
    messages = (values.index_select(0, where.order).unsqueeze(2) * _of_nodes(z, where)).sum(1)
    if not plain_needed():
        messages = messages.index_select(0, where.by_row)
    return _sums(messages, where.row_starts, where.rows)


def _dots(x: Tensor, z: Tensor, where: Incidence) -> Tensor:
    products = x.index_select(0, where.rows).unsqueeze(1) * _of_nodes(z, where)
    return products.sum(2).index_select(0, where.back)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, where: Incidence) -> Tensor:
        ctx.where = where
        ctx.save_for_backward(x, values)
        return _spread(x, values, where)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, values = ctx.saved_tensors
        x_grad = _Collect.apply(grad, values, ctx.where) if ctx.needs_input_grad[0] else None
        values_grad = _Dots.apply(x, grad, ctx.where) if ctx.needs_input_grad[1] else None
        return x_grad, values_grad, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, values: Tensor, where: Incidence) -> Tensor:
        ctx.where = where
        ctx.save_for_backward(z, values)
        return _collect(z, values, where)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, values = ctx.saved_tensors
        z_grad = _Spread.apply(grad, values, ctx.where) if ctx.needs_input_grad[0] else None
        values_grad = _Dots.apply(grad, z, ctx.where) if ctx.needs_input_grad[1] else None
        return z_grad, values_grad, None


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, where: Incidence) -> Tensor:
        ctx.where = where
        ctx.save_for_backward(x, z)
        return _dots(x, z, where)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, z = ctx.saved_tensors
        x_grad = _Collect.apply(z, grad, ctx.where) if ctx.needs_input_grad[0] else None
        z_grad = _Spread.apply(x, grad, ctx.where) if ctx.needs_input_grad[1] else None
        return x_grad, z_grad, None


def spread(x: Tensor, values: Tensor, where: Incidence) -> Tensor:
    """(N, C, B): for each node the sum of ``values[k, c] * x[row of k, b]`` over its weights k.

    Args:
        x: (R, B).
        values: (n, C), in the order in which ``where`` was given its weights.
        where: their rows and nodes.
    """
    return (_spread if plain_needed() else _Spread.apply)(x, values, where)


def collect(z: Tensor, values: Tensor, where: Incidence) -> Tensor:
    """(R, B): for each row the sum of ``values[k, c] * z[node of k, c, b]`` over its weights k, and c.

    Args:
        z: (N, C, B).
        values: (n, C), in the order in which ``where`` was given its weights.
        where: their rows and nodes.
    """
    return (_collect if plain_needed() else _Collect.apply)(z, values, where)


class ScatterPlan(Plan):
    """A plan that also knows, for each side, the state row and the node of every edge.

    Attributes:
        into, out_of: edges into and out of function nodes; rows of the state, nodes in plan order.
    """

    def __init__(self, edge_index: Tensor, n_function: int, n_input: int, n_output: int) -> None:
        super().__init__(edge_index, n_function, n_input, n_output)
        self.into, self.out_of = _incidences(self)

    def to(self, device: torch.device) -> "ScatterPlan":
        """See :meth:`gsnn.kernels.plan.Plan.to`."""
        moved = super().to(device)
        assert isinstance(moved, ScatterPlan)
        if moved is not self:
            moved.into, moved.out_of = moved.into.to(device), moved.out_of.to(device)
        return moved


def _incidences(plan: Plan) -> tuple[Incidence, Incidence]:
    """Those of the edges into and out of function nodes."""
    return (
        incidence(
            plan.row_of_edge[plan.in_edges],
            _places(plan.in_buckets, plan)[plan.in_slots],
            plan.n_rows,
            plan.n_nodes,
        ),
        incidence(plan.out_slots, _places(plan.out_buckets, plan)[plan.out_slots], plan.n_rows, plan.n_nodes),
    )


def _places(buckets: tuple[Bucket, ...], plan: Plan) -> Tensor:
    """The node that each padded slot of these buckets belongs to, by its place in the plan."""
    nodes = torch.arange(plan.n_nodes, device=plan.order.device)
    degrees = nodes.new_tensor([bucket.degree for bucket in buckets])
    return nodes.repeat_interleave(degrees.repeat_interleave(nodes.new_tensor([b.nodes for b in buckets])))


#: Of plans that were not made for these products, as long as they are used.
_made: WeakKeyDictionary[Plan, tuple[Incidence, Incidence]] = WeakKeyDictionary()


def _sides(plan: Plan) -> tuple[Incidence, Incidence]:
    if isinstance(plan, ScatterPlan):
        return plan.into, plan.out_of
    if plan not in _made:
        _made[plan] = _incidences(plan)
    return _made[plan]


def lin_in(state: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """:func:`gsnn.kernels.bucketed.lin_in` by sums of messages."""
    channels = spread(state, values, _sides(plan)[0])
    return channels if bias is None else channels + plan.to_nodes(bias.view(plan.n_nodes, -1, 1))


def lin_out(
    channels: Tensor,
    values: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    residual: Tensor | None,
    plan: Plan,
) -> Tensor:
    """:func:`gsnn.kernels.bucketed.lin_out` by sums of messages."""
    result = collect(channels, values, _sides(plan)[1])
    if bias is not None:  # rows without an edge stay zero
        result = result + torch.cat([bias, bias.new_zeros(1)]).index_select(0, plan.edge_of_row).unsqueeze(1)
    return result if state is None or residual is None else result + residual.relu() * state
