"""Checks of arguments, each with the words that all of the package uses."""

from __future__ import annotations

import math
import operator
from typing import Any


def whole(name: str, value: Any, at_least: int = 1) -> int:
    """``value`` as a Python int: ints of numpy and of anything with ``__index__`` are meant too, bool is not.

    Raises:
        ValueError: no whole number, or below ``at_least``.
    """
    number: int | None = None
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        try:
            number = operator.index(value)
        except TypeError:
            number = None
    if number is None or number < at_least:
        kind = "a positive int" if at_least == 1 else f"an int of at least {at_least}"
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return number


def one_of(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Refuse a text that is not among ``options``.

    Raises:
        ValueError: naming the options.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        ValueError: naming the argument.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def non_negative(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0.

    Raises:
        ValueError: naming the argument.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a non-negative number, got {value!r}")
