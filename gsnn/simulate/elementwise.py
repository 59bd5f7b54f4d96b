"""Evaluate a user's function on whole arrays of samples where that equals one sample at a time.

Users write the mean of a node as a function of the list of its parents' values, and think of scalars when
they do: ``math.tanh(sum(p))``, ``np.mean(p)``, ``p[0] if p[0] > 0 else 0``. Handing such a function arrays
instead may fail, or worse, may quietly give something else (``p[0] - np.mean(p[0])``).

So the function is called with copies of the arrays, and the result counts only if

- it is one number per sample, or one for all, and no warning was given;
- no random generator that the function is seen to hold has moved: it would have drawn once for all samples;
- calls with single samples give the same: samples spread over all, and those where a parent, the sum of the
  parents or the result is smallest or largest, where branches part;
- calls with two halves of the samples give the same, so that no sample has seen another.

In every other case each sample gets its own call. Who knows that a function is element-wise says so by
:func:`vectorized`: where its arrays then differ from single samples, that is an error instead of slow.
"""

from __future__ import annotations

import functools
import random
import sys
import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

ParentFunction = Callable[[list[Any]], Any]
F = TypeVar("F", bound=Callable[..., Any])  # of parent values, or a method of them

_NUMBER = (bool, int, float, np.integer, np.floating, np.bool_)
_SAMPLES_COMPARED = 16
_PARENTS_COMPARED = 8
_ITEMS_SEARCHED = 100
_RTOL = 1e-9  # array and scalar loops of numpy may round differently


def vectorized(function: F) -> F:
    """Mark a function of parent values as element-wise: it may be called with all samples at once.

    Example:
        >>> import numpy as np
        >>> @vectorized
        ... def gate(parents):
        ...     return np.where(parents[0] > 0, parents[1], 0.0)
        >>> gate([1.0, 3.0]).item()
        3.0
    """
    function.vectorized = True  # type: ignore[attr-defined]
    return function


