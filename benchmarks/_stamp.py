"""What a benchmark row was measured with."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch


def stamp() -> dict[str, str | int]:
    """Commit (with ``+`` when the tree differs from it), versions, threads and processor."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 0,
    }
