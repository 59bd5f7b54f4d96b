"""Tables of interactions as people have them: what their columns and their signs are called."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
import torch

from gsnn._delimited import Delimited, read_delimited
from gsnn._text import some_names
from gsnn.graph.types import EDGE_TYPES, EdgeType, GraphWarning

#: Column names of public interaction tables, for the ones that this package uses.
_ALIASES = {
    "source": ("source", "source_genesymbol", "from", "ENTITYA"),
    "target": ("target", "target_genesymbol", "to", "ENTITYB"),
}


#: Words for a sign, in lower case.
SIGN_WORDS = {
    **dict.fromkeys(("+", "activation", "stimulation", "activates", "stimulates", "positive"), "1"),
    **dict.fromkeys(
        ("-", "inhibition", "inhibits", "repression", "represses", "negative", "\u2212", "\u22121"), "-1"
    ),
    **dict.fromkeys(("?", "unknown"), "0"),
}


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
        if wanted is not None and wanted not in table.columns:
            raise ValueError(
                f"{where} has no column {wanted!r} for the {role}, got {some_names(map(str, table.columns))}"
            )
    chosen = {}
    for role, wanted in (("source", source), ("target", target)):
        # OmniPath's tables have accessions in 'source' and the names that people use beside them.
        aliases = _ALIASES[role]
        symbols = f"{role}_genesymbol"
        first = [symbols] if wanted is None and symbols in table.columns else []
        name = wanted or next((a for a in (*first, *aliases) if a in table.columns), None)
        if name is not None:
            chosen[role] = table[name]
    if sign is not None:
        chosen["sign"] = table[sign]
    elif "weight" not in table.columns and "sign" not in table.columns:
        marks = [
            f"{prefix}is_{kind}" for prefix in ("consensus_", "") for kind in ("stimulation", "inhibition")
        ]
        for up, down in (marks[:2], marks[2:]):
            if up in table.columns and down in table.columns:
                up_down = [table[c].map(_truth).astype(int) for c in (up, down)]
                chosen["sign"] = (up_down[0] - up_down[1]).astype(str)
                break
    if sign is not None and "weight" in table.columns:
        table = table.drop(columns="weight")
    return table.assign(**chosen)


def _truth(cell: object) -> bool:
    return str(cell).strip().lower() in ("1", "true", "t", "yes", "1.0")


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
