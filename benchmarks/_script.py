"""What every script does around its measurement: options, cells in parallel, a table on disk."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _stamp import stamp
from joblib import Parallel, delayed
from tqdm import tqdm

from gsnn.io import replacing


def parser_for(doc: str, out: Path | None, seeds: int | None = None) -> argparse.ArgumentParser:
    """A parser with ``--out`` and, for a script over seeds, ``--seeds``, ``--first`` and ``--jobs``.

    ``doc`` is the script's docstring, of which the first line is shown. Without a path to write to by default
    nothing is written unless ``--out`` says where.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=out, help="CSV to write")
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds)
        parser.add_argument("--first", type=int, default=0, help="first seed; 100 and on are for tuning")
        parser.add_argument("--jobs", type=int, default=1)
    return parser


def seeds_of(args: argparse.Namespace) -> range:
    """The seeds that ``--seeds`` and ``--first`` ask for."""
    return range(args.first, args.first + args.seeds)


def rows_of(one: Callable[..., Any], cells: Iterable[tuple[Any, ...]], jobs: int) -> pd.DataFrame:
    """The rows of ``one(*cell)``, one or a list of them a call, in the order of the cells.

    Each call has one thread for itself.
    """
    todo = list(cells)
    workers = Parallel(n_jobs=jobs, return_as="generator")
    found = tqdm(workers(delayed(_on_one_thread)(one, cell) for cell in todo), total=len(todo), unit="cell")
    return pd.DataFrame([row for part in found for row in (part if isinstance(part, list) else [part])])


def _on_one_thread(one: Callable[..., Any], cell: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    return one(*cell)


def save(
    table: pd.DataFrame,
    path: Path | None,
    digits: int | None = None,
    threads: int | None = None,
    **marks: Any,
) -> None:
    """Write the table with ``marks`` and the stamp in every row, and say so; nothing without a path.

    ``threads`` are those that did the work, where they are not this process's.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = table if digits is None else table.round(digits)
    used = {} if threads is None else {"threads": threads}
    with replacing(path) as tmp:
        rounded.assign(**{**marks, **stamp(), **used}).to_csv(tmp, index=False)
    print(f"wrote {path}")
