"""Arrays, tensors and DataFrames as checked tensors, and the scaling between data and network units."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn.graph import some_names

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scaling:
    """Per-column shifts and scales: a network sees ``(x - x_mean) / x_scale`` and predicts
    ``(y - y_mean) / y_scale``.

    Each field holds one float per column, in the order of the graph's input or output nodes.
    """

    x_mean: tuple[float, ...]
    x_scale: tuple[float, ...]
    y_mean: tuple[float, ...]
    y_scale: tuple[float, ...]

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> Scaling:
        """Column means and standard deviations of x (B, N_in) and y (B, N_out), gaps (NaN) left out.

        A column without spread gets the scale 1, so that it is only shifted.
        """
        moments = []
        for table in (x, y):
            table = table.detach().to("cpu", torch.float64)
            mean = torch.nanmean(table, 0)
            scale = torch.nanmean((table - mean) ** 2, 0).sqrt()
            flat = ~(scale > 1e-9 * mean.abs())  # also true for NaN: a column without any value
            moments += [tuple(mean.nan_to_num(0.0).tolist()), tuple(scale.masked_fill(flat, 1.0).tolist())]
        return cls(*moments)

    def scale_x(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, N_in) in the units the network sees."""
        return (x - x.new_tensor(self.x_mean)) / x.new_tensor(self.x_scale)

    def scale_y(self, y: torch.Tensor) -> torch.Tensor:
        """y (B, N_out) in the units the network predicts."""
        return (y - y.new_tensor(self.y_mean)) / y.new_tensor(self.y_scale)

    def unscale_y(self, yhat: torch.Tensor) -> torch.Tensor:
        """Predictions (B, N_out) back in the units of y."""
        return yhat * yhat.new_tensor(self.y_scale) + yhat.new_tensor(self.y_mean)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON; ``Scaling.from_dict`` is the way back."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Scaling:
        return cls(**{f.name: tuple(float(v) for v in data[f.name]) for f in fields(cls)})


def scaling_of(model: torch.nn.Module) -> Scaling | None:
    """``model.scaling``: what ``fit`` or ``gsnn.io.load`` left there; None for a model in plain units."""
    return getattr(model, "scaling", None)


def set_scaling(model: Any, scaling: Scaling | None) -> None:
    """Make ``predict`` and ``gsnn.io.save`` use ``scaling``."""
    model.scaling = scaling


def is_frame(table: Any) -> bool:
    """Whether ``table`` is a DataFrame, without importing pandas to find out."""
    return hasattr(table, "columns") and hasattr(table, "index")


def node_names(model: torch.nn.Module, kind: str) -> list[str]:
    """Names of the model's nodes of one type, in the order of its columns."""
    graph: Any = model.graph
    return list(graph.node_names_dict[kind])


def as_pair(
    model: torch.nn.Module, x: Any, y: Any, x_arg: str, y_arg: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checked tensors (B, N_in) and (B, N_out); rows of two DataFrames are matched by their index.

    Raises:
        ValueError: see :func:`as_table`; samples that are in one of the two only, or no sample.
    """
    if is_frame(x) and is_frame(y) and not x.index.equals(y.index):
        for arg, table in ((x_arg, x), (y_arg, y)):
            if not table.index.is_unique:
                name = table.index[table.index.duplicated()][0]
                raise ValueError(f"{arg} has the sample {name!r} more than once")
        odd = x.index.symmetric_difference(y.index)
        if len(odd):
            raise ValueError(
                f"{x_arg} and {y_arg} must have the same samples; "
                f"{len(odd)} are in one only: {some_names(odd)}"
            )
        y = y.loc[x.index]
    xs, ys = as_table(model, x, "input", x_arg), as_table(model, y, "output", y_arg)
    if len(xs) != len(ys):
        raise ValueError(
            f"{x_arg} and {y_arg} must have the same number of rows, got {len(xs)} and {len(ys)}"
        )
    if not len(xs):
        raise ValueError(f"{x_arg} must have at least one row, got none")
    return xs, ys


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
        values = torch.as_tensor(table if torch.is_tensor(table) else np.array(table)).detach().to("cpu")
        if values.dtype == torch.bool or not values.is_floating_point():
            values = values.to(torch.float64)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise ValueError(
                f"{arg} must have the shape (samples, {len(names)}), one column per {kind} node, "
                f"got {tuple(values.shape)}"
            )
    bad = ~values.isfinite() if kind == "input" else values.isinf()
    if bool(bad.any()):
        row, col = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{arg} must be {'finite' if kind == 'input' else 'finite or NaN'}, got "
            f"{float(values[row, col])} in column {names[col]!r}, "
            + (f"row {row}" if rows is None else f"sample {rows[row]!r}")
        )
    return values


def select_columns(table: pd.DataFrame, names: list[str], kind: str, arg: str) -> pd.DataFrame:
    """``table`` with exactly the columns ``names``, in that order.

    Raises:
        ValueError: naming the columns that are missing, unknown or there more than once.
    """
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].unique()
        raise ValueError(f"{arg} has columns more than once: {some_names(twice)}")
    known = set(names)
    missing = [n for n in names if n not in table.columns]
    unknown = [c for c in table.columns if c not in known]
    if missing:
        hint = f" (columns that match no {kind} node: {some_names(unknown)})" if unknown else ""
        raise ValueError(
            f"{arg} has no column for {len(missing)} {kind} node(s): {some_names(missing)}{hint}"
        )
    if unknown:
        raise ValueError(f"{arg} has {len(unknown)} column(s) that are no {kind} node: {some_names(unknown)}")
    return table[names]
