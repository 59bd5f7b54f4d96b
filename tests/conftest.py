"""One thread per test process: the networks are tiny, and xdist already uses every core."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is first imported

import torch

torch.set_num_threads(1)
