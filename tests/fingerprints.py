"""What a value is, down to its bits: two values with equal fingerprints cannot be told apart.

Used to see that a call leaves its arguments and the process as they were, and that copies are equal.
"""

import os
import random
import types
import warnings
from functools import cached_property
from pathlib import PurePath

import matplotlib.axes
import matplotlib.pyplot
import networkx as nx
import numpy as np
import pandas as pd
import torch

#: Attributes that hold what is computed on first use, addresses or unique names: no part of the value.
CACHES = {
    "_compiled_call_impl",
    "_entries",
    "_side",
    "_union",
    "_fed_rows",
    "_lists",
    "pool",
    "pointer",
    "_key",
}


def fingerprint(value, seen=()):
    """A nest of tuples that is equal for equal values."""
    if id(value) in seen:
        return ("again", type(value).__name__)
    seen = (*seen, id(value))
    if isinstance(value, torch.Tensor):
        return _tensor(value, seen)
    if isinstance(value, np.ndarray):
        content = tuple(map(repr, value.ravel().tolist())) if value.dtype == object else value.tobytes()
        return ("array", value.dtype.str, value.shape, content)
    if isinstance(value, np.generic):
        return ("scalar", value.dtype.str, value.tobytes())
    if isinstance(value, float):
        return ("float", value.hex())
    if value is None or isinstance(
        value, str | bytes | int | complex | torch.dtype | torch.device | PurePath
    ):
        return (type(value).__name__, str(value))
    if isinstance(value, pd.DataFrame):
        columns = [fingerprint(value.iloc[:, k].to_numpy(), seen) for k in range(value.shape[1])]
        return ("frame", tuple(value.columns), value.index.name, tuple(value.index), tuple(columns))
    if isinstance(value, pd.Series | pd.Index):
        return (type(value).__name__, str(value.name), fingerprint(value.to_numpy(), seen))
    return _composite(value, seen)


def _tensor(value, seen):
    if value.layout is not torch.strided:
        return ("sparse", fingerprint(value.to_dense(), seen))
    content = value.detach().cpu().contiguous().reshape(-1)
    data = content.view(torch.uint8).numpy().tobytes() if content.numel() else b""
    grad = fingerprint(value.grad, seen) if value.is_leaf and value.grad is not None else None
    return ("tensor", str(value.dtype), tuple(value.shape), data, value.requires_grad, grad)


def _composite(value, seen):
    kind = type(value).__name__
    if isinstance(value, torch.Generator):
        return (kind, fingerprint(value.get_state(), seen))
    if isinstance(value, np.random.Generator):
        return (kind, repr(value.bit_generator.state))
    if isinstance(value, torch.optim.Optimizer):
        return (kind, fingerprint(value.state_dict(), seen))
    if isinstance(value, nx.Graph):
        return (kind, repr(list(value.nodes(data=True))), repr(list(value.edges(data=True))))
    if isinstance(value, matplotlib.axes.Axes):
        return (kind, len(value.get_children()))
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | type):
        return ("named", getattr(value, "__qualname__", kind))
    if isinstance(value, dict) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        return (kind, tuple((fingerprint(k, seen), fingerprint(value[k], seen)) for k in value.keys()))  # noqa: SIM118
    if isinstance(value, set | frozenset):
        return (kind, tuple(sorted(repr(fingerprint(v, seen)) for v in value)))
    if isinstance(value, list | tuple):
        return (kind, tuple(fingerprint(v, seen) for v in value))
    inside = {**getattr(value, "__dict__", {})}
    for cls in type(value).__mro__:
        slots = getattr(cls, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__weakref__", "__dict__"):
                inside[name] = getattr(value, name)
    parts = sorted(
        (k, v) for k, v in inside.items() if not (k in CACHES or k.startswith("__") or _cached(value, k))
    )
    return (kind, tuple((k, fingerprint(v, seen)) for k, v in parts))


def _cached(value, name):
    return isinstance(getattr(type(value), name, None), cached_property)


def process_state():
    """What a library must not change: random states, defaults, environment, folder, warnings."""
    return {
        "torch's random state": fingerprint(torch.get_rng_state()),
        "numpy's random state": repr(np.random.get_state()),
        "Python's random state": hash(random.getstate()),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": (torch.is_grad_enabled(), torch.is_anomaly_enabled(), torch.is_inference_mode_enabled()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "numpy's errors": tuple(sorted(np.geterr().items())),
        "pandas' options": (pd.options.display.precision, pd.options.display.max_rows),
        "matplotlib's settings": repr(dict(matplotlib.rcParams)),
        "matplotlib's figures": tuple(matplotlib.pyplot.get_fignums()),
        "warning filters": repr(warnings.filters),
        "environment": hash(tuple(sorted(os.environ.items()))),
        "folder": os.getcwd(),
    }


def random_states():
    """The names of those that a call may move that says so."""
    return ("torch's random state", "numpy's random state", "Python's random state")
