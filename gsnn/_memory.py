"""What is said where memory runs out: what would take less of it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfMemoryError(MemoryError):
    """Memory ran out, and the message ends with what takes less."""


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """What says inside a with statement that memory ran out becomes an `OutOfMemoryError` with ``advice``.

    Python, NumPy and the compiled blocks raise MemoryError, PyTorch a RuntimeError. Where statements are
    within each other, the innermost gives its advice.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        # Whoever keeps the traceback, as notebooks do, must not keep what the failed calls have taken.
        traceback.clear_frames(error.__traceback__)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutOfMemoryError(f"out of memory; {advice} ({said})") from error


def _ran_out(error: BaseException) -> bool:
    """Whether it is about memory: by its type, or where that tells nothing, by PyTorch's words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in ("allocate memory", "not enough memory", "out of memory"))
