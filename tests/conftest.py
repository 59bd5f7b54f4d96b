"""One thread per test process: the networks are tiny, and xdist already uses every core.

Hypothesis draws the same examples each time; `pytest --hypothesis-profile=explore` draws others.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is first imported

import torch
from hypothesis import settings

settings.register_profile("exact", derandomize=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile("exact")
torch.set_num_threads(1)
