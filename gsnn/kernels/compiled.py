"""The compiled residual blocks of ``gsnn/kernels/csrc``, where installing the package could build them.

They compute what :mod:`gsnn.kernels.stack` computes with PyTorch's operations, for float32 and float64
on the CPU, several times faster: one pass over the function nodes reads a node's incoming edges, does
everything up to its outgoing edges in the first-level cache, and writes these. Threads take ranges of
nodes and write disjoint memory, so results do not depend on their number.
"""

import contextlib
import ctypes
import math
import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn.kernels.plan import Plan

if TYPE_CHECKING:
    from gsnn.kernels.form import Form, Weights

Tensor = torch.Tensor

#: Samples of a state row are padded to a multiple of this.
LANES = 16
# Multiplications below which a second thread costs more than it saves.
_WORTH_A_THREAD = 2_000_000
# Of `gsnn_version` in blocks.c: a library with other structures must not be called.
_VERSION = 4
_SUFFIXES = (".so", ".dll", ".pyd")
_SHARES = 16
_POOLED = 1 << 15  # elements
_LINE = 64
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
_NORMS: dict[tuple[int, ...] | None, int] = {None: 0, (1,): 1, (1, 2): 2, (2,): 3}


class _PlanArguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_places", "max_degree")),
        *((name, ctypes.c_void_p) for name in ("node", "in_ptr", "in_row", "in_weight")),
        *((name, ctypes.c_void_p) for name in ("out_ptr", "out_row", "out_weight", "out_edge")),
        ("n_fed", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("fed_row", "fed_edge")),
        ("n_unread", ctypes.c_int64),
        ("unread_row", ctypes.c_void_p),
        ("n_pad", ctypes.c_int64),
        ("pad_row", ctypes.c_void_p),
    )


_INTEGERS = ("is_double", "channels", "samples", "width", "norm", "centre")
_WEIGHTS = ("state", "in_values", "in_bias", "scale", "shift", "out_values", "out_bias", "factor")
_STRIDES = ("factor_node", "factor_channel", "factor_sample")
_FORWARD = ("result", "aside", "stat_scale", "stat_mean")
_GIVEN = ("grad", "read_grad")
_READ_STRIDES = ("read_node", "read_channel", "read_sample")
_BACKWARD = (
    *("next", "in_values_grad", "in_bias_grad", "scale_grad", "shift_grad"),
    *("out_values_grad", "out_bias_grad", "dots"),
)


class BlockArguments(ctypes.Structure):
    """One block's sizes and tensors; ``block_t`` of ``gsnn/kernels/csrc/blocks.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        ("gate", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_void_p) for name in (*_FORWARD, *_GIVEN)),
        *((name, ctypes.c_int64) for name in _READ_STRIDES),
        *((name, ctypes.c_void_p) for name in _BACKWARD),
    )


def _load() -> tuple[ctypes.CDLL | None, int]:
    built = (Path(__file__).resolve().parent / "csrc").glob("_blocks*")
    paths = [path for path in built if path.suffix in _SUFFIXES]
    if not paths or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None, 0
    path = max(paths, key=lambda path: path.stat().st_mtime)  # an older build may lie beside it
    try:
        library = ctypes.CDLL(str(path))
        current = library.gsnn_version() == _VERSION
    except (OSError, AttributeError):  # of another machine, or damaged
        current = False
    if not current:
        warnings.warn(
            f"{path.name} was built from another version of the package or for another machine and is not "
            "used: reinstall it (pip install -e .)",
            stacklevel=2,
        )
        return None, 0
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.gsnn_passes.argtypes = (ctypes.c_int, ctypes.c_int, pointer, pointer, integer, pointer, integer)
    return library, library.gsnn_level()


_library, _level = _load()


def level() -> str:
    """What was built: ``'plain'``, ``'avx2'`` or ``'avx512'`` code, or ``'none'``."""
    return "none" if _library is None else ("plain", "avx2", "avx512")[_level]


def usable(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a pass can run on these: all on the CPU, contiguous and of one supported type."""
    if _library is None:
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    dtype = given[0].dtype
    return dtype in _NUMPY and all(t.dtype is dtype and t.is_cpu and t.is_contiguous() for t in given)


