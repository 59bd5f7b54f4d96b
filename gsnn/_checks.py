"""Checks of arguments, each with the words that all of the package uses."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Collection
from typing import Any


def whole(name: str, value: Any, at_least: int = 1) -> int:
    """``value`` as a Python int: ints of numpy and of anything with ``__index__`` are meant too, bool is not.

    Raises:
        ValueError: no whole number, or below ``at_least``.
    """
    number: int | None = None
    if not isinstance(value, bool) and not str(getattr(value, "dtype", "")).endswith("bool"):
        try:
            number = operator.index(value)
        except TypeError:
            number = None
    if number is None or number < at_least:
        kind = "a positive int" if at_least == 1 else f"an int of at least {at_least}"
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return number


def one_of(name: str, value: Any, options: Collection[str]) -> None:
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
    if not 0 < _real(value) < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def non_negative(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0.

    Raises:
        ValueError: naming the argument.
    """
    if not 0 <= _real(value) < math.inf:
        raise ValueError(f"{name} must be a non-negative number, got {value!r}")


def within(name: str, value: Any, interval: str) -> None:
    """Refuse what is no number in an interval such as ``"[0, 1)"``.

    Raises:
        ValueError: naming the argument and the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    number = _real(value)
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def finite(name: str, value: Any) -> None:
    """Refuse what is no finite number.

    Raises:
        ValueError: naming the argument.
    """
    if not math.isfinite(_real(value)):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _real(value: Any) -> float:
    """``value`` as a float, numbers of numpy too; NaN, which no comparison accepts, for bool and all else."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if real else math.nan
