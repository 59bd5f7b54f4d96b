"""X and Y as scikit-learn hands them over: columns by name where they have names, else in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from sklearn.utils import check_array

from gsnn.data.match import is_frame
from gsnn.graph.container import HeteroGraph, as_graph


@dataclass(frozen=True)
class Samples:
    """Samples to train on: x (n, N_in), y (n, N_out), and a weight and a group for each, or None."""

    x: Any
    y: np.ndarray
    weight: np.ndarray | None
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> Samples:
        """Some of them."""
        weight, groups = (None if values is None else values[rows] for values in (self.weight, self.groups))
        return Samples(self.x[rows], self.y[rows], weight, groups)

    def split(self, share: Any, seed: int) -> tuple[Samples, Samples]:
        """Those to train on and a random ``share`` of the samples, or of their groups, put aside.

        Raises:
            ValueError: no share, or one that leaves nothing.
        """
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ValueError(f"validation must be (X_val, Y_val) or a fraction in (0, 1), got {share!r}")
        splitter = ShuffleSplit if self.groups is None else GroupShuffleSplit
        parts = splitter(1, test_size=share, random_state=seed).split(self.y, groups=self.groups)
        train, held = next(parts)
        return self.take(train), self.take(held)


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