class _Pool:
    """Buffers that come back when the last tensor on them dies.

    Touching memory that is new to the process takes several times longer than a pass over memory it has,
    and a step needs the same sizes every time. NumPy's large buffers lie on huge pages, PyTorch's do not.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised, of ``like``'s type."""
        size = math.prod(shape) * like.element_size()
        try:  # single steps, since threads may share a model
            buffer = self._free[size].pop()
        except (KeyError, IndexError):
            for others in list(self._free.values()):
                if others:  # other sizes are wanted now
                    with contextlib.suppress(IndexError):
                        others.pop()
                    break
            raw = np.empty(size + _LINE, np.uint8)
            start = -raw.ctypes.data % _LINE  # a row that begins in mid-line costs one line more
            buffer = raw[start : start + size]
        owned = buffer.view(_NUMPY[like.dtype]).reshape(shape)
        weakref.finalize(owned, self._give_back, buffer).atexit = False
        return torch.from_numpy(owned)

    def _give_back(self, buffer: np.ndarray) -> None:
        self._free.setdefault(buffer.nbytes, []).append(buffer)


class _Compiled:
    """A plan's index arrays as the passes read them, and the memory they recycle."""

    def __init__(self, plan: Plan) -> None:
        in_weight, out_weight = plan.in_slots.argsort(), plan.out_slots.argsort()
        out_edge = plan.out_edges[out_weight]
        n_edges = len(plan.row_of_edge)
        read, written = (torch.zeros(n_edges, dtype=torch.bool) for _ in range(2))
        read[plan.in_edges] = True
        written[plan.out_edges] = True
        fed = (~written).nonzero().flatten()
        self.work = int((plan.in_counts + plan.out_counts).sum()) + 2 * plan.n_nodes
        self.pool = _Pool()
        arrays = {
            "node": plan.order,
            "in_ptr": torch.nn.functional.pad(plan.in_counts.cumsum(0), (1, 0)),
            "in_row": plan.row_of_edge[plan.in_edges[in_weight]],
            "in_weight": in_weight,
            "out_ptr": torch.nn.functional.pad(plan.out_counts.cumsum(0), (1, 0)),
            "out_row": plan.out_slots[out_weight],
            "out_weight": out_weight,
            "out_edge": out_edge,
            "fed_row": plan.row_of_edge[fed],
            "fed_edge": fed,
            "unread_row": plan.row_of_edge[~read],
            "pad_row": (plan.edge_of_row == n_edges).nonzero().flatten(),
        }
        self.arrays = {name: array.contiguous() for name, array in arrays.items()}
        self.arguments = _PlanArguments(
            n_places=plan.n_nodes,
            max_degree=int(max(plan.in_counts.max(), plan.out_counts.max())),
            n_fed=len(fed),
            n_unread=len(self.arrays["unread_row"]),
            n_pad=len(self.arrays["pad_row"]),
            **{name: array.data_ptr() for name, array in self.arrays.items()},
        )
        self.pointer = ctypes.byref(self.arguments)


_compiled: "weakref.WeakKeyDictionary[Plan, _Compiled]" = weakref.WeakKeyDictionary()


def _of(plan: Plan) -> _Compiled:
    compiled = _compiled.get(plan)
    if compiled is None:
        compiled = _compiled[plan] = _Compiled(plan)
    return compiled


