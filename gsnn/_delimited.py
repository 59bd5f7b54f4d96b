"""Delimited text files as rows of text: one reader for every table, which loses nothing in silence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

SEPARATORS = ("\t", ",", ";")
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# What a spreadsheet evaluates when a cell begins with it; numbers and lone signs are harmless.
_EVALUATED = re.compile(r"[=@\t\r]|[+-](?!$|[0-9.]+(?:[eE][+-]?[0-9]+)?$|inf(?:inity)?$)")
_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon"}


@dataclass(frozen=True)
class Delimited:
    """A header, rows of as many cells, and the line (from 1) that each row stands in.

    Cells are text without blanks at either end (no-break spaces too), in Unicode's composed form (NFC).
    ``respelt`` holds, for a cell that this changed, what the file has.
    """

    path: str
    separator: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    respelt: dict[str, set[str]]

    def column(self, name: str) -> list[str]:
        """The cells of the column ``name``."""
        at = self.header.index(name)
        return [row[at] for row in self.rows]


def read_delimited(path: str | PathLike[str], *, commented_out: bool = False) -> Delimited:
    """Read a table with a header line.

    Compression (gzip, bzip2, xz, zip with one file, zstd) is told by the content, not by the name. Text is
    UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one. The separator is the one that the
    ending promises (comma for ``.csv``, tab otherwise) unless the header has none of it and has another. A
    cell may be quoted as pandas and spreadsheets do; a quote elsewhere is an ordinary character, and no cell
    goes past the end of its line. Empty lines are passed over, and so are lines that begin with ``#`` and
    have another number of cells than the table; with ``commented_out`` all of these below the header.

    A header one name short of the rows, as R writes it, gets an empty first name.

    Raises:
        ValueError: naming the file and why: no text, another encoding, no header, or the line that has more
            or fewer cells than the header.
        ImportError: a zstd file without the package ``zstandard``.
    """
    text = read_text(path)
    numbered = [
        (number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()
    ]
    plain = [(number, line) for number, line in numbered if not line.startswith("#")]
    if not plain:
        raise ValueError(f"{path} must have a header line, got an empty file")
    separator = _separator(path, plain[0][1])
    start = numbered.index(plain[0])
    header = _cells(plain[0][1], separator, None)
    width = len(_cells(plain[1][1], separator, None)) if len(plain) > 1 else len(header)
    if start and len(_cells(numbered[start - 1][1], separator, None)) == len(header) > 1:
        start -= 1  # '#source target' is a header, not a remark
        header = _cells(numbered[start][1][1:], separator, None)
    respelt: dict[str, set[str]] = {}
    rows, lines = [], []
    for number, line in numbered[start + 1 :]:
        if commented_out and line.startswith("#"):
            continue
        cells = _cells(line, separator, len(header))
        if len(cells) == len(header) + 1 == width:
            header = ["", *header]
        if len(cells) != len(header):
            if line.startswith("#"):
                continue
            raise ValueError(
                f"{path}, line {number}: {len(cells)} cells where the header has {len(header)} "
                f"(separated by {_NAMES[separator]}s); an empty cell at the end needs its separator too"
            )
        rows.append([_clean(cell, respelt) for cell in cells])
        lines.append(number)
    header = [_clean(name, respelt) for name in header]
    return Delimited(str(path), separator, header, rows, lines, respelt)


def read_text(path: str | PathLike[str]) -> str:
    """The text of a file, plain or compressed.

    Raises:
        ValueError, ImportError: see :func:`read_delimited`.
    """
    return _decoded(_unpacked(Path(path).read_bytes(), path), path)


def twins(names: Sequence[str], respelt: dict[str, set[str]]) -> list[str]:
    """Names that a table spells in two ways, each said in words.

    Those that differ by blanks or by composed characters have become one; those that differ by case have not.
    """
    said = []
    known = set(names)
    for name in sorted(known & set(respelt)):
        forms = sorted({repr(form) for form in respelt[name]})
        said.append(f"{', '.join(forms)} taken for {name!r}")
    folded: dict[str, list[str]] = {}
    for name in sorted(known):
        folded.setdefault(name.casefold(), []).append(name)
    said += [
        f"{' and '.join(map(repr, group))} differ only by case and are different nodes"
        for group in folded.values()
        if len(group) > 1
    ]
    return said


def as_plain_cell(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula.

    An apostrophe is put before text that begins with ``=``, ``@``, a tab or a carriage return, or with ``+``
    or ``-`` and is neither that sign alone nor a number. Reading a table takes it off again.
    """
    return f"'{text}" if _EVALUATED.match(text) else text


