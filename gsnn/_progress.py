"""How far long work has come: a bar on a terminal, elsewhere a plain line for each tenth of it.

A bar redraws itself with carriage returns, which a log file keeps by the kilobyte.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class ProgressBar:
    """Shows on standard error how many of ``total`` steps are done.

    Args:
        total: steps, those that are done already included; None where nobody knows. Without a terminal the
            one line then comes at the end.
        label: what is being done.
        shown: False shows nothing.
        done: steps that an earlier run has done.
        leave: whether a bar stays on the terminal when it is closed. Lines always stay.
    """

    def __init__(
        self, total: int | None, label: str, shown: bool = True, *, done: int = 0, leave: bool = True
    ) -> None:
        self._total, self._label, self._done = total, label, done
        self._values = ""
        self._bar: Any = None
        self._lines = shown and not sys.stderr.isatty()
        if shown and not self._lines:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=label, leave=leave, file=sys.stderr)

    def update(self, **values: float) -> None:
        """One more step is done; ``values`` are shown beside it, floats to four digits."""
        before, self._done = self._done, self._done + 1
        if self._bar is None and not self._lines:
            return
        texts = {name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in values.items()}
        if self._bar is not None:
            self._bar.set_postfix(texts, refresh=False)
            self._bar.update()
            return
        self._values = "".join(f", {name} {text}" for name, text in texts.items())
        if self._total and self._done * 10 // self._total > before * 10 // self._total:
            share = f"{100 * self._done // self._total}%"
            self._line(f"{self._done} of {self._total} ({share})")

    def skip(self, steps: int) -> None:
        """So many more steps turn out to be done already."""
        self._done += steps
        if self._bar is not None:
            self._bar.update(steps)

    def close(self) -> None:
        """No step follows."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._total is None and self._done:
            self._line(f"{self._done} done")

    def _line(self, text: str) -> None:
        sys.stderr.write(f"{self._label}: {text}{self._values}\n")
        sys.stderr.flush()


def progress(items: Iterable[T], label: str, shown: bool = True, *, total: int | None = None) -> Iterator[T]:
    """The ``items`` one by one, shown as steps; ``total`` where they do not know how many they are."""
    if total is None and isinstance(items, Sized):
        with suppress(TypeError):  # a DataLoader has a length only if its data set has one
            total = len(items)
    with closing(ProgressBar(total, label, shown, leave=False)) as bar:
        for item in items:
            yield item
            bar.update()
