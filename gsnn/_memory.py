"""What is said where memory runs out: what would take less of it."""

from __future__ import annotations

import sys
import traceback
import weakref
from contextlib import ContextDecorator
from types import TracebackType
from typing import Protocol


class Recycler(Protocol):
    """Keeps memory that was used, for whoever wants as much next."""

    def release(self) -> None:
        """Keep none, neither of what it has nor of what comes back later."""


_recyclers: weakref.WeakSet[Recycler] = weakref.WeakSet()


def releases(recycler: Recycler) -> None:
    """Where memory runs out, it shall give back what it keeps."""
    _recyclers.add(recycler)


def release_recycled() -> None:
    """Whatever is kept for later use goes back to the system, as memory ran out."""
    for recycler in list(_recyclers):
        recycler.release()


class OutOfMemoryError(MemoryError):
    """Memory ran out, and the message ends with what takes less."""


class memory_advice(ContextDecorator):
    """What says inside a with statement that memory ran out becomes an `OutOfMemoryError` with ``advice``.

    Python, NumPy and the compiled blocks raise MemoryError, PyTorch a RuntimeError. Where statements are
    within each other, the innermost gives its advice. As a decorator it advises for the whole function.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, where: TracebackType | None) -> None:
        if error is None or isinstance(error, OutOfMemoryError) or not _ran_out(error):
            return
        release_recycled()
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Whoever keeps the error, as notebooks do, must not keep what the failed calls have taken. Clearing
        # their frames is not enough (each keeps what its function closes over): the traceback stays as text.
        if sys.version_info >= (3, 11):
            error.add_note("".join(traceback.format_tb(where)))
        _forget(error)
        del where
        raise OutOfMemoryError(f"out of memory; {self.advice} ({said})") from error


def _forget(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and of those it came from."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _ran_out(error: BaseException) -> bool:
    """Whether it is about memory: by its type, or where that tells nothing, by PyTorch's words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("allocate memory", "not enough memory", "out of memory")
    )