def empty(plan: Plan, shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised CPU tensor of ``like``'s type; large ones reuse the memory of the plan's earlier ones."""
    if math.prod(shape) < _POOLED:
        return torch.empty(shape, dtype=like.dtype)
    return _of(plan).pool.empty(shape, like)


_workers: ThreadPoolExecutor | None = None
_workers_lock = threading.Lock()


def _forget_workers() -> None:
    global _workers, _workers_lock
    _workers, _workers_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_forget_workers)


def _pool(threads: int) -> ThreadPoolExecutor:
    global _workers
    with _workers_lock:
        if _workers is None or _workers._max_workers < threads:
            _workers = ThreadPoolExecutor(threads, thread_name_prefix="gsnn")
        return _workers


def _run(plan: Plan, blocks: Sequence[BlockArguments], backward: int) -> None:
    """Forward (0) or backward (1) passes of blocks in turn, on ``torch.get_num_threads()`` threads."""
    assert _library is not None
    compiled = _of(plan)
    threads = torch.get_num_threads()
    if threads > 1 and compiled.work * blocks[0].channels * blocks[0].width < _WORTH_A_THREAD:
        threads = 1
    # Small shares, so that a thread that comes late does less.
    share = plan.n_nodes if threads == 1 else max(plan.n_nodes // (_SHARES * threads), 1)
    n = len(blocks)
    array = (BlockArguments * n)(*blocks)
    turns = (ctypes.c_int64 * (2 * n + 1))()
    arguments = (_level, backward, compiled.pointer, ctypes.byref(array), n, ctypes.byref(turns), share)
    waiting: list[Future[int]] = []
    try:
        for _ in range(threads - 1):
            waiting.append(_pool(threads).submit(_library.gsnn_passes, *arguments))
    except RuntimeError:  # no further thread can be started: those there are do the work
        pass
    finally:  # whatever was submitted must find nothing left to do once the tensors are gone
        failed = _library.gsnn_passes(*arguments)
    for task in waiting:
        failed |= task.result()
    if failed:
        raise MemoryError("no memory for the scratch space of a function node")


def padded(state: Tensor) -> Tensor:
    """(R, B) with columns of zeros up to a multiple of :data:`LANES`; itself where B is one."""
    missing = -state.shape[1] % LANES
    return torch.nn.functional.pad(state, (0, missing)) if missing else state


def _pointers(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _inputs(state: Tensor, w: "Weights", form: "Form", plan: Plan, samples: int) -> list[Any]:
    """The fields of :class:`BlockArguments` up to the strides of the factor."""
    strides: tuple[int, ...] = (0, 0, 0)
    if w.factor is not None:
        strides = w.factor.expand(plan.n_nodes, form.channels, samples).stride()
    gate = 0.0 if w.residual is None else max(w.residual.detach().item(), 0.0)
    sizes = (state.dtype == torch.float64, form.channels, samples, state.shape[1], _NORMS[form.dims])
    pointers = _pointers((state, *w[:6], w.factor))
    return [*sizes, form.centre, gate, *pointers, *strides]


def _in_memory(grad: Tensor) -> Tensor:
    """The gradient with every value in its place: autograd may pass zeros and minus signs as mere marks."""
    if grad._is_zerotensor():
        return torch.zeros(grad.shape, dtype=grad.dtype)
    return grad.resolve_neg()


def forward(
    state: Tensor, weights: Sequence["Weights"], form: "Form", plan: Plan, keep: bool
) -> tuple[Tensor, list[Tensor], list[Tensor | None], list[Tensor]]:
    """Run the blocks one after the other.

    Args:
        state: (R, B).
        weights: the tensors of each block.
        form: what each computes.
        plan: the network's plan.
        keep: keep the state that enters each block, for :func:`backward`.

    Returns:
        The new state (R, B); the kept states, (R, W) with W the padded B; for each block
        ``1 / sqrt(v + 1e-5)`` and the mean, (N, 1, 1) or (N, C, 1) where the norm is over the batch, else
        None and None; for ``form.aside`` the activations (N, C, B) of each block.
    """
    samples = state.shape[1]
    now = padded(state)
    kept, statistics, aside, blocks = [], [], [], []
    alive = [now]  # what the blocks point to lives until they have run
    spare: list[Tensor] = []
    for w in weights:
        result = spare.pop() if spare else empty(plan, now.shape, now)
        scale = mean = read = None
        if form.over_batch and form.dims is not None:
            shape = (plan.n_nodes, 1 if 1 in form.dims else form.channels, 1)
            scale, mean = now.new_empty(shape), now.new_empty(shape)
        if form.aside:
            read = empty(plan, (plan.n_nodes, form.channels, samples), now)
            aside.append(read)
        statistics += [scale, mean]
        outputs = _pointers((result, read, scale, mean))
        blocks.append(BlockArguments(*_inputs(now, w, form, plan, samples), *outputs))
        if keep:
            kept.append(now)
        elif len(blocks) > 1:  # the state that came in is not ours to write to
            spare.append(now)
        now = result
        alive.append(now)
    _run(plan, blocks, 0)
    # Not a view where nothing was padded, since autograd refuses to change those in place.
    return now if now.shape[1] == samples else now[:, :samples].contiguous(), kept, statistics, aside


def backward(
    grad: Tensor,
    states: Sequence[Tensor],
    weights: Sequence["Weights"],
    form: "Form",
    plan: Plan,
    read_grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[list[Tensor | None]]]:
    """Gradients of :func:`forward`.

    Args:
        grad: (R, B) for the new state.
        states: what :func:`forward` kept.
        weights, form, plan: as there.
        read_grads: (N, C, B) of each block, further gradients for the activations given aside, or None.
        needed: whether the state, then each tensor of each block, needs its gradient.

    Returns:
        The gradient (R, B) for the state, and for each block those for its tensors; None where not needed.
    """
    samples, n_fields = grad.shape[1], len(weights[0])
    grad = _in_memory(grad)
    read_grads = [None if read_grad is None else _in_memory(read_grad) for read_grad in read_grads]
    now = padded(grad.contiguous())
    # Summed by place, not by thread, so that the number of threads does not matter.
    dots = torch.empty(len(weights), plan.n_nodes + 1, dtype=torch.float64)
    grads: list[list[Tensor | None]] = []
    blocks: list[BlockArguments] = []
    alive: list[Tensor] = []  # as in the forward pass
    spare: list[Tensor] = []
    for k in range(len(weights) - 1, -1, -1):
        w, wanted = weights[k], needed[1 + k * n_fields : 1 + (k + 1) * n_fields]
        norm = wanted[2] or wanted[3]
        grads.append(
            [
                empty(plan, tensor.shape, tensor) if want and tensor is not None else None
                for want, tensor in zip((*wanted[:2], norm, norm, *wanted[4:6]), w, strict=False)
            ]
        )
        through = None
        if k > 0 or needed[0]:
            through = spare.pop() if spare else empty(plan, now.shape, now)
        alive.append(now)
        read_grad = read_grads[k]
        strides = (0, 0, 0) if read_grad is None else read_grad.stride()
        inputs = _inputs(states[k], w, form, plan, samples)
        given = (None, None, None, None, *_pointers((now, read_grad)), *strides)
        written = _pointers((through, *grads[-1], dots[k] if wanted[6] else None))
        blocks.append(BlockArguments(*inputs, *given, *written))
        if through is not None:
            if k < len(weights) - 1:  # the gradient that came from outside is not ours to write to
                spare.append(now)
            now = through
    _run(plan, blocks, 1)
    gates = [block.gate for block in reversed(blocks)]  # 0 where the residual weight lets nothing through
    sums = dots.sum(1).to(grad.dtype).unbind()
    for k, (total, gate, of_block) in enumerate(zip(sums, gates, reversed(grads), strict=True)):
        residual_wanted = needed[1 + k * n_fields + 6]
        of_block += [None if not residual_wanted else total if gate else torch.zeros_like(total), None]
    return now[:, :samples].contiguous() if needed[0] else None, grads[::-1]
