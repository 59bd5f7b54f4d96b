"""A section of the report as data: what is said, a table, pictures. The page makes HTML of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One section; all of it is text, which the page escapes.

    Attributes:
        title: its heading.
        text: paragraphs.
        note: a warning, set apart; empty for none.
        head: column names of the table; empty for no table.
        rows: its cells.
        numbers: columns that are set right.
        pictures: names of the run's figures that belong here and are shown after the table.
    """

    title: str
    text: Sequence[str]
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers: Sequence[int] = ()
    pictures: Sequence[str] = ()
