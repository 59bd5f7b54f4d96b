"""The residual blocks of several networks in one differentiable operation.

Every network keeps its plan, its batch and its weights, one flat vector for each; the compiled blocks of
:mod:`gsnn.kernels.compiled` run over one network after the other. What is saved is everything around them:
one operation of autograd for all networks, and arguments filled in by table instead of one by one. Each
network is computed by the very calls that would compute it alone, so the results are the same.

Captures (``Form.inside``) are a second operation before the first, of whose results they are: the backward
pass of all blocks hands each its full gradient, for whoever reads it by a hook. That of the captures then
has nothing left to do, and refuses whatever else has been added to them.
"""

import ctypes
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from gsnn.kernels import compiled as native
from gsnn.kernels._passes import new_capture
from gsnn.kernels.form import Form
from gsnn.kernels.plan import Plan
from gsnn.kernels.registry import asked

Tensor = torch.Tensor

#: A block's parameters, in the order of the offsets; -1 where a block has none.
WEIGHTS = ("in_values", "in_bias", "scale", "shift", "out_values", "out_bias", "residual")
_POINTED = WEIGHTS[:-1]
#: What is worked out for given numbers of samples is kept for so many of them; a training has two.
KEPT = 16
_COLUMN = {field[0]: k for k, field in enumerate(native.BlockArguments._fields_)}


class Side:
    """Where everything lies: the rows, nodes and weights of K networks of L blocks each.

    The state is (R, W), R the rows of all networks in turn and W at least the number of samples of each,
    a multiple of :data:`gsnn.kernels.compiled.LANES`.

    Args:
        plans: the plan of each network.
        channels: C.
        offsets: (K, L, 7) int, where in its network's flat vector each of :data:`WEIGHTS` of a block
            begins, -1 for none.
        learnt: whether the residual scalars are among the weights; if not, every gate is ``gate``.
        gate: 1 for a residual that is not learnt, 0 for none.
        shared: whether all blocks have the same weights.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        channels: int,
        offsets: np.ndarray,
        learnt: bool,
        gate: float,
        shared: bool,
    ) -> None:
        self.plans = tuple(plans)
        self.channels, self.offsets, self.learnt, self.gate = channels, offsets, learnt, gate
        self.shared = shared
        self.layers = offsets.shape[1]
        self.rows = [0, *accumulate(plan.n_rows for plan in plans)]
        self.nodes = [0, *accumulate(plan.n_nodes for plan in plans)]
        self._sizes: dict[tuple[Any, ...], np.ndarray] = {}

    @cached_property
    def entries(self) -> list[int]:
        """Address of each plan as the compiled passes read it."""
        # Held by the plans themselves; the addresses live as long as these.
        return [ctypes.addressof(native._of(plan).arguments) for plan in self.plans]

    @cached_property
    def work(self) -> list[int]:
        """Multiplications of a block of each network, for one channel and sample."""
        return [native._of(plan).work for plan in self.plans]

    @cached_property
    def row_starts(self) -> np.ndarray:
        """(K, 1) first row of each network."""
        return np.array(self.rows[:-1])[:, None]

    def places(self, sizes: Sequence[int]) -> np.ndarray:
        """(K, L, 7) where the gradient of each weight lies if those of all networks lie in turn.

        Blocks that share their weights each write one, L pieces of memory as long as all networks' weights.
        """
        begin = np.array([0, *accumulate(sizes)])
        copies = np.arange(self.layers) * begin[-1] if self.shared else np.zeros(self.layers, np.int64)
        return begin[:-1, None, None] + copies[:, None] + self.offsets

    def table(self, form: Form, dtype: torch.dtype, width: int, samples: Sequence[int]) -> np.ndarray:
        """(K, L, fields) arguments of the passes, sizes and fixed gates filled in; the caller's to change."""
        key = form.dims, form.centre, dtype, width, tuple(samples)
        made = self._sizes.get(key)
        if made is None:
            made = np.zeros((len(self.plans), self.layers, len(_COLUMN)), np.int64)
            for name, value in (
                ("is_double", dtype == torch.float64),
                ("channels", self.channels),
                ("samples", np.array(samples)[:, None]),
                ("width", width),
                ("norm", native.NORMS[form.dims]),
                ("centre", form.centre),
            ):
                made[..., _COLUMN[name]] = value
            made.view(np.float64)[..., _COLUMN["gate"]] = self.gate
            if len(self._sizes) >= KEPT:
                self._sizes.clear()
            self._sizes[key] = made
        return made.copy()

    def order_of_statistics(self, per_node: int) -> Tensor:
        """(S,) for the statistics of all networks, blocks and nodes in the given order, where they lie.

        That is among those of all blocks and all networks' nodes in plan order, ``per_node`` to a node.
        """
        each = torch.arange(per_node)
        return torch.cat(
            [
                ((block * self.nodes[-1] + start + plan.rank)[:, None] * per_node + each).reshape(-1)
                for plan, start in zip(self.plans, self.nodes, strict=False)
                for block in range(self.layers)
            ]
        )


