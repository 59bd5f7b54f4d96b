"""One thread per test process: the networks are tiny, and xdist already uses every core."""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is first imported

import torch

torch.set_num_threads(1)


def pytest_sessionfinish() -> None:
    """Write down what coverage has seen: a worker of xdist may be ended before it would do so itself."""
    if "coverage" in sys.modules:
        from coverage import Coverage

        current = Coverage.current()
        if current is not None:
            current.save()
