"""The tables of benchmarks/results as Markdown: one section a script, with what the script says of itself."""

import ast
import re
from pathlib import Path
from textwrap import dedent

import pandas as pd

#: What every row is stamped with; said once, below the table.
STAMP = ("commit", "python", "torch", "numpy", "threads", "cpus")
#: A longer table, or one with a row per seed, is summed up in the notes.
MOST_ROWS = 40
MOST_SEEDS = 10


def page(folder: Path) -> str:
    """A section for each script with a table in ``folder/results``, those whose table is shown first."""
    short, long = [], []
    for script in sorted(folder.glob("[a-z]*.py")):
        paths = sorted((folder / "results").glob(f"{script.stem}*.csv"))
        tables = [_table(path) for path in paths if _owner(path, folder) == script.stem]
        if tables:
            section = "\n".join([f"## {script.stem}.py\n\n{_about(script)}\n", *tables])
            (short if any("| --- |" in table for table in tables) else long).append(section)
    return "\n".join(short + long)


def _owner(table: Path, folder: Path) -> str:
    """The script with the longest name that the table's name begins with."""
    stems = [s.stem for s in folder.glob("[a-z]*.py") if table.stem.startswith(s.stem)]
    return max(stems, key=len)


def _about(script: Path) -> str:
    """The script's docstring: its first line bold, its commands as code."""
    text = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").strip()
    first, _, rest = text.partition("\n\n")
    rest = re.sub(r"(?m)^ {2,3}(?=\S)", "", rest)
    rest = re.sub(r"(?m)^(?: {4}\S.*\n?)+", lambda code: f"```sh\n{dedent(code[0]).strip()}\n```\n", rest)
    return f"**{' '.join(first.split())}**\n\n{rest}\n"


def _table(path: Path) -> str:
    table = pd.read_csv(path, keep_default_na=False)
    name = f"`benchmarks/results/{path.name}`"
    if len(table) > (MOST_SEEDS if "seed" in table.columns else MOST_ROWS):
        return f"{name} has {len(table):,} rows and is not shown here.\n"
    stamp = [c for c in STAMP if c in table.columns]
    stamps = table[stamp].astype(str).drop_duplicates()
    said = "; ".join(", ".join(f"{c} {row[c]}" for c in stamp) for _, row in stamps.iterrows())
    shown = table.drop(columns=stamp)
    same = [
        c for c in shown.columns if len(shown) > 2 and shown[c].nunique() == 1 and c not in ("data", "what")
    ]
    settings = ", ".join(f"{c} {_cell(shown[c].iloc[0])}" for c in same)
    shown = shown.drop(columns=same)
    lines = [list(shown.columns), ["---"] * shown.shape[1]]
    lines += [[_cell(v) for v in row] for row in shown.itertuples(index=False)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = " ".join(f"{part}." for part in (f"In all rows: {settings}" if settings else "", said) if part)
    return f"{text}\n\n{name}. {note}\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", r"\|")
