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

import numpy as np
import torch

from gsnn._memory import release_recycled, releases
from gsnn.kernels.plan import Plan

Tensor = torch.Tensor

#: Samples of a state row are padded to a multiple of this.
LANES = 16
# Multiplications below which a second thread costs more than it saves.
_WORTH_A_THREAD = 2_000_000
# Of `gsnn_version` in blocks.c: a library with other structures must not be called.
_VERSION = 5
_SUFFIXES = (".so", ".dll", ".pyd")
_SHARES = 16
_POOLED = 1 << 15  # elements
LINE = 64  # bytes
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
NORMS: dict[tuple[int, ...] | None, int] = {None: 0, (1,): 1, (1, 2): 2, (2,): 3}


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


_INTEGERS = ("is_double", "channels", "samples", "width", "norm", "centre", "per_channel")
_WEIGHTS = ("state", "in_values", "in_bias", "scale", "shift", "out_values", "out_bias", "factor")
_STRIDES = ("factor_node", "factor_channel", "factor_sample")
_FORWARD = ("result", "before", "aside", "stat_scale", "stat_mean")
_GIVEN = ("grad", "read_grad")
_READ_STRIDES = ("read_node", "read_channel", "read_sample")
_BACKWARD = (
    *("before_grad", "aside_grad"),
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
        *((name, ctypes.c_void_p) for name in _FORWARD),
        ("without", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _GIVEN),
        *((name, ctypes.c_int64) for name in _READ_STRIDES),
        *((name, ctypes.c_void_p) for name in _BACKWARD),
    )


def _load() -> tuple[ctypes.CDLL | None, int]:
    built = (Path(__file__).resolve().parent / "csrc").glob("_blocks*")
    paths = [path for path in built if path.suffix in _SUFFIXES]
    if not paths or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None, 0
    # Builds of other versions may lie beside it.
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            library = ctypes.CDLL(str(path))
            current = library.gsnn_version() == _VERSION
        except (OSError, AttributeError):  # of another machine, or damaged
            continue
        if current:
            break
    else:
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
        releases(self)

    def release(self) -> None:
        """Keep none; those in use now go back to the dictionary of when they were made, which nobody asks."""
        self._free = {}

    def empty(self, shape: Sequence[int], like: Tensor, turned: bool = False) -> Tensor:
        """Uninitialised, of ``like``'s type; where ``turned``, seen with its dimensions in reverse."""
        size = math.prod(shape) * like.element_size()
        try:  # single steps, since threads may share a model
            buffer = self._free[size].pop()
        except (KeyError, IndexError):
            for others in list(self._free.values()):
                if others:  # other sizes are wanted now
                    with contextlib.suppress(IndexError):
                        others.pop()
                    break
            try:
                raw = np.empty(size + LINE, np.uint8)
            except MemoryError:  # perhaps for what is kept here or by other plans
                release_recycled()
                raw = np.empty(size + LINE, np.uint8)
            start = -raw.ctypes.data % LINE  # a row that begins in mid-line costs one line more
            buffer = raw[start : start + size]
        owned = buffer.view(_NUMPY[like.dtype]).reshape(shape)
        if turned:  # before it is a tensor: a view of one would be one to autograd too
            owned = owned.T
        weakref.finalize(owned, _give_back, self._free, buffer).atexit = False
        return torch.from_numpy(owned)


def _give_back(free: dict[int, list[np.ndarray]], buffer: np.ndarray) -> None:
    free.setdefault(buffer.nbytes, []).append(buffer)


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


def empty(plan: Plan, shape: Sequence[int], like: Tensor, turned: bool = False) -> Tensor:
    """Uninitialised CPU tensor of ``like``'s type; large ones reuse the memory of the plan's earlier ones.

    Where ``turned``, ``shape`` (n, m) is how it lies in memory and the tensor is (m, n).
    """
    if math.prod(shape) < _POOLED:
        if turned:
            return torch.empty_strided(tuple(shape)[::-1], (1, shape[1]), dtype=like.dtype)
        return torch.empty(shape, dtype=like.dtype)
    return _of(plan).pool.empty(shape, like, turned)


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


def run(plan: Plan, blocks: Sequence[BlockArguments], backward: int) -> None:
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


def in_memory(grad: Tensor) -> Tensor:
    """The gradient with every value in its place: autograd may pass zeros and minus signs as mere marks."""
    if grad._is_zerotensor():
        return torch.zeros(grad.shape, dtype=grad.dtype)
    return grad.resolve_neg()
