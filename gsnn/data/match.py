"""Tables of every kind as checked rows of numbers, matched with nodes and with each other by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn._text import some_names
from gsnn.data.rows import (
    Rows,
    check_finite,
    float_type,
    is_anndata,
    is_read_by_rows,
    match_columns,
    open_rows,
    wrong_shape,
)

if TYPE_CHECKING:
    import pandas as pd


def is_frame(table: Any) -> bool:
    """Whether ``table`` is a DataFrame, without importing pandas to find out."""
    return hasattr(table, "columns") and hasattr(table, "index")


def node_names(model: torch.nn.Module, kind: str) -> list[str]:
    """Names of the model's nodes of one type, in the order of its columns."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise TypeError(
            "model must be the network itself, got a DistributedDataParallel: give its .module, or train it "
            "in a loop of your own (docs/distributed.md)"
        )
    graph: Any = model.graph
    return list(graph.node_names_dict[kind])


def as_pair(model: torch.nn.Module, x: Any, y: Any, x_arg: str, y_arg: str) -> tuple[Rows, Rows]:
    """Tables (B, N_in) and (B, N_out); rows of two that name their samples are matched by name.

    Raises:
        ValueError: see :func:`as_rows`; samples that are in one of the two only, or no sample.
    """
    names_x, names_y, order = sample_names(x), sample_names(y), None
    if names_x is not None and names_y is not None and not names_x.equals(names_y):
        for arg, names in ((x_arg, names_x), (y_arg, names_y)):
            if not names.is_unique:
                raise ValueError(f"{arg} has the sample {names[names.duplicated()][0]!r} more than once")
        odd = names_x.symmetric_difference(names_y)
        if len(odd):
            raise ValueError(
                f"{x_arg} and {y_arg} must have the same samples; "
                f"{len(odd)} are in one only: {some_names(odd)}"
            )
        order = torch.as_tensor(names_y.get_indexer(names_x))
    xs, ys = as_rows(model, x, "input", x_arg), as_rows(model, y, "output", y_arg)
    if order is not None:
        ys = ys.take(order)
    if len(xs) != len(ys):
        raise ValueError(
            f"{x_arg} and {y_arg} must have the same number of rows, got {len(xs)} and {len(ys)}"
        )
    if not len(xs):
        raise ValueError(f"{x_arg} must have at least one row, got none")
    return xs, ys


def aligned(values: Any, x: Any, arg: str) -> Any:
    """``values`` in the order of the rows of ``x``: a Series or DataFrame by name where both name their rows.

    Raises:
        ValueError: they do not name the same rows, or some twice.
    """
    names = sample_names(x)
    if names is None or not is_pandas(values) or names.equals(values.index):
        return values
    odd = names.symmetric_difference(values.index)
    if len(odd) or not (names.is_unique and values.index.is_unique):
        raise ValueError(
            f"{arg} must name the samples of x, each once; {len(odd)} are in one only: {some_names(odd)}"
        )
    return values.loc[names]


def as_weights(weights: Any, x: Any, n: int) -> torch.Tensor:
    """Weights (n,) in float64 of the n rows of ``x``; a Series is matched by name where x names its rows.

    Raises:
        ValueError: another shape or other samples, no numbers, negative or infinite ones, no positive one.
    """
    weights = aligned(weights, x, "sample_weight")
    try:
        values = np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise ValueError(f"sample_weight must be numeric: {err}") from None
    if values.shape != (n,):
        raise ValueError(f"sample_weight must have the shape ({n},), one weight a row, got {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values > 0).any()):
        raise ValueError(
            "sample_weight must be finite numbers of at least 0, not all of them zero, got "
            f"{values.min():g} to {values.max():g}"
        )
    return torch.from_numpy(values)


def is_pandas(values: Any) -> bool:
    """Whether ``values`` is a pandas Series or DataFrame, without importing pandas to find out."""
    return hasattr(values, "index") and hasattr(values, "iloc")


def sample_names(table: Any) -> pd.Index | None:
    """What the table calls its rows: the index of a DataFrame, ``obs_names`` of an AnnData, else None."""
    if is_anndata(table):
        return table.obs_names
    return table.index if is_frame(table) else None


def as_rows(model: torch.nn.Module, table: Any, kind: str, arg: str) -> Rows:
    """The table (B, n), columns in the order of the model's nodes, ready to be read by rows.

    Lists, arrays, tensors and DataFrames are copied and checked at once. Memory maps, sparse matrices,
    HDF5 datasets and AnnData stay where they are and are checked as they are read.

    Raises:
        ValueError: a wrong shape or wrong columns, values that are no numbers; for what is in memory, NaN
            or infinity in x, infinity in y.
    """
    names = node_names(model, kind)
    if is_read_by_rows(table):
        return open_rows(table, names, kind, arg)
    return Rows(as_table(model, table, kind, arg), names, kind, arg)


def as_table(model: torch.nn.Module, table: Any, kind: str, arg: str) -> torch.Tensor:
    """A checked (B, n) float tensor on the CPU, columns in the order of the model's nodes.

    Raises:
        ValueError: a wrong shape or wrong columns; NaN or infinity in x; infinity in y.
    """
    names = node_names(model, kind)
    rows: Any = None
    if is_frame(table):
        table, rows = select_columns(table, names, kind, arg), table.index
        try:
            values = torch.as_tensor(table.to_numpy(dtype=np.float64, copy=True))
        except (TypeError, ValueError) as err:
            raise ValueError(f"{arg} must be numeric: {err}") from None
    else:
        if torch.is_tensor(table):
            if table.is_complex():
                raise ValueError(f"{arg} must be numeric, got the dtype {table.dtype}")
            values = table.detach().to("cpu", None if table.is_floating_point() else torch.float64)
        else:
            try:
                array = np.asarray(table)
            except ValueError as err:
                raise ValueError(f"{arg} must be a table of numbers: {err}") from None
            values = torch.from_numpy(np.array(array, dtype=float_type(array.dtype, arg)))
        if values.ndim != 2 or values.shape[1] != len(names):
            raise wrong_shape(arg, names, kind, tuple(values.shape))
    check_finite(values, names, kind, arg, rows)
    return values


def select_columns(table: pd.DataFrame, names: list[str], kind: str, arg: str) -> pd.DataFrame:
    """``table`` with exactly the columns ``names``, in that order.

    Raises:
        ValueError: naming the columns that are missing, unknown or there more than once.
    """
    match_columns(table.columns, names, kind, arg)
    return table[names]
