"""The same seed gives the same bits: in another process, with other hash seeds, on two threads."""

import os
import subprocess
import sys

import pytest

TRAINED = """
import hashlib, sys
import numpy as np, torch
from gsnn import GSNN, MagnitudeEdgeInferer, RowDataset, fit, predict
from gsnn.simulate.scenarios import converging_tiers

torch.set_num_threads(int(sys.argv[1]))
scenario = converging_tiers(4)
x, _, y, _ = scenario.sample(300, 1, seed=0)
graph = scenario.partial
torch.manual_seed(0)
# Large enough that a pass of 100 samples is shared between threads.
model = GSNN(graph.edge_index_dict, graph.node_names_dict, 40, 4, norm="groupbatch", dropout=0.2)
fit(model, x, y, epochs=2, batch_size=300, standardize=True, seed=3, verbose=False)
inferer = MagnitudeEdgeInferer(model, graph)
inferer.fit([RowDataset(model, x, y)[:]], verbose=False)
digest = hashlib.sha256()
for value in model.state_dict().values():
    digest.update(value.numpy().tobytes())
digest.update(predict(model, x).tobytes())
table = inferer.evaluate()
digest.update(table["corr"].to_numpy().tobytes() + " ".join(table["src_func"]).encode())
print(digest.hexdigest())
"""


def checksum(threads, hash_seed):
    words = [sys.executable, "-c", TRAINED, str(threads)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.fixture(scope="module")
def first():
    return checksum(1, 0)


@pytest.mark.parametrize(("threads", "hash_seed"), [(1, 1), (2, 2)])
def test_another_process_gives_the_same_bits(first, threads, hash_seed):
    assert len(first) == 65 and checksum(threads, hash_seed) == first