def _clean(cell: str, respelt: dict[str, set[str]]) -> str:
    name = cell.strip()
    if not name.isascii():
        name = unicodedata.normalize("NFC", name).strip("\ufeff\u200b ")
    if name.startswith("'") and _EVALUATED.match(name[1:]):
        name = name[1:]
    if name != cell:
        respelt.setdefault(name, set()).add(cell)
    return name


def _cells(line: str, separator: str, expected: int | None) -> list[str]:
    """The cells of one line; quotes count only where they close again and the cells come out right."""
    plain = line.split(separator)
    if '"' not in line:
        return plain
    enclosed = re.compile(rf'"((?:[^"]|"")*)"(?={separator}|$)')
    quoted, at = [], 0
    while at <= len(line):
        found = enclosed.match(line, at)
        if found:
            cell, at = found[1].replace('""', '"'), found.end() + 1
        else:  # a quote that does not close, or closes within a cell, is text
            cell = line[at:].split(separator, 1)[0]
            at += len(cell) + 1
        quoted.append(cell)
    if expected is not None and len(quoted) != expected and len(plain) == expected:
        return plain
    return quoted


def _separator(path: str | PathLike[str], header: str) -> str:
    promised = "," if ".csv" in [suffix.lower() for suffix in Path(path).suffixes[-2:]] else "\t"
    if promised in header:
        return promised
    counts = {separator: header.count(separator) for separator in SEPARATORS}
    best = max(SEPARATORS, key=counts.__getitem__)
    return best if counts[best] else promised


def _unpacked(raw: bytes, path: str | PathLike[str]) -> bytes:
    try:
        if raw.startswith(b"\x1f\x8b"):
            return gzip.decompress(raw)
        if raw.startswith(b"BZh"):
            try:
                return bz2.decompress(raw)
            except ValueError as error:  # cut short
                raise EOFError(str(error)) from None
        if raw.startswith(b"\xfd7zXZ\x00"):
            return lzma.decompress(raw)
        if raw.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1 or "[Content_Types].xml" in names or "xl/workbook.xml" in names:
                    what = (
                        "a spreadsheet" if "xl/workbook.xml" in names else f"an archive of {len(names)} files"
                    )
                    raise ValueError(f"{path} is {what}, not a table: save it as tab-separated text")
                return archive.read(names[0])
    except (RuntimeError, OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is compressed but damaged: {error}") from None
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError as error:
            raise ImportError(f"{path} is zstd-compressed: pip install 'gsnn[zstd]' to read it") from error
        parts = []
        while raw:  # a file may be several frames, one after the other
            frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                parts.append(frame.decompress(raw))
            except zstandard.ZstdError as error:
                raise ValueError(f"{path} is compressed but damaged: {error}") from None
            if not frame.eof:
                raise ValueError(f"{path} is compressed but damaged: it ends too early")
            raw = frame.unused_data
        return b"".join(parts)
    return raw


def _decoded(raw: bytes, path: str | PathLike[str]) -> str:
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8-sig")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise ValueError(f"{path} begins as {encoding} text but is damaged: {error}") from None
        shown = raw[error.start : error.start + 1].hex()
        other = "utf-16 (without a byte order mark)" if b"\x00" in raw[:200] else "latin-1 or cp1252"
        raise ValueError(
            f"{path} is not UTF-8 text (byte 0x{shown} at {error.start}); {other} would read it: save it as "
            "UTF-8"
        ) from None
    if "\x00" in text:
        raise ValueError(
            f"{path} is no text table: it holds NUL characters (UTF-16 without a byte order mark?)"
        )
    return text