def union_plan(side: Side, edges: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> tuple[Plan, Tensor]:
    """How all networks are fed and read, over the rows of ``side``.

    Args:
        side: where everything lies.
        edges: (2, E_k) flat edges of each network.
        sizes: the numbers of function, input and output nodes of each.

    Returns:
        A plan of which only ``input_of_row`` and what :func:`gsnn.kernels.bucketed.read_outputs` reads
        hold, and the rows that the inputs feed, in the order of ``input_of_row``. Inputs and outputs are
        those of all networks in turn.
    """
    n_function, n_input, n_output = (sum(column) for column in zip(*sizes, strict=True))
    flat, rows, begin = [], [], [0, n_function, n_function + n_input]
    for edge_index, size, plan, row in zip(edges, sizes, side.plans, side.rows, strict=False):
        # Flat numbers count function, input and output nodes in turn, here and in the union.
        own = [0, size[0], size[0] + size[1]]
        shift = torch.cat([torch.full((n,), b - o) for n, b, o in zip(size, begin, own, strict=True)])
        flat.append(edge_index + shift[edge_index])
        rows.append(plan.row_of_edge + row)
        begin = [b + n for b, n in zip(begin, size, strict=True)]
    source, target = edge_index = torch.cat(flat, 1)
    row_of_edge = torch.cat(rows)
    union = Plan(edge_index, n_function, n_input, n_output)
    union.n_rows = side.rows[-1]
    padding = torch.tensor([union.n_rows - 1])  # the last network's zero row
    union.read_rows = torch.cat([row_of_edge, padding])[union.edge_of_row[union.read_rows]]
    into_output = target >= n_function + n_input
    union.output_of_row = torch.full((union.n_rows,), n_output)
    union.output_of_row[row_of_edge[into_output]] = target[into_output] - n_function - n_input
    return union, row_of_edge[(source >= n_function) & (source < n_function + n_input)]


def usable(flats: Sequence[Tensor]) -> bool:
    """Whether the compiled blocks are asked, and can read these weights."""
    return "compiled" in asked() and native.usable(flats)


def _point_to_weights(table: np.ndarray, side: Side, flats: Sequence[Tensor]) -> None:
    bases = np.array([flat.data_ptr() for flat in flats])
    for k, name in enumerate(_POINTED):
        if side.offsets[0, 0, k] >= 0:
            table[..., _COLUMN[name]] = bases[:, None] + side.offsets[..., k] * flats[0].element_size()


def _fill_gates(table: np.ndarray, side: Side, flats: Sequence[Tensor]) -> None:
    if side.learnt:
        gates = table.view(np.float64)[..., _COLUMN["gate"]]
        for network, flat in enumerate(flats):
            residuals = flat.detach().numpy()[side.offsets[network, :, WEIGHTS.index("residual")]]
            np.maximum(residuals, 0, out=gates[network], casting="unsafe")


def _fill_factors(table: np.ndarray, side: Side, factors: Sequence[Sequence[Tensor]] | None) -> None:
    if factors is None:
        return
    table[..., _COLUMN["factor"]] = [[factor.data_ptr() for factor in of_one] for of_one in factors]
    for name, axis in (("factor_node", 0), ("factor_channel", 1), ("factor_sample", 2)):
        table[..., _COLUMN[name]] = [[factor.stride(axis) for factor in of_one] for of_one in factors]


def _starts(side: Side, state: Tensor) -> np.ndarray:
    """(K, 1) bytes from the beginning of a state to each network's rows."""
    return side.row_starts * (state.shape[1] * state.element_size())


def _run(side: Side, table: np.ndarray, backward: int) -> None:
    """The passes of every network. Threads share small networks among them, and each of the large ones."""
    library = native._library
    assert library is not None
    n_networks, n_blocks, n_fields = table.shape
    turns = np.zeros((n_networks, 2 * n_blocks + 1), np.int64)
    first, turn, step, step_turn = (
        table.ctypes.data,
        turns.ctypes.data,
        n_blocks * n_fields * 8,
        turns.strides[0],
    )

    def passes(network: int, share: int) -> int:
        return library.gsnn_passes(
            native._level,
            backward,
            side.entries[network],
            first + network * step,
            n_blocks,
            turn + network * step_turn,
            share,
        )

    def work(networks: range) -> int:
        failed = 0
        for network in networks:
            failed |= passes(network, side.plans[network].n_nodes)
        return failed

    side.entries  # noqa: B018  made before threads ask for it
    threads = torch.get_num_threads()
    values = side.channels * int(table[0, 0, _COLUMN["width"]])
    sizes = [work * values for work in side.work]
    tasks: list[list[tuple[Any, ...]]]
    if threads == 1 or sum(sizes) < native._WORTH_A_THREAD:
        tasks = [[(work, range(n_networks))]]
    elif min(sizes) >= native._WORTH_A_THREAD:  # all threads share each network, one network after the other
        shares = [max(plan.n_nodes // (native._SHARES * threads), 1) for plan in side.plans]
        tasks = [[(passes, network, shares[network])] * threads for network in range(n_networks)]
    else:
        tasks = [[(work, range(k, n_networks, threads)) for k in range(min(threads, n_networks))]]
    if any([_together(some) for some in tasks]):
        raise MemoryError("no memory for the scratch space of a function node")


def _together(tasks: Sequence[tuple[Any, ...]]) -> int:
    """Call functions with their arguments on a thread each; their results, or'ed."""
    left, waiting, failed = list(tasks), [], 0
    try:
        while len(left) > 1:
            function, *arguments = left[-1]
            waiting.append(native._pool(len(tasks)).submit(function, *arguments))
            left.pop()
    except RuntimeError:  # no further thread can be started: those there are do the work
        pass
    finally:  # nothing may be at work any more once the tensors are gone
        for function, *arguments in left:
            failed |= function(*arguments)
        for task in waiting:
            failed |= task.result()
    return failed


class Captured(NamedTuple):
    """What passes inside one block of one network, each (B, N*C), nodes in the given order.

    Attributes:
        before: the result of ``lin_in``.
        aside: what ``lin_out`` reads.
    """

    before: Tensor
    aside: Tensor


class _Made(NamedTuple):
    """What a forward pass leaves: as :func:`run_side_by_side` gives it, and the states between the blocks."""

    result: Tensor
    between: Tensor
    statistics: Tensor | None
    captured: dict[int, list[Captured]]
    table: np.ndarray


@torch.no_grad()
def _forward(
    side: Side,
    form: Form,
    samples: Sequence[int],
    factors: Sequence[Sequence[Tensor]] | None,
    watched: Sequence[int],
    keep: bool,
    state: Tensor,
    flats: Sequence[Tensor],
) -> _Made:
    table = side.table(form, state.dtype, state.shape[1], samples)
    _point_to_weights(table, side, flats)
    _fill_gates(table, side, flats)
    _fill_factors(table, side, factors)
    L, starts = side.layers, _starts(side, state)
    result = torch.empty_like(state)
    between = state.new_empty(L - 1 if keep else min(L - 1, 2), *state.shape)
    inner = [between[k % len(between)] for k in range(L - 1)]
    pointers = np.array([t.data_ptr() for t in (state, *inner, result)])
    table[..., _COLUMN["state"]] = starts + pointers[:-1]
    table[..., _COLUMN["result"]] = starts + pointers[1:]
    statistics = None
    if form.over_batch and form.dims is not None:
        per_node = 1 if 1 in form.dims else side.channels
        statistics = state.new_empty(2, L, side.nodes[-1] * per_node)
        step = np.arange(L) * statistics.shape[2] + np.array(side.nodes[:-1])[:, None] * per_node
        for name, one in zip(("stat_mean", "stat_scale"), statistics, strict=True):
            table[..., _COLUMN[name]] = one.data_ptr() + step * state.element_size()
    captured = _captures(table, side, samples, state, watched, ("before", "aside"))
    _run(side, table, 0)
    return _Made(result, between, statistics, captured, table)


def _captures(
    table: np.ndarray,
    side: Side,
    samples: Sequence[int],
    like: Tensor,
    watched: Sequence[int],
    fields: tuple[str, str],
) -> dict[int, list[Captured]]:
    """Memory for two captures of every block of the watched networks, written to by the fields."""
    made = {}
    for network in watched:
        plan, size = side.plans[network], samples[network]
        made[network] = [
            Captured(*(new_capture(plan, side.channels, size, like) for _ in fields))
            for _ in range(side.layers)
        ]
        for k, name in enumerate(fields):
            table[network, :, _COLUMN[name]] = [pair[k].data_ptr() for pair in made[network]]
    return made


class _Handed:
    """The gradients at the captures that one backward pass has found, and what they were when it did."""

    def __init__(self) -> None:
        self.grads: list[tuple[Tensor, int]] = []


class _Captures(torch.autograd.Function):
    """From the state and the weights to what passes inside the blocks, computed already."""

    @staticmethod
    def forward(
        ctx: Any, handed: _Handed, made: Sequence[Tensor], state: Tensor, *flats: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.handed = handed
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        known, ctx.handed.grads = ctx.handed.grads, []
        missing = [(None, 0)] * len(grads)
        for grad, (handed, version) in zip(grads, known or missing, strict=True):
            if grad is not None and (grad is not handed or grad._version != version):
                raise RuntimeError(
                    "captures of networks side by side can be read, and their gradients, but neither be in "
                    "a loss nor have their gradients changed: train this network alone (gsnn.train.fit)"
                )
        return (None,) * len(ctx.needs_input_grad)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        side: Side,
        samples: Sequence[int],
        factors: Sequence[Sequence[Tensor]] | None,
        watched: Sequence[int],
        handed: _Handed,
        made: _Made,
        state: Tensor,
        *tensors: Tensor,  # the flat weights, then the captures
    ) -> Tensor:
        ctx.side, ctx.samples, ctx.factors = side, samples, factors  # the table points to the factors
        ctx.watched, ctx.handed, ctx.table = watched, handed, made.table
        ctx.save_for_backward(state, made.between, *tensors[: len(side.plans)])
        return made.result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        nothing = (None,) * 6
        side: Side = ctx.side
        state, between, *flats = ctx.saved_tensors
        L, starts, item = side.layers, _starts(side, state), state.element_size()
        grad = native.in_memory(grad).contiguous()
        # As the forward pass filled it in, but for what that wrote and for weights that may have moved.
        table = ctx.table.copy()
        table[..., _COLUMN["result"] : _COLUMN["stat_mean"] + 1] = 0
        _point_to_weights(table, side, flats)
        table[..., _COLUMN["state"]] = starts + np.array([t.data_ptr() for t in (state, *between)])
        buffers = [torch.empty_like(state) for _ in range(min(L, 2))]
        through = [buffers[(L - 1 - k) % 2] for k in range(L)]  # what block k hands to the one before
        given = [*through[1:], grad]
        table[..., _COLUMN["grad"]] = starts + np.array([t.data_ptr() for t in given])
        table[..., _COLUMN["next"]] = starts + np.array([t.data_ptr() for t in through])
        if not ctx.needs_input_grad[6]:
            table[:, 0, _COLUMN["next"]] = 0

        sizes = [len(flat) for flat in flats]
        places = side.places(sizes)
        new = state.new_zeros if side.shared else state.new_empty  # a row for each block that shares
        grads = new(L if side.shared else 1, sum(sizes))
        for k, name in enumerate(_POINTED):
            if side.offsets[0, 0, k] >= 0:
                table[..., _COLUMN[name + "_grad"]] = grads.data_ptr() + places[..., k] * item
        nodes = np.diff(side.nodes) + 1
        dot_start = np.concatenate([[0], np.cumsum(nodes)])
        dots = np.zeros((L, dot_start[-1])) if side.learnt else None
        if dots is not None:
            step = np.arange(L) * dots.shape[1] + dot_start[:-1, None]
            table[..., _COLUMN["dots"]] = dots.ctypes.data + step * 8
        gates = table.view(np.float64)[..., _COLUMN["gate"]]
        fields = ("before_grad", "aside_grad")
        inside = _captures(table, side, ctx.samples, state, ctx.watched, fields)
        _run(side, np.ascontiguousarray(table[:, ::-1]), 1)
        if dots is not None:
            sums = np.add.reduceat(dots, dot_start[:-1], axis=1).T * (gates > 0)
            where = places[..., WEIGHTS.index("residual")]
            grads.view(-1).numpy()[where.reshape(-1)] = sums.reshape(-1)
        total = grads[0]
        for further in grads[1:]:  # in the order in which autograd adds them up for a network alone
            total += further
        at_captures = [t for blocks in inside.values() for pair in blocks for t in pair]
        ctx.handed.grads = [(t, t._version) for t in at_captures]
        state_grad = through[0] if ctx.needs_input_grad[6] else None
        return *nothing, state_grad, *total.split(sizes), *at_captures


def run_side_by_side(
    state: Tensor,
    flats: Sequence[Tensor],
    side: Side,
    form: Form,
    samples: Sequence[int],
    factors: Sequence[Sequence[Tensor]] | None,
    watched: Sequence[int] = (),
) -> tuple[Tensor, Tensor | None, dict[int, list[Captured]]]:
    """The blocks of every network, as :func:`gsnn.kernels.stack.run_blocks` runs those of one.

    Args:
        state: (R, W) edge states of all networks, 0 beyond the samples of each.
        flats: the weights of each network, (T_k,), of the state's type, on the CPU.
        side: where everything lies.
        form: what all of the blocks compute.
        samples: how many of the W columns each network has.
        factors: for each network and block the constant factor (N, C, samples) on its channels, nodes in
            plan order, or None.
        watched: the numbers of the networks whose captures are wanted.

    Returns:
        The new state (R, W), meaningless beyond the samples of each network; where the norm is over
        the batch the mean and ``1 / sqrt(v + 1e-5)``, (2, L, sum N) or (2, L, sum N * C), nodes in plan
        order, else None; and of each watched network the captures of its blocks, which get their
        full gradients and may be in no other loss. Gradients for the result must be 0 beyond the samples.
    """
    keep = torch.is_grad_enabled() and any(flat.requires_grad for flat in (state, *flats))
    made = _forward(side, form, samples, factors, watched, keep, state, flats)
    result, captured = made.result, made.captured
    if keep:
        handed, inside = _Handed(), [t for blocks in captured.values() for pair in blocks for t in pair]
        if inside:
            inside = list(_Captures.apply(handed, inside, state, *flats))
            pairs = iter([Captured(*inside[k : k + 2]) for k in range(0, len(inside), 2)])
            captured = {k: [next(pairs) for _ in blocks] for k, blocks in captured.items()}
        arguments = side, samples, factors, watched, handed, made
        result = _Blocks.apply(*arguments, state, *flats, *inside)
    return result, made.statistics, captured
