"""Evaluate a user's function on whole arrays of samples where that provably equals one sample at a time.

Users write the mean of a node as a function of the list of its parents' values, and think of scalars when
they do: ``math.tanh(sum(p))``, ``np.mean(p)``, ``p[0] if p[0] > 0 else 0``. Handing such a function arrays
instead may fail, or worse, may quietly give something else (``p[0] - np.mean(p[0])``). Comparing a few
samples cannot tell (``p[0] if np.any(p[0] > 3) else 0``), and comparing all of them costs what the array
was to save.

So the function is given stand-ins that know element-wise arithmetic only. Whatever would let one sample
see another (reductions, indexing, shapes, methods) or would choose a branch for all samples at once
(``bool``, ``float``, comparisons that are branched on) is refused and noted, even when the function
catches the error. A function that returns without a refusal has applied the same element-wise operations
to every sample. What is left to go wrong is a function that depends on more than its argument: random
numbers, which show in the state of their generator, and other hidden state, for which some samples are
compared with scalar calls. In every other case each sample gets its own call.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn

import numpy as np

ParentFunction = Callable[[list[Any]], Any]

_NUMBER = (bool, int, float, np.integer, np.floating, np.bool_)
_FUNCTIONS = (np.where, np.clip, np.round)
_SAMPLES_COMPARED = 16
_ITEMS_SEARCHED = 100
_RTOL = 1e-9  # array and scalar loops of numpy may round differently


class _RefusedError(TypeError):
    pass


class _Trace:
    """What happened in one call with stand-ins."""

    def __init__(self, n: int):
        self.n = n
        self.refused = False

    def refuse(self) -> NoReturn:
        self.refused = True
        raise _RefusedError("not an element-wise operation")

    def apply(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = function(
            *[self.unwrap(arg) for arg in args], **{key: self.unwrap(arg) for key, arg in kwargs.items()}
        )
        many = result if isinstance(result, tuple) else (result,)
        for part in many:
            if not isinstance(part, np.ndarray) or part.shape != (self.n,) or part.dtype.kind not in "fiub":
                self.refuse()
        wrapped = tuple(_Elements(self, part) for part in many)
        return wrapped if isinstance(result, tuple) else wrapped[0]

    def unwrap(self, arg: Any) -> Any:
        if type(arg) is _Elements:
            if arg._trace is not self:
                self.refuse()
            return arg._values
        if arg is None or isinstance(arg, _NUMBER):
            return arg
        self.refuse()


class _Elements:
    """All samples of one parent, seen by the function as if they were a single number."""

    __slots__ = ("_trace", "_values")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, trace: _Trace, values: np.ndarray):
        self._trace = trace
        self._values = values

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # What a scalar call would get, so that isinstance sends the function down the branch of scalars.
        return np.float64

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or ufunc.signature is not None or kwargs:
            self._trace.refuse()
        return self._trace.apply(ufunc, inputs, {})

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in _FUNCTIONS:
            self._trace.refuse()
        return self._trace.apply(func, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array_"):  # numpy asks for these when it puts the stand-in into an object array
            raise AttributeError(name)
        self._trace.refuse()


def _operator(ufunc: np.ufunc, reflected: bool = False) -> Callable[..., Any]:
    def method(self: _Elements, *others: Any) -> Any:
        inputs = (*others, self) if reflected else (self, *others)
        return self._trace.apply(ufunc, inputs, {})

    return method


def _refusal(self: _Elements, *args: Any, **kwargs: Any) -> NoReturn:
    self._trace.refuse()


for _name, _ufunc in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "and": np.bitwise_and,
    "floordiv": np.floor_divide, "mod": np.remainder, "divmod": np.divmod, "pow": np.power,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}.items():  # fmt: skip
    setattr(_Elements, f"__{_name}__", _operator(_ufunc))
    setattr(_Elements, f"__r{_name}__", _operator(_ufunc, reflected=True))
for _name, _ufunc in {
    "neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}.items():  # fmt: skip
    setattr(_Elements, f"__{_name}__", _operator(_ufunc))
for _name in [
    "bool", "float", "int", "index", "complex", "round", "trunc", "floor", "ceil", "len", "iter", "getitem",
    "setitem", "contains", "str", "repr", "format",
]:  # fmt: skip
    setattr(_Elements, f"__{_name}__", _refusal)


class SampleFunction:
    """A user's function of parent values, evaluated on all samples.

    ``name`` is how error messages call it. Calling it with a list of K arrays (n,) returns an array (n,).
    It remembers a refusal, so that a function for scalars is tried on stand-ins once only.
    """

    def __init__(self, function: ParentFunction, name: str):
        self.function = function
        self.name = name
        self._one_by_one = False
        self._calls = 0

    def __call__(self, parents: Sequence[np.ndarray]) -> np.ndarray:
        n = len(parents[0])
        values = None
        if n > _SAMPLES_COMPARED and not self._one_by_one:
            values = self._all_at_once(parents, n)
            self._one_by_one = values is None
            self._calls += 1
        if values is None:
            values = self._samples(parents, range(n))
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values)))
            given = [float(parent[bad]) for parent in parents]
            raise ValueError(f"{self.name} must return finite numbers, got {values[bad]} for {given}")
        return values

    def _all_at_once(self, parents: Sequence[np.ndarray], n: int) -> np.ndarray | None:
        trace = _Trace(n)
        before = _random_states(self.function)
        try:
            result = self.function([_Elements(trace, values) for values in parents])
        except Exception:  # whatever it is, the scalar calls will tell whether it is the user's
            return None
        if trace.refused or _random_states(self.function) != before:
            return None
        if type(result) is _Elements:
            values = result._values.astype(np.float64)
        elif isinstance(result, bool | int | float | np.number | np.bool_) and not isinstance(
            result, complex
        ):
            values = np.full(n, float(result))
        else:
            return None
        # In a long run of calls (one a time step) the comparison gets rarer: after calls 1, 2, 4, 8, ...
        if self._calls & (self._calls - 1) == 0:
            spread = np.linspace(0, n - 1, _SAMPLES_COMPARED).astype(int)
            extremes = [
                pick(parent) for parent in parents[:_SAMPLES_COMPARED] for pick in (np.argmin, np.argmax)
            ]
            rows = np.unique(np.concatenate([spread, extremes])).tolist()
            if not np.allclose(values[rows], self._samples(parents, rows), rtol=_RTOL, atol=0):
                return None
        return values

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
