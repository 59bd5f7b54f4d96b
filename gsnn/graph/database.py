"""Rows of an interaction database as signed edges, with what became of every row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from gsnn._delimited import read_text
from gsnn._text import some_names
from gsnn.graph.container import GraphWarning
from gsnn.graph.interactions import (
    SIGN_WORDS,
    end_column,
    flags_as_signs,
    found_column,
    need_column,
    read_table,
    sign_column,
    sign_pair,
)

Edge: TypeAlias = tuple[str, str]

#: Columns that say how well an interaction is known, in lower case: OmniPath's, SIGNOR's, STRING's.
CONFIDENCE = ("confidence", "curation_effort", "n_references", "n_resources", "score", "combined_score")
_COMPLEX = "COMPLEX:"


@dataclass
class Row:
    """One row of a table, the edges that it states, and why it was dropped (or, of a kept one, a remark).

    ``number`` is the line of a file (from 1) or the position in a DataFrame (from 0).
    """

    table: str
    number: int
    source: str
    target: str
    sign: int = 0
    confidence: float = math.nan
    edges: list[Edge] = field(default_factory=list)
    owned: list[Edge] = field(default_factory=list)
    reason: str = ""
    kept: bool = False


def read_interactions(
    interactions: pd.DataFrame | str | PathLike[str],
    *,
    source: str | None,
    target: str | None,
    sign: str | None,
    confidence: str | None,
    min_confidence: float | None,
    split: bool,
    warn: bool,
) -> tuple[list[Row], bool]:
    """The rows of an interaction table, and whether it has signs. See :func:`gsnn.graph.build_graph.build`.

    Rows that state nothing (no name, not directed, a self interaction, too little confidence) have no edges
    and a reason.

    Raises:
        TypeError, ValueError: no table, or a table without the columns that are needed.
    """
    table, numbers, where = _opened(interactions)
    for role, wanted in (("source", source), ("target", target), ("sign", sign), ("confidence", confidence)):
        need_column(table, where, role, wanted)
    ends = {
        role: wanted or end_column(table, role) for role, wanted in (("source", source), ("target", target))
    }
    for role, column in ends.items():
        if column is None:
            raise ValueError(
                f"{where} must have a column for the {role}, got {some_names(map(str, table.columns))}; "
                f"name it with {role}="
            )
    signs, signed = _signs(table, sign, where, warn)
    confidences = _confidences(table, confidence, min_confidence, where)
    directed = found_column(table, ("is_directed", "consensus_direction"))
    directions = [True] * len(table) if directed is None else _directed(table, directed)
    names = {role: [cell_text(cell) for cell in table[column]] for role, column in ends.items()}
    members = {role: _members(table, role, names[role], split) for role in ends}
    rows = []
    for k, number in enumerate(numbers):
        u, v = names["source"][k], names["target"][k]
        row = Row("interactions", number, u, v, signs[k], confidences[k])
        if not u or not v:
            row.reason = f"no {'target' if u else 'source'}"
        elif not directions[k]:
            row.reason = "not directed"
        elif min_confidence is not None and math.isnan(confidences[k]):
            row.reason = "no confidence"
        elif min_confidence is not None and confidences[k] < min_confidence:
            row.reason = f"confidence below {min_confidence:g}"
        else:
            row.edges = [(a, b) for a in members["source"][k] for b in members["target"][k] if a != b]
            row.reason = "" if row.edges else "self interaction"
        rows.append(row)
    return rows, signed


def settle_signs(rows: Iterable[Row]) -> dict[Edge, int]:
    """The sign of each edge that the rows state. The first row with an edge owns it, later ones repeat it.

    Where signs disagree, the one with more evidence is taken: the larger sum of confidences, where every row
    of the edge has one, else the larger number of rows; 0 (not known) where both have the same. The owner's
    ``reason`` says so.
    """
    claims: dict[Edge, list[Row]] = {}
    for row in rows:
        for edge in row.edges:
            claims.setdefault(edge, []).append(row)
    signs = {}
    for edge, stated in claims.items():
        stated[0].owned.append(edge)
        found = {row.sign for row in stated} - {0}
        signs[edge] = found.pop() if len(found) == 1 else _outvoted(edge, stated) if found else 0
    for stated in claims.values():
        for row in stated:
            if not row.owned and not row.reason:  # of a complex, some edges may be new
                row.reason = f"repeats row {claims[row.edges[0]][0].number}"
    return signs


def _outvoted(edge: Edge, stated: list[Row]) -> int:
    weighed = not any(math.isnan(row.confidence) for row in stated)
    up, down = (
        sum(row.confidence if weighed else 1 for row in stated if row.sign == sign) for sign in (1, -1)
    )
    sign = (up > down) - (up < down)
    unit = "confidence" if weighed else "rows"
    votes = f"1 by {unit} {up:g}, -1 by {unit} {down:g}"
    said = f"signs of {edge[0]} -> {edge[1]} disagree: {votes}; taken as {sign}"
    stated[0].reason = f"{stated[0].reason}; {said}" if stated[0].reason else said
    return sign


def cell_text(cell: object) -> str:
    """A cell as text without blanks at its ends; missing cells are empty."""
    return "" if cell is None or cell is pd.NA or cell != cell else str(cell).strip()


def sign_of(cell: object) -> int | None:
    """1, -1 or 0 (an empty cell, or a word for 'not known'); None where a word is not understood.

    Raises:
        ValueError: a number other than 1, -1 and 0.
    """
    word = cell_text(cell).lower()
    word = SIGN_WORDS.get(word, word)
    try:
        number = float(word or 0)
    except ValueError:
        return None
    if number not in (1, -1, 0):
        raise ValueError(f"a sign must be 1, -1, 0 or a word such as activation, got {cell!r}")
    return int(number)


def _opened(given: Any) -> tuple[pd.DataFrame, list[int], str]:
    if isinstance(given, pd.DataFrame):
        return given, list(range(len(given))), "interactions"
    if not isinstance(given, str | PathLike):
        raise TypeError(f"interactions must be a pandas DataFrame or a path, got {type(given).__name__}")
    if ".sif" in [suffix.lower() for suffix in Path(given).suffixes]:
        return _read_sif(given)
    table, found = read_table(given)
    return table, found.lines, str(given)


def _read_sif(path: str | PathLike[str]) -> tuple[pd.DataFrame, list[int], str]:
    """Lines of source, relation and one or several targets, by tabs or, where there are none, by blanks."""
    cells, numbers = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if not any(parts) or line.startswith("#"):
            continue
        if len(parts) == 2:
            raise ValueError(f"{path}, line {number}: must be source, relation, target, got {line.strip()!r}")
        for target in parts[2:] or [""]:
            cells.append((parts[0], parts[1] if len(parts) > 1 else "", target))
            numbers.append(number)
    return pd.DataFrame(cells, columns=["source", "sign", "target"], dtype=object), numbers, str(path)


def _signs(table: pd.DataFrame, wanted: str | None, where: str, warn: bool = True) -> tuple[list[int], bool]:
    column = wanted
    if wanted is None:
        pair = sign_pair(table)
        if pair is not None:
            return pair.astype(int).tolist(), True
        column = sign_column(table)
        # What is called a weight may be anything; it is a sign where it has nothing else.
        if column is not None and str(column).lower() == "weight":
            numbers = pd.to_numeric(table[column], errors="coerce")
            column = column if numbers.isin([1, -1, 0]).all() else None
    if column is None:
        return [0] * len(table), False
    try:
        found = [sign_of(cell) for cell in flags_as_signs(table[column])]
    except ValueError as error:
        raise ValueError(f"{where}, column {column!r}: {error}") from None
    odd = [str(cell) for cell, sign in zip(table[column], found, strict=True) if sign is None]
    if odd and warn:
        warnings.warn(
            f"{where}, column {column!r}: {len(odd)} of {len(found)} cells are no word for a sign and are "
            f"read as 'not known': {some_names(sorted(set(odd)))}",
            GraphWarning,
            stacklevel=4,
        )
    return [sign or 0 for sign in found], True


def _confidences(table: pd.DataFrame, wanted: str | None, least: float | None, where: str) -> list[float]:
    column = wanted or found_column(table, CONFIDENCE)
    if column is None:
        if least is not None:
            raise ValueError(
                f"{where} has no column of confidences ({', '.join(CONFIDENCE)}) for min_confidence, got "
                f"{some_names(map(str, table.columns))}; name one with confidence="
            )
        return [math.nan] * len(table)
    words = table[column].map(cell_text)
    numbers = pd.to_numeric(words.replace("", None), errors="coerce")
    odd = words[numbers.isna() & (words != "")]
    if len(odd) and (least is not None or wanted is not None):
        raise ValueError(f"{where}, column {column!r}: confidences must be numbers, got {odd.iloc[0]!r}")
    return [math.nan] * len(table) if len(odd) else numbers.astype(float).tolist()


def _directed(table: pd.DataFrame, column: Any) -> list[bool]:
    return [cell_text(cell).lower() not in ("0", "0.0", "false", "f", "no") for cell in table[column]]


def _members(table: pd.DataFrame, role: str, names: list[str], split: bool) -> list[list[str]]:
    """The nodes that each name stands for: the members of a complex, else the name itself.

    OmniPath marks a complex in the accession, 'COMPLEX:P01100_P05412', beside which the gene symbols are
    'FOS_JUN'.
    """
    accessions = [cell_text(cell) for cell in table[role]] if role in table.columns else names
    members = []
    for name, accession in zip(names, accessions, strict=True):
        if split and (name.startswith(_COMPLEX) or accession.startswith(_COMPLEX)):
            parts = name.removeprefix(_COMPLEX).split("_")
            members.append(list(dict.fromkeys(part for part in parts if part)))
        else:
            members.append([name])
    return members


def read_partners(which: str, given: Any, warn: bool = True) -> tuple[list[Row], list[str], bool]:
    """Rows (input -> function, or function -> output), the names in order, and whether signs are given.

    ``which`` is ``'inputs'`` or ``'outputs'``; for what may be given see
    :func:`gsnn.graph.build_graph.build`.

    Raises:
        TypeError, ValueError: nothing that could be read as names with partners; no name at all.
    """
    pairs: list[tuple[int, str, str, int]]
    if isinstance(given, str | PathLike):
        table, found = read_table(given)
        pairs, signed = _table_pairs(which, table, found.lines, str(given), warn)
    elif isinstance(given, pd.DataFrame):
        pairs, signed = _table_pairs(which, given, list(range(len(given))), which, warn)
    elif isinstance(given, Mapping):
        pairs, signed = _mapping_pairs(which, given)
    elif isinstance(given, Iterable):
        pairs, signed = [(k, name, name, 1) for k, name in enumerate(given)], False
    else:
        raise TypeError(
            f"{which} must be a dict of names to partners, a list of names, a DataFrame or a path, got "
            f"{type(given).__name__}"
        )
    for _, name, partner, _ in pairs:
        for cell in (name, partner):
            if not isinstance(cell, str):
                raise TypeError(f"{which} must hold names as text, got {cell!r}")
        if not name:
            raise ValueError(f"{which} must not hold empty names")
    if not pairs:
        raise ValueError(f"{which} must name at least one node, got none")
    rows = []
    for number, name, partner, sign in pairs:
        ends = (name, partner) if which == "inputs" else (partner, name)
        row = Row(which, number, *ends, sign, edges=[ends] if partner else [])
        row.reason = "" if partner else f"no {'target' if which == 'inputs' else 'regulator'}"
        rows.append(row)
    return rows, list(dict.fromkeys(name for _, name, _, _ in pairs)), signed


def _mapping_pairs(which: str, given: Mapping[str, Any]) -> tuple[list[tuple[int, str, str, int]], bool]:
    pairs: list[tuple[int, str, str, int]] = []
    signed = False
    for name, partners in given.items():
        if isinstance(partners, Mapping):
            signed = True
            stated: list[tuple[str, int | None]] = [
                (partner, sign_of(sign)) for partner, sign in partners.items()
            ]
        elif isinstance(partners, str):
            stated = [(partners, 0)]
        elif isinstance(partners, Iterable):
            stated = [(partner, 0) for partner in partners]
        else:
            raise TypeError(f"{which}[{name!r}] must be a list of names, got {type(partners).__name__}")
        for partner, sign in stated or [("", 0)]:
            if sign is None:
                raise ValueError(f"{which}[{name!r}][{partner!r}] must be a sign such as 1 or -1")
            pairs.append((len(pairs), name, partner, sign))
    return pairs, signed


def _table_pairs(
    which: str, table: pd.DataFrame, numbers: list[int], where: str, warn: bool
) -> tuple[list[tuple[int, str, str, int]], bool]:
    if not len(table.columns):
        raise ValueError(f"{where} must have a column of names, got none")
    columns = list(table.columns)
    ends = [end_column(table, role) for role in ("source", "target")]
    if None in ends:  # by position: the name that this table is about, then its partner
        name, partner = columns[0], columns[1] if len(columns) > 1 else columns[0]
    else:
        name, partner = ends if which == "inputs" else ends[::-1]
    alone = name == partner
    signs, signed = _signs(table.drop(columns=[name, partner]), None, where, warn)
    cells = [[cell_text(cell) for cell in table[column]] for column in (name, partner)]
    stated = [1] * len(table) if alone else signs
    return list(zip(numbers, *cells, stated, strict=True)), signed and not alone
