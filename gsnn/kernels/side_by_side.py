"""The residual blocks of several networks in one differentiable operation.

Every network keeps its plan, its batch and its weights, one flat vector for each; the compiled blocks of
:mod:`gsnn.kernels.compiled` run over one network after the other. What is saved is everything around them:
one operation of autograd for all networks, and arguments filled in by table instead of one by one. Each
network is computed by the very calls that would compute it alone, so the results are the same.

Captures (``Form.inside``) are a second operation before the first, of whose results they are: the backward
pass of all blocks hands each its full gradient, for whoever reads it by a hook. That of the captures then
has nothing left to do, and refuses whatever else has been added to them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from gsnn.kernels import compiled as native
from gsnn.kernels._passes import new_capture
from gsnn.kernels._side import COLUMN, WEIGHTS, Side
from gsnn.kernels.form import Form
from gsnn.kernels.registry import asked

Tensor = torch.Tensor

_POINTED = WEIGHTS[:-1]


def usable(flats: Sequence[Tensor]) -> bool:
    """Whether the compiled blocks are asked, and can read these weights."""
    return "compiled" in asked() and native.usable(flats)


def _point_to_weights(table: np.ndarray, side: Side, flats: Sequence[Tensor]) -> None:
    bases = np.array([flat.data_ptr() for flat in flats])
    for k, name in enumerate(_POINTED):
        if side.offsets[0, 0, k] >= 0:
            table[..., COLUMN[name]] = bases[:, None] + side.offsets[..., k] * flats[0].element_size()


def _fill_gates(table: np.ndarray, side: Side, flats: Sequence[Tensor]) -> None:
    if side.learnt:
        gates = table.view(np.float64)[..., COLUMN["gate"]]
        for network, flat in enumerate(flats):
            residuals = flat.detach().numpy()[side.offsets[network, :, WEIGHTS.index("residual")]]
            np.maximum(residuals, 0, out=gates[network], casting="unsafe")


def _fill_factors(table: np.ndarray, side: Side, factors: Sequence[Sequence[Tensor]] | None) -> None:
    if factors is None:
        return
    table[..., COLUMN["factor"]] = [[factor.data_ptr() for factor in of_one] for of_one in factors]
    for name, axis in (("factor_node", 0), ("factor_channel", 1), ("factor_sample", 2)):
        table[..., COLUMN[name]] = [[factor.stride(axis) for factor in of_one] for of_one in factors]


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
    values = side.channels * int(table[0, 0, COLUMN["width"]])
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
    table[..., COLUMN["state"]] = starts + pointers[:-1]
    table[..., COLUMN["result"]] = starts + pointers[1:]
    statistics = None
    if form.over_batch and form.dims is not None:
        per_node = 1 if 1 in form.dims else side.channels
        statistics = state.new_empty(2, L, side.nodes[-1] * per_node)
        step = np.arange(L) * statistics.shape[2] + np.array(side.nodes[:-1])[:, None] * per_node
        for name, one in zip(("stat_mean", "stat_scale"), statistics, strict=True):
            table[..., COLUMN[name]] = one.data_ptr() + step * state.element_size()
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
            table[network, :, COLUMN[name]] = [pair[k].data_ptr() for pair in made[network]]
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
        table[..., COLUMN["result"] : COLUMN["stat_mean"] + 1] = 0
        _point_to_weights(table, side, flats)
        table[..., COLUMN["state"]] = starts + np.array([t.data_ptr() for t in (state, *between)])
        buffers = [torch.empty_like(state) for _ in range(min(L, 2))]
        through = [buffers[(L - 1 - k) % 2] for k in range(L)]  # what block k hands to the one before
        given = [*through[1:], grad]
        table[..., COLUMN["grad"]] = starts + np.array([t.data_ptr() for t in given])
        table[..., COLUMN["next"]] = starts + np.array([t.data_ptr() for t in through])
        if not ctx.needs_input_grad[6]:
            table[:, 0, COLUMN["next"]] = 0

        sizes = [len(flat) for flat in flats]
        places = side.places(sizes)
        new = state.new_zeros if side.shared else state.new_empty  # a row for each block that shares
        grads = new(L if side.shared else 1, sum(sizes))
        for k, name in enumerate(_POINTED):
            if side.offsets[0, 0, k] >= 0:
                table[..., COLUMN[name + "_grad"]] = grads.data_ptr() + places[..., k] * item
        nodes = np.diff(side.nodes) + 1
        dot_start = np.concatenate([[0], np.cumsum(nodes)])
        dots = np.zeros((L, dot_start[-1])) if side.learnt else None
        if dots is not None:
            step = np.arange(L) * dots.shape[1] + dot_start[:-1, None]
            table[..., COLUMN["dots"]] = dots.ctypes.data + step * 8
        gates = table.view(np.float64)[..., COLUMN["gate"]]
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
