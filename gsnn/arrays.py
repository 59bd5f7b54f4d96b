"""Tables of every kind as checked rows of numbers, and the scaling between data and network units."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn.graph import some_names
from gsnn.rows import (
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
        return cls.of_columns(ColumnMoments.of([x]), ColumnMoments.of([y]))

    @classmethod
    def of_columns(cls, x: ColumnMoments, y: ColumnMoments) -> Scaling:
        """The same from moments that were collected block by block."""
        return cls(*x.shift_and_scale(), *y.shift_and_scale())

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
        """The scaling that :meth:`to_dict` wrote."""
        return cls(**{f.name: tuple(float(v) for v in data[f.name]) for f in fields(cls)})


class ColumnMoments:
    """Count, mean and sum of squared deviations of each column in float64, NaN left out.

    Blocks of rows are merged as in Chan, Golub & LeVeque (1983), which keeps its digits where the mean is
    large beside the spread.
    """

    def __init__(self) -> None:
        self.count: torch.Tensor | None = None

    @classmethod
    def of(cls, blocks: Iterable[torch.Tensor]) -> ColumnMoments:
        """Moments over the rows of all blocks (b, n)."""
        moments = cls()
        for block in blocks:
            moments.add(block)
        return moments

    def add(self, block: torch.Tensor) -> None:
        """Count the rows of ``block`` (b, n)."""
        block = block.detach().to("cpu", torch.float64)
        count = (~block.isnan()).sum(0, dtype=torch.float64)
        mean = torch.nanmean(block, 0).nan_to_num(0.0)
        spread = torch.nansum((block - mean) ** 2, 0)
        if self.count is None:
            self.count, self.mean, self.spread = count, mean, spread
            return
        total = self.count + count
        step, share = mean - self.mean, count / total.clamp(min=1)
        self.mean = self.mean + step * share
        self.spread = self.spread + spread + step**2 * self.count * share
        self.count = total

    def shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation; 1 instead of a deviation that is 0 or rounding error."""
        if self.count is None:
            raise ValueError("there must be at least one row to standardise by, got none")
        scale = (self.spread / self.count).sqrt()
        flat = ~(scale > 1e-9 * self.mean.abs())  # also true for NaN: a column without any value
        return tuple(self.mean.tolist()), tuple(scale.masked_fill(flat, 1.0).tolist())


@dataclass(frozen=True)
class Survey:
    """What one pass over a table (B, n) finds: ``filled`` (B,) and ``measured`` (n,), the rows and columns
    with at least one value; ``gaps``, whether filled rows have NaN; moments and a checksum where asked for.
    """

    filled: torch.Tensor
    measured: torch.Tensor
    gaps: bool
    columns: ColumnMoments
    checksum: str | None

    @classmethod
    def of(cls, rows: Rows, *, moments: bool = False, checksum: bool = False) -> Survey:
        """Read every row once, block by block, which also checks the values.

        The checksum is over shape, type and values; it does not depend on where the table is kept.
        """
        filled, measured, gaps = [], torch.zeros((), dtype=torch.bool), False
        columns, digest = ColumnMoments(), hashlib.blake2b(digest_size=16)
        for block in rows.blocks():
            seen = ~block.isnan()
            filled.append(seen.any(1))
            measured = measured | seen.any(0)
            gaps = gaps or not bool(seen[filled[-1]].all())
            if moments:
                columns.add(block)
            if checksum:
                digest.update(f"{block.dtype} {block.shape[1]}".encode() if len(filled) == 1 else b"")
                digest.update(block.contiguous().reshape(-1).view(torch.uint8).numpy())
        found = f"blake2b:{digest.hexdigest()}" if checksum else None
        return cls(torch.cat(filled), measured, gaps, columns, found)


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


class Prepared:
    """What a network sees of a table that stays where it is: ``table[rows]``, scaled, in dtype and place."""

    def __init__(
        self,
        rows: Rows,
        scale: Callable[[torch.Tensor], torch.Tensor] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._rows, self._scale, self._device, self._dtype = rows, scale, device, dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        values = self._rows[rows]
        if self._scale is not None:
            values = self._scale(values)
        return values.to(self._device, self._dtype)


def prepared(
    rows: Rows,
    scale: Callable[[torch.Tensor], torch.Tensor] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Prepared | torch.Tensor:
    """``rows`` ready for a network: all of them where they are in memory, else batch by batch."""
    table = Prepared(rows, scale, device, dtype)
    return table[:] if rows.in_memory else table


class RowDataset(torch.utils.data.Dataset):
    """Samples (x, y) as ``model`` sees them, for a ``DataLoader``: an edge inferer's, or that of an own loop.

    Takes what ``fit`` takes, matches columns and samples by name in the same way, and reads only the rows of
    a batch from memory maps, sparse matrices, HDF5 and AnnData. Values are float tensors on the CPU in the
    model's dtype, scaled where the model carries a scaling (see ``fit(standardize=True)``)::

        loader = DataLoader(RowDataset(model, x, y), batch_size=64, shuffle=True)
        MagnitudeEdgeInferer(model, model.graph).fit(loader)

    ``dataset[i]`` is one sample, (N_in,) and (N_out,); ``dataset[rows]`` with a slice, a list or a tensor of
    row numbers is a batch. Open HDF5 files cannot be shared with the worker processes of a DataLoader.

    Raises:
        ValueError: wrong shape or columns, different samples in x and y, no sample; on reading, values that
            are not finite (NaN in y means "not measured").
    """

    def __init__(self, model: torch.nn.Module, x: Any, y: Any) -> None:
        xs, ys = as_pair(model, x, y, "x", "y")
        scaling, dtype = scaling_of(model), next(model.parameters()).dtype
        cpu = torch.device("cpu")
        self._x = prepared(xs, None if scaling is None else scaling.scale_x, cpu, dtype)
        self._y = prepared(ys, None if scaling is None else scaling.scale_y, cpu, dtype)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(
        self, rows: int | slice | Sequence[int] | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(rows, slice):
            return self._x[rows], self._y[rows]
        at = torch.as_tensor(rows, dtype=torch.int64)
        if bool(((at < -len(self)) | (at >= len(self))).any()):
            raise IndexError(f"row numbers must be below {len(self)}, got {rows}")
        at = at % len(self)
        x, y = self._x[at.reshape(-1)], self._y[at.reshape(-1)]
        return (x[0], y[0]) if at.ndim == 0 else (x, y)

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What a DataLoader calls: one read for the whole batch, handed over sample by sample."""
        return list(zip(*self[rows], strict=True))
