"""Words for messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

_NAMES_SHOWN = 5


def some_names(names: Iterable[Any], show: Callable[[Any], str] = repr) -> str:
    """At most five of the names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(show(name) for name in names[:_NAMES_SHOWN]) + more


def did_you_mean(wrong: Iterable[Any], known: Iterable[Any]) -> str:
    """A hint to put behind a message: names among ``known`` that the wrong ones may stand for, or nothing.

    Names match where they differ by case, blanks, punctuation or leading zeros, or by a letter or two.
    """
    names = [str(name) for name in known]
    alike: dict[str, str] = {}
    for name in reversed(names):
        alike[_core(name)] = name
    pairs = []
    for name in list(wrong)[:_NAMES_SHOWN]:
        near = alike.get(_core(str(name))) or next(iter(get_close_matches(str(name), names, 1, 0.8)), None)
        if near is not None and near != str(name):
            pairs.append(f"{near!r} for {name!r}")
    return f"; did you mean {', '.join(pairs)}?" if pairs else ""


def _core(name: str) -> str:
    core = "".join(c for c in name.casefold() if c.isalnum())
    return core.lstrip("0") or core
