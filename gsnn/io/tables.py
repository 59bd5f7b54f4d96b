"""Result tables as delimited text that a spreadsheet opens without taking a name for a formula."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsnn._checks import whole
from gsnn._delimited import as_plain_cell
from gsnn.io.container import replacing

if TYPE_CHECKING:
    import pandas as pd


def write_table(
    table: pd.DataFrame, path: str | PathLike[str], *, digits: int = 6, index: str | None = None
) -> None:
    """Write `table` with a header line, moved into its place in one step.

    Text that a spreadsheet would evaluate, as it begins with ``=``, ``@``, or with ``+`` or ``-`` and is no
    number, gets an apostrophe in front, which the package's own readers take off again.

    Args:
        table: numbers and text.
        path: the file; commas separate the cells where it ends in ``.csv``, tabs elsewhere.
        digits: significant digits of floating-point numbers, an int of at least 1.
        index: name of the first column, which then holds the table's index, or None to leave the index out.

    Raises:
        ValueError: ``digits`` is out of its range.
    """
    import pandas as pd

    whole("digits", digits)
    if index is not None:
        table = pd.concat([pd.Series(table.index, table.index, name=index), table], axis=1)
    plain = table.rename(columns=_plain)
    for at, kind in enumerate(plain.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            column = plain.iloc[:, at].astype(object)
            text = column.map({cell: _plain(cell) for cell in column.unique()}, na_action="ignore")
            plain.isetitem(at, text.to_numpy(object))
    sep = "," if Path(path).suffix.lower() == ".csv" else "\t"
    with replacing(path) as tmp:
        plain.to_csv(tmp, sep=sep, index=False, float_format=f"%.{digits}g")


def _plain(cell: Any) -> Any:
    return as_plain_cell(cell) if isinstance(cell, str) else cell
