"""Which kernel runs a stack of blocks, and how to choose another.

Example::

    from gsnn import kernels

    kernels.chosen(model, x)      # [Choice(kernel='compiled', why_not={...}), ...], one for each block
    with kernels.use("torch"):    # inside; without "with" from now on
        model(x)

Kernels are asked in the order of :data:`KERNELS` up to ``torch``, which takes everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gsnn.kernels.compiled_blocks import CompiledBlocks
from gsnn.kernels.form import Form, Weights
from gsnn.kernels.interface import BlockKernel
from gsnn.kernels.operations import Operations
from gsnn.kernels.plan import Plan
from gsnn.kernels.reference import Reference
from gsnn.kernels.scatter_blocks import ScatterBlocks

#: Name -> kernel. A new one stands before ``torch``, those that are asked only on demand after it.
KERNELS: dict[str, BlockKernel] = {
    kernel.name: kernel for kernel in (CompiledBlocks(), Operations(), Reference(), ScatterBlocks())
}
#: What :class:`Choice` calls a block whose steps are operations of their own, which no kernel runs.
SEPARATE = "separate"

_names = list(KERNELS)
_DEFAULT = tuple(KERNELS[name] for name in _names[: _names.index("torch") + 1])
_order: tuple[BlockKernel, ...] = _DEFAULT


class use:
    """Ask the kernel ``name`` first, for the whole process, until another call; with ``with`` inside it only.

    Args:
        name: one of :data:`KERNELS`, or None for the usual order. What the kernel refuses (tensors on another
            device, say) is run by ``torch``; :func:`chosen` says so.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the kernel cannot run on this machine.

    Example:
        >>> with use("torch"):
        ...     asked()
        ('torch',)
    """

    def __init__(self, name: str | None) -> None:
        global _order
        if name is not None and name not in KERNELS:
            raise ValueError(f"name must be one of {', '.join(KERNELS)}, or None, got {name!r}")
        self._before = _order
        if name is None:
            _order = _DEFAULT
            return
        kernel = KERNELS[name]
        why = kernel.missing()
        if why is not None:
            raise RuntimeError(f"the kernel {name!r} cannot run here: {why}")
        _order = (kernel,) if name in ("torch", "reference") else (kernel, KERNELS["torch"])

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> None:
        global _order
        _order = self._before


def asked() -> tuple[str, ...]:
    """The names of the kernels that are asked now, the first first."""
    return tuple(kernel.name for kernel in _order)


def pick(state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan) -> BlockKernel:
    """The first of the kernels asked now that does not refuse; the last one takes everything."""
    for kernel in _order[:-1]:
        if kernel.refuses(state, blocks, form, plan) is None:
            return kernel
    return _order[-1]


@dataclass(frozen=True)
class Choice:
    """What runs one block.

    Attributes:
        kernel: its name, or :data:`SEPARATE`.
        why_not: name -> reason, for every other kernel.
    """

    kernel: str
    why_not: dict[str, str] = field(default_factory=dict)


def chosen(model: Any, x: Any) -> list[Choice]:
    """What would run each block of ``model(x)`` now, and why no other kernel would. Nothing is computed.

    Args:
        model: a :class:`gsnn.models.GSNN.GSNN` or :class:`gsnn.models.SideBySide.SideBySide` (whose choices
            are those of all members in turn), or anything with its ``kernel_cases(x)``.
        x: as the model takes it.

    Raises:
        TypeError: ``model`` has no ``kernel_cases``.
    """
    if not hasattr(model, "kernel_cases"):
        raise TypeError(f"model must be a GSNN or SideBySide, got {type(model).__name__}")
    choices = []
    for separate, state, weights, form, plan in model.kernel_cases(x):
        if separate is not None:
            choices.append(Choice(SEPARATE, dict.fromkeys(KERNELS, separate)))
            continue
        taken = pick(state, [weights], form, plan)
        refused = taken.refuses(state, [weights], form, plan)
        why_not = {
            name: kernel.missing()
            or kernel.refuses(state, [weights], form, plan)
            or ("asked after " + repr(taken.name) if kernel in _order else f"use({name!r}) was not called")
            for name, kernel in KERNELS.items()
            if kernel is not taken
        }
        if refused is not None:  # the last of those asked is no kernel for this
            why_not[taken.name] = refused
        choices.append(Choice(taken.name if refused is None else SEPARATE, why_not))
    return choices
