"""Tables of interactions as people have them: what their columns and their signs are called."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsnn._delimited import Delimited, read_delimited
from gsnn._text import some_names
from gsnn.graph.types import EDGE_TYPES, EdgeType, GraphWarning

#: Column names of public interaction tables (OmniPath, SIGNOR, CollecTRI, CORNETO, CARNIVAL), in lower case.
_ENDS = {
    "source": ("source", "source_genesymbol", "from", "entitya", "tf"),
    "target": ("target", "target_genesymbol", "to", "entityb"),
}
_SIGNS = ("sign", "effect", "interaction", "mor", "weight")
_PAIRS = (
    ("consensus_stimulation", "consensus_inhibition"),
    ("is_stimulation", "is_inhibition"),
    ("stimulation", "inhibition"),
    ("is_activation", "is_inhibition"),
)

_SIGNOR = {  # 'up-regulates', 'up-regulates activity', 'up-regulates quantity', ...
    f"{way}-regulates{what}": sign
    for way, sign, by in (
        ("up", "1", ("expression", "stabilization")),
        ("down", "-1", ("repression", "destabilization")),
    )
    for what in ("", " activity", " quantity", *(f" quantity by {how}" for how in by))
}
#: Words for a sign, in lower case.
SIGN_WORDS = {
    **dict.fromkeys(("+", "activation", "stimulation", "activates", "stimulates", "positive", "->"), "1"),
    **dict.fromkeys(("-", "inhibition", "inhibits", "repression", "represses", "negative", "-|"), "-1"),
    **dict.fromkeys(("\u2212", "\u22121"), "-1"),
    **_SIGNOR,
    **dict.fromkeys(("?", "unknown", "form complex"), "0"),
}
_TRUE, _FALSE = ("1", "true", "t", "yes", "1.0"), ("0", "false", "f", "no", "0.0", "")


def read_table(path: str | PathLike[str]) -> tuple[pd.DataFrame, Delimited]:
    """A table of text, and what it was read from.

    Raises:
        ValueError: see ``gsnn._delimited.read_delimited``; a column that is there twice.
    """
    found = read_delimited(path, commented_out=True)
    twice = sorted({name for name in found.header if found.header.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has columns more than once: {some_names(twice)}")
    return pd.DataFrame(found.rows, columns=found.header, dtype=object), found


def named_columns(
    table: pd.DataFrame, where: str, source: str | None, target: str | None, sign: str | None
) -> pd.DataFrame:
    """``table`` with its columns for the ends and the sign called source, target and sign.

    Raises:
        ValueError: a column that was asked for is not there.
    """
    for role, wanted in (("source", source), ("target", target), ("sign", sign)):
        need_column(table, where, role, wanted)
    chosen = {}
    for role, wanted in (("source", source), ("target", target)):
        name = wanted or end_column(table, role)
        if name is not None:
            chosen[role] = table[name]
    if sign is not None:
        chosen["sign"] = flags_as_signs(table[sign])
    elif "weight" not in table.columns and "sign" not in table.columns:
        if "EFFECT" in table.columns and "ENTITYA" in table.columns:  # SIGNOR's
            chosen["sign"] = table["EFFECT"]
        elif (pair := sign_pair(table)) is not None:
            chosen["sign"] = pair.astype(int).astype(str)
    if sign is not None and "weight" in table.columns:
        table = table.drop(columns="weight")
    return table.assign(**chosen)


def need_column(table: pd.DataFrame, where: str, role: str, wanted: str | None) -> None:
    """Refuse a column that was asked for and is not there.

    Raises:
        ValueError: naming the column, its role and the columns that are there.
    """
    if wanted is not None and wanted not in table.columns:
        raise ValueError(
            f"{where} has no column {wanted!r} for the {role}, got {some_names(map(str, table.columns))}"
        )


def found_column(table: pd.DataFrame, names: Sequence[str]) -> Any:
    """The first column called like one of ``names`` (lower case; the table's may be upper), or None."""
    known = {str(column).lower(): column for column in reversed(list(table.columns))}
    exact = [name for name in names if name in table.columns]
    return next((known[name] for name in (*exact, *names) if name in known), None)


def end_column(table: pd.DataFrame, role: str) -> Any:
    """The column of the sources or targets, or None.

    OmniPath's tables have accessions in 'source' and the names that people use beside them.
    """
    symbols = f"{role}_genesymbol"
    return symbols if symbols in table.columns else found_column(table, _ENDS[role])


def sign_pair(table: pd.DataFrame) -> pd.Series | None:
    """Signs 1, -1 and 0 (both or neither) from two columns such as is_stimulation and is_inhibition.

    OmniPath's consensus decides where it is there and has one; else the plain columns do.
    """
    found = None
    for names in _PAIRS:
        columns = [found_column(table, (name,)) for name in names]
        if None not in columns:
            up, down = (table[column].map(_truth).astype(int) for column in columns)
            found = up - down if found is None else found.where(found != 0, up - down)
    return found


def sign_column(table: pd.DataFrame) -> Any:
    """The column with signs, or None."""
    return found_column(table, _SIGNS)


def flags_as_signs(column: pd.Series) -> pd.Series:
    """A column of TRUE and FALSE as signs: TRUE is 1, or -1 where the column is called after an inhibition.

    FALSE is 0, not known. Other columns are returned as they are.
    """
    words = column.map(lambda cell: str(cell).strip().lower())
    if not words.isin(("true", "false", "t", "f", "yes", "no", "")).all() or not words.isin(_TRUE).any():
        return column
    down = any(part in str(column.name).lower() for part in ("inhib", "repress", "down", "neg"))
    return words.isin(_TRUE).map({True: "-1" if down else "1", False: "0"})


def _truth(cell: object) -> bool:
    word = str(cell).strip().lower()
    if word not in (*_TRUE, *_FALSE, "na", "nan", "none", "<na>"):
        raise ValueError(f"a column of yes and no must hold TRUE, FALSE, 1 or 0, got {cell!r}")
    return word in _TRUE


def refuse_repeated(edges: pd.DataFrame, found: Delimited) -> None:
    """Refuse an edge that the table has twice, naming both lines.

    Raises:
        ValueError: naming the edge and the lines.
    """
    keys = [edges["source"], edges["target"], *([edges["etype"]] if "etype" in edges.columns else [])]
    first: dict[tuple[str, ...], int] = {}
    for key, line in zip(zip(*keys, strict=True), found.lines, strict=True):
        if first.setdefault(key, line) != line:
            raise ValueError(
                f"{found.path} must hold each edge once, got several of {key[0]!r} -> {key[1]!r}: "
                f"line {first[key]} and line {line}"
            )


def add_measured(
    table: str,
    columns: Sequence[str],
    names: dict[str, list[str]],
    index: dict[EdgeType, torch.Tensor],
    weight: dict[EdgeType, np.ndarray],
    warn: bool,
) -> None:
    """Give each function node among ``columns`` that is no output an output of its name, fed by it alone.

    Adds to ``names``, ``index`` and ``weight``.
    """
    place = {name: k for k, name in enumerate(names["function"])}
    taken = set(names["output"])
    measured = [name for name in columns if name in place and name not in taken]
    if not measured:
        return
    out_of, first = EDGE_TYPES[2], len(names["output"])
    new = torch.tensor([[place[name] for name in measured], [first + k for k in range(len(measured))]])
    index[out_of] = torch.cat([index[out_of], new], 1)
    names["output"] = [*names["output"], *measured]
    weight[out_of] = np.concatenate([weight[out_of], np.ones(len(measured))])
    if warn:
        warnings.warn(
            f"{len(measured)} column(s) of {table} name function nodes; each is read as an output of the "
            f"same name that this node feeds: {some_names(measured)}",
            GraphWarning,
            stacklevel=4,
        )
