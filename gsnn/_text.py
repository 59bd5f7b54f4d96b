"""Words for messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

_NAMES_SHOWN = 5


def some_names(names: Iterable[Any], show: Callable[[Any], str] = repr) -> str:
    """At most five of the names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(show(name) for name in names[:_NAMES_SHOWN]) + more
