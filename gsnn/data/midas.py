"""MIDAS files, as CellNOpt has them: treatments (TR), times (DA) and values (DV) in one table."""

from __future__ import annotations

from os import PathLike
from typing import Literal

import numpy as np
import pandas as pd

from gsnn._checks import one_of
from gsnn._delimited import Delimited, read_delimited
from gsnn._text import some_names
from gsnn.data.samples import Samples, conditions, numbered
from gsnn.data.tables import GAPS

_NOTHING_DONE = ("NOCYTO", "NOINHIB", "NOLIG", "NOSTIM", "NOTREATMENT")


def read_midas(
    path: str | PathLike[str],
    *,
    time: float | None = None,
    groups: Literal["condition", "line"] = "condition",
) -> Samples:
    """Read a MIDAS file (Saez-Rodriguez et al. 2008, doi 10.1093/bioinformatics/btn018) as X, Y and groups.

    Columns ``TR:name`` become inputs, with the number in the cell as the dose and an empty cell as 0;
    ``TR:name:Inhibitors`` is called ``namei``, as CellNOpt writes inhibitors without a type. Columns that say
    that nothing was added (``TR:NOCYTO``, ``TR:NOINHIB``) are passed over. Of several cell lines
    (``TR:name:CellLine``) each becomes an input; one alone is passed over, as is a CellLine column of text.
    Columns ``DV:name`` become outputs: the value where ``DA:name``, else ``DA:ALL``, is ``time``. Names keep
    the spelling of the file.

    Args:
        path: a delimited file, compressed or not.
        time: the time to take, in the unit of the file; None: the only one besides 0.
        groups: ``'condition'``: samples with the same treatments and line, replicates, are one group;
            ``'line'``: those of one cell line are.

    Returns:
        The samples, called after what was done to them. ``targets`` has an inhibitor ``Rafi`` act on ``Raf``
        with -1, and every other treatment on the node of its own name with 1; cell lines are not in it, as
        where they act is for you to say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no TR, DA or DV columns; a cell that is no number; a time that the file does not have, or
            several and no ``time``.
    """
    one_of("groups", groups, ("condition", "line"))
    found = read_delimited(path)
    twice = sorted({name for name in found.header if found.header.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has columns more than once: {some_names(twice)}")
    treatments, lines, targets = _treatments(found)
    when, values = _columns(found, "DA"), _columns(found, "DV")
    for kind, columns in (("TR", treatments), ("DA", when), ("DV", values)):
        if not columns:
            raise ValueError(
                f"{path} must have columns {kind}:..., got {some_names(found.header)}; is it a MIDAS file?"
            )
    missing = [name for name in values if name not in when and "ALL" not in when]
    if missing:
        raise ValueError(f"{path} has no times (DA:...) for {some_names(missing)}")
    times = pd.DataFrame({name: when[name if name in when else "ALL"] for name in values})
    then = times == _chosen(times, time, str(path))
    taken = then.any(axis=1)
    x = pd.DataFrame({**treatments, **lines}).fillna(0.0)[taken]
    y = pd.DataFrame(values).where(then)[taken]
    labels = conditions(x)
    rows = pd.Index(numbered(labels), name="sample")
    if groups == "line":
        if not lines:
            raise ValueError(f"{path} has one cell line only: groups must be 'condition'")
        labels = conditions(x[list(lines)])
    return Samples(x.set_axis(rows), y.set_axis(rows), pd.Series(labels, rows, name="group"), targets)


def _treatments(
    found: Delimited,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """Numbers of each treatment and of each cell line, NaN where empty, and what the treatments act on."""
    done: dict[str, np.ndarray] = {}
    lines: dict[str, np.ndarray] = {}
    targets: dict[str, dict[str, int]] = {}
    for column in found.header:
        kind, _, name = column.partition(":")
        name, _, what = name.strip().partition(":")
        what = what.strip().lower().replace(" ", "")
        if kind != "TR" or name.upper().replace("-", "") in _NOTHING_DONE:
            continue
        if what in ("cellline", "celltype"):
            if any(_is_number(cell) for cell in found.column(column)):
                lines[name] = _numbers(found, column)
        elif what in ("inhibitor", "inhibitors"):
            done[f"{name}i"] = _numbers(found, column)
            targets[f"{name}i"] = {name: -1}
        else:
            done[name] = _numbers(found, column)
            inhibits = not what and len(name) > 1 and name.endswith("i")
            targets[name] = {name[:-1]: -1} if inhibits else {name: 1}
    return done, lines if len(lines) > 1 else {}, targets


def _columns(found: Delimited, kind: str) -> dict[str, np.ndarray]:
    columns = [column for column in found.header if column.partition(":")[0] == kind]
    return {column.partition(":")[2].strip(): _numbers(found, column) for column in columns}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(found: Delimited, column: str) -> np.ndarray:
    cells = ["nan" if cell in GAPS else cell for cell in found.column(column)]
    for cell, line in zip(cells, found.lines, strict=True):
        if not _is_number(cell):
            raise ValueError(f"{found.path}, line {line}, column {column!r}: must be a number, got {cell!r}")
    return np.array(cells, dtype=float)


def _chosen(times: pd.DataFrame, time: float | None, where: str) -> float:
    known = sorted({float(value) for value in times.to_numpy().ravel() if value == value})
    if time is None:
        later = [value for value in known if value != 0]
        if len(later) == 1:
            return later[0]
        raise ValueError(
            f"{where} has {len(later)} times besides 0: {some_names(later, '{:g}'.format)}; choose one with "
            "time="
        )
    if time not in known:
        raise ValueError(f"time must be one of {where}, {some_names(known, '{:g}'.format)}, got {time!r}")
    return float(time)
