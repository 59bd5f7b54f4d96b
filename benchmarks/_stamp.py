"""What a benchmark row was measured with, and the refusal to measure what no commit holds."""

import argparse
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def command_line(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says; ends the script before any work where the tree differs from its commit.

    Numbers of a changed tree cannot be made again, so they are not to be quoted. ``--dirty`` measures all the
    same, to try something out; the stamp then says so.
    """
    parser.add_argument("--dirty", action="store_true", help="measure though the tree has changes")
    found = parser.parse_args(given)
    paths = changed()
    if paths and not found.dirty:
        parser.error(
            f"the tree differs from its commit ({', '.join(paths[:3])}): commit first, or add --dirty"
        )
    return found


def changed() -> list[str]:
    """Tracked files that differ from the commit. Earlier results do not count: no result depends on them."""
    lines = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results"
    )
    return [line[3:] for line in lines.splitlines()]


def stamp() -> dict[str, str | int]:
    """Commit (with ``+`` when the tree differs from it), versions, threads and processor."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD").strip() + ("+" if changed() else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 0,
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout
