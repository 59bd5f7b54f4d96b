"""What a block that is run again in the backward pass must not do twice."""

import contextlib
from typing import Any

from gsnn.models.ResBlock import ResBlock


def recomputation(
    block: ResBlock,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Contexts of the forward pass and of its repetitions."""
    return contextlib.nullcontext(), _Repeating(block)


class _Repeating(contextlib.AbstractContextManager[None]):
    """Keeps a recomputed forward pass from counting its batch again, and from leaving captures.

    It may be entered any number of times, once for each backward pass.
    """

    def __init__(self, block: ResBlock) -> None:
        self._block, self._mode = block, block.capture.mode

    def __enter__(self) -> None:
        self._block.norm.updates_statistics = False
        self._found = self._block.capture.repeating(self._mode)
        self._found.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._found.__exit__(*error)
        self._block.norm.updates_statistics = True