class SampleFunction:
    """A user's function of parent values, evaluated on all samples.

    ``name`` is how error messages call it. It remembers that arrays did not do, so that a function for
    scalars is tried with them once only.
    """

    def __init__(self, function: ParentFunction, name: str):
        self.function = function
        self.name = name
        self._marked = bool(getattr(function, "vectorized", False))
        self._one_by_one = False
        self._calls = 0

    def __call__(self, parents: Sequence[np.ndarray]) -> np.ndarray:
        """Its values (n,) for K arrays (n,), one for each parent."""
        n = len(parents[0])
        values = None
        if n > _SAMPLES_COMPARED and not self._one_by_one:
            values = self._all_at_once(parents)
            self._one_by_one = values is None
            self._calls += 1
        if values is None:
            if self._marked and n > _SAMPLES_COMPARED:
                raise ValueError(
                    f"{self.name} is marked vectorized, but gives for {n} samples at once something else "
                    "than for each alone"
                )
            values = self._samples(parents, range(n))
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values)))
            given = [float(parent[bad]) for parent in parents]
            raise ValueError(f"{self.name} must return finite numbers, got {values[bad]} for {given}")
        return values

    def _all_at_once(self, parents: Sequence[np.ndarray]) -> np.ndarray | None:
        """The values of all samples from one call with arrays, None where that is not the same."""
        n = len(parents[0])
        before = [] if self._marked else _random_states(self.function)
        values = self._array_call(parents)
        if values is None or (not self._marked and _random_states(self.function) != before):
            return None
        # In a long run of calls (one a time step) the comparison gets rarer: after calls 1, 2, 4, 8, ...
        if self._calls & (self._calls - 1):
            return values
        rows = _telling_rows(parents, values)
        if not np.allclose(values[rows], self._samples(parents, rows), rtol=_RTOL, atol=0, equal_nan=True):
            return None
        order = np.random.default_rng(0).permutation(n)
        for half in (order[: n // 2], order[n // 2 :]):
            alone = self._array_call([parent[half] for parent in parents])
            if alone is None or not np.allclose(values[half], alone, rtol=_RTOL, atol=0, equal_nan=True):
                return None
        return values

    def _array_call(self, parents: Sequence[np.ndarray]) -> np.ndarray | None:
        n = len(parents[0])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # single samples will give it again, if it is theirs
                result = self.function([parent.copy() for parent in parents])
        except Exception as error:
            if self._marked:
                raise ValueError(
                    f"{self.name} is marked vectorized, but failed for {n} samples at once: "
                    f"{type(error).__name__}: {error}"
                ) from error
            return None  # the scalar calls will tell whether it is the user's
        if isinstance(result, _NUMBER):
            return np.full(n, float(result))
        if isinstance(result, np.ndarray) and result.shape == (n,) and result.dtype.kind in "fiub":
            return result.astype(np.float64)
        return None

    def _samples(self, parents: Sequence[np.ndarray], rows: Sequence[int] | range) -> np.ndarray:
        values = np.empty(len(rows))
        for position, row in enumerate(rows):
            given = [parent[row] for parent in parents]
            try:
                result = self.function(list(given))
            except Exception as error:
                shown = [float(value) for value in given]
                raise ValueError(
                    f"{self.name} failed for {shown}: {type(error).__name__}: {error}"
                ) from error
            values[position] = self._as_number(result)
        return values

    def _as_number(self, result: Any) -> float:
        if isinstance(result, _NUMBER):
            return float(result)
        if getattr(result, "ndim", None) == 0 and not np.iscomplexobj(result):
            try:
                return float(result)
            except (TypeError, ValueError):
                pass
        raise TypeError(f"{self.name} must return a number, got {type(result).__name__}")


def _telling_rows(parents: Sequence[np.ndarray], values: np.ndarray) -> list[int]:
    """Samples spread over all, and those at the ends of the parents, of their sum and of the result."""
    told = [*parents[:_PARENTS_COMPARED], np.sum(parents, axis=0), values]
    extremes = [pick(array) for array in told for pick in (np.argmin, np.argmax)]
    spread = np.linspace(0, len(values) - 1, _SAMPLES_COMPARED).astype(int)
    return np.unique(np.concatenate([spread, extremes])).tolist()


def _random_states(function: Any) -> list[Hashable]:
    """The state of every random generator that the function is seen to hold, and of the global ones."""
    states: list[Hashable] = [random.getstate(), _hashable(np.random.get_state(legacy=False))]
    if "torch" in sys.modules:
        states.append(sys.modules["torch"].get_rng_state().numpy().tobytes())
    seen: set[int] = set()
    waiting = [function]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.random.Generator):
            states.append(_hashable(thing.bit_generator.state))
        elif isinstance(thing, np.random.RandomState):
            states.append(_hashable(thing.get_state(legacy=False)))
        elif isinstance(thing, random.Random):
            states.append(thing.getstate())
        elif isinstance(thing, functools.partial):
            waiting += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, types.FunctionType):
            waiting += _held_by(thing)
        elif isinstance(thing, types.MethodType):
            waiting += [thing.__func__, thing.__self__]
        elif isinstance(thing, types.BuiltinMethodType):
            waiting.append(thing.__self__)
        elif isinstance(thing, list | tuple | dict):
            waiting += list(thing.values() if isinstance(thing, dict) else thing)[:_ITEMS_SEARCHED]
        elif hasattr(thing, "__dict__") and not isinstance(thing, type | types.ModuleType):
            waiting += [vars(thing), getattr(type(thing), "__call__", None)]  # noqa: B004
    return states


def _held_by(function: Any) -> list[Any]:
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a variable that is not bound yet
            continue
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        held += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
        codes += [constant for constant in code.co_consts if hasattr(constant, "co_names")]
    return held


def _hashable(state: Any) -> Hashable:
    if isinstance(state, dict):
        return tuple((key, _hashable(value)) for key, value in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else state
