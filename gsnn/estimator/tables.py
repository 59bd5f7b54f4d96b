"""X and Y as scikit-learn hands them over: columns by name where they have names, else in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_array

from gsnn.data.match import is_frame
from gsnn.graph.container import HeteroGraph, as_graph


def text_columns(table: Any) -> list[str] | None:
    """Column names of a DataFrame if all are text; else None, as columns then go by position."""
    if not is_frame(table) or not all(isinstance(name, str) for name in table.columns):
        return None
    return list(table.columns)


def graph_of(
    given: Any, inputs: list[str] | None, n_inputs: int, outputs: list[str] | None, n_outputs: int
) -> HeteroGraph:
    """The graph, made from the names of the columns where it is a function of them.

    Columns without a name are called x0, x1, ... and y0, y1, ...

    Raises:
        TypeError: neither a graph nor a function that returns one.
    """
    if callable(given) and not hasattr(given, "edge_index_dict"):
        given = given(
            inputs or [f"x{i}" for i in range(n_inputs)], outputs or [f"y{i}" for i in range(n_outputs)]
        )
    try:
        return as_graph(given, warn=False)
    except TypeError as err:
        raise TypeError(f"graph must be a HeteroGraph or a function that returns one: {err}") from None


def numeric_inputs(X: Any, who: Any) -> Any:
    """X without names as a float array or CSR matrix (n, n_features), checked as scikit-learn checks it.

    Raises:
        ValueError, TypeError: not two-dimensional, empty, not numeric, not finite.
    """
    return check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32], estimator=who, input_name="X")


def numeric_outputs(Y: Any) -> tuple[np.ndarray, bool]:
    """Y without names as a float array (n, n_outputs), NaN allowed, and whether it was a vector (n,).

    Raises:
        ValueError: no table of real numbers.
        TypeError: a sparse matrix.
    """
    if hasattr(Y, "toarray"):
        raise TypeError("Y must be dense, got a sparse matrix")
    try:
        values = np.asarray(Y)
        if np.iscomplexobj(values):
            raise ValueError("Complex data not supported")
        values = values.astype(np.float64)
    except TypeError as err:
        raise ValueError(f"Y must be numeric: {err}") from None
    if values.ndim not in (1, 2):
        raise ValueError(f"Y must have the shape (samples,) or (samples, outputs), got {values.shape}")
    return values.reshape(len(values), -1), values.ndim == 1


def positions(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Where each of ``wanted`` stands in ``names``."""
    at = {name: k for k, name in enumerate(names)}
    return np.array([at[name] for name in wanted], dtype=np.int64)
