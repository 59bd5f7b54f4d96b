"""Tables that are read by rows, so that one larger than the memory can feed a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn._text import did_you_mean, some_names

if TYPE_CHECKING:
    import pandas as pd

_BLOCK_VALUES = 2**22  # values that one pass over a table holds at a time, 32 MiB in float64


class Rows:
    """A table (B, n) of floating point numbers, read by rows: ``rows[index]`` is a tensor (b, n) on the CPU.

    ``index`` is a slice or a one-dimensional tensor of row numbers, in any order, repeats allowed. The
    source is either a tensor, or anything with ``shape``, ``dtype`` and ``source[sorted row numbers]``: a
    memory map, a CSR matrix, an HDF5 dataset, the ``X`` of an AnnData that stays on disk. Of those only the
    rows asked for are read; they are checked as they come.

    Args:
        source: a tensor that was checked already, or a table as above.
        names: name of each of its n columns in the order wanted, for messages.
        kind: ``'input'``: every value must be finite; ``'output'``: NaN is allowed.
        arg: what messages call the table.
        columns: position in the source of each column; None where they are in order.
        labels: names of the rows, for messages.

    Raises:
        ValueError: on reading, NaN or infinity in an input, infinity in an output.
    """

    def __init__(
        self,
        source: Any,
        names: list[str],
        kind: str,
        arg: str,
        *,
        columns: np.ndarray | None = None,
        labels: pd.Index | None = None,
    ) -> None:
        self.in_memory = torch.is_tensor(source)
        self._source = source
        self._names, self._kind, self._arg = names, kind, arg
        self._columns = columns
        self._labels = labels
        self._at: np.ndarray | None = None  # row of the source that each row is; None: all, in order

    def __len__(self) -> int:
        return int(self._source.shape[0]) if self._at is None else len(self._at)

    def take(self, rows: torch.Tensor) -> Rows:
        """The table of these rows. Nothing is read, except from a tensor."""
        new = Rows(
            self._source, self._names, self._kind, self._arg, columns=self._columns, labels=self._labels
        )
        if self.in_memory:
            new._source = self._source[rows]
        else:
            new._at = rows.numpy() if self._at is None else self._at[rows.numpy()]
        return new

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        if self.in_memory:
            return self._source[rows]
        if isinstance(rows, slice):
            at = np.arange(*rows.indices(len(self))) if self._at is None else self._at[rows]
        else:
            at = rows.cpu().numpy() if self._at is None else self._at[rows.cpu().numpy()]
        ordered, back = np.unique(at, return_inverse=True)  # files are read in order, each row once
        values = torch.from_numpy(self._read(ordered))
        check_finite(values, self._names, self._kind, self._arg, self._labels, ordered)
        return values if np.array_equal(ordered, at) else values[torch.from_numpy(back)]

    def blocks(self) -> Iterator[torch.Tensor]:
        """All rows from first to last, in pieces that fit in memory; a tensor is one piece."""
        step = max(1, len(self) if self.in_memory else _BLOCK_VALUES // max(1, len(self._names)))
        for start in range(0, len(self), step):
            yield self[start : start + step]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the source in increasing order, as an array of their own."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            block = self._source[int(rows[0]) : int(rows[-1]) + 1]  # one stretch of the file
        else:
            block = self._source[rows]
        if hasattr(block, "toarray"):
            block = block.toarray()
        if self._columns is not None:
            block = block[:, self._columns]
        return np.array(block, dtype=float_type(np.dtype(self._source.dtype), self._arg), order="C")


def check_finite(
    values: torch.Tensor,
    names: list[str],
    kind: str,
    arg: str,
    labels: pd.Index | None,
    rows: np.ndarray | None = None,
) -> None:
    """Refuse infinities, and NaN in inputs. Messages call row i by its label or number, that of rows[i]."""
    bad = ~values.isfinite() if kind == "input" else values.isinf()
    if bool(bad.any()):
        i, column = (int(k) for k in bad.nonzero()[0])
        row = i if rows is None else int(rows[i])
        raise ValueError(
            f"{arg} must be {'finite' if kind == 'input' else 'finite or NaN'}, got "
            f"{float(values[i, column])} in column {names[column]!r}, "
            + (f"row {row}" if labels is None else f"sample {labels[row]!r}")
        )


def wrong_shape(arg: str, names: list[str], kind: str, shape: tuple[int, ...]) -> ValueError:
    """The error for a table whose columns cannot be ``names``."""
    return ValueError(
        f"{arg} must have the shape (samples, {len(names)}), one column per {kind} node, got {shape}"
    )


def match_columns(columns: pd.Index, names: list[str], kind: str, arg: str) -> None:
    """Refuse columns that are not exactly ``names``, in some order.

    Raises:
        ValueError: naming the columns that are missing, unknown or there more than once.
    """
    if not columns.is_unique:
        twice = columns[columns.duplicated()].unique()
        raise ValueError(f"{arg} has columns more than once: {some_names(twice)}")
    known = set(names)
    missing = [n for n in names if n not in columns]
    unknown = [c for c in columns if c not in known]
    if missing:
        hint = f" (columns that match no {kind} node: {some_names(unknown)})" if unknown else ""
        hint += did_you_mean(missing, unknown)
        raise ValueError(
            f"{arg} has no column for {len(missing)} {kind} node(s): {some_names(missing)}{hint}"
        )
    if unknown:
        raise ValueError(f"{arg} has {len(unknown)} column(s) that are no {kind} node: {some_names(unknown)}")


def is_read_by_rows(table: Any) -> bool:
    """Whether ``table`` stays where it is: not an array in memory, a tensor, a list or a DataFrame."""
    if isinstance(table, np.memmap) or is_anndata(table):
        return True
    if isinstance(table, np.ndarray) or torch.is_tensor(table) or hasattr(table, "index"):
        return False
    return hasattr(table, "tocsr") or all(hasattr(table, a) for a in ("shape", "dtype", "__getitem__"))


def is_anndata(table: Any) -> bool:
    """Whether ``table`` is an AnnData, without importing anndata to find out."""
    return all(hasattr(table, a) for a in ("obs_names", "var_names"))


def open_rows(table: Any, names: list[str], kind: str, arg: str) -> Rows:
    """A table for which :func:`is_read_by_rows` holds; columns of an AnnData are matched by name.

    Sparse matrices in another format than CSR are converted once, without becoming dense. A view of an
    AnnData on disk is read from the whole, as its ``X`` would load every row of the view.

    Raises:
        ValueError: a wrong shape, wrong columns, values that are no numbers; an AnnData without ``X``; a
            view of an AnnData on disk with repeated names.
    """
    rows = columns = labels = None
    if is_anndata(table):
        match_columns(table.var_names, names, kind, arg)
        if getattr(table, "is_view", False) and getattr(table, "isbacked", False):
            whole = table._adata_ref
            if not (whole.obs_names.is_unique and whole.var_names.is_unique):
                raise ValueError(
                    f"{arg} is a view of an AnnData on disk, whose obs_names and var_names must be unique"
                )
            rows = torch.as_tensor(whole.obs_names.get_indexer(table.obs_names))
            table = whole
        columns, labels = table.var_names.get_indexer(names), table.obs_names
        table = table.X
        if table is None:
            raise ValueError(f"{arg} must be an AnnData with X, got one without")
    if hasattr(table, "tocsr"):
        table = table.tocsr()
    elif getattr(table, "format", None) == "csc" and hasattr(table, "to_memory"):
        table = table.to_memory().tocsr()  # of columns on disk, every batch would read all
    float_type(np.dtype(table.dtype), arg)
    if columns is None and (len(table.shape) != 2 or table.shape[1] != len(names)):
        raise wrong_shape(arg, names, kind, tuple(table.shape))
    found = Rows(table, names, kind, arg, columns=columns, labels=labels)
    return found if rows is None else found.take(rows)


def float_type(dtype: np.dtype, arg: str) -> np.dtype:
    """The type that values are handed on in: floats keep their size, whole numbers become float64.

    Raises:
        ValueError: ``dtype`` is of no real numbers.
    """
    if dtype.kind not in "fiub":
        raise ValueError(f"{arg} must be numeric, got the dtype {dtype}")
    return np.dtype(f"f{dtype.itemsize}") if dtype.kind == "f" and dtype.itemsize <= 8 else np.dtype("f8")
