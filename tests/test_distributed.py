"""Two processes against one on all the samples: edge inference and DistributedDataParallel, on the CPU.

Everything runs in one pair of processes (`distributed_ranks.py`), because each has to load torch.
"""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from distributed_ranks import FORMS, REGRESSOR, gradients, make_model, mse, rank_main, regressor_loop, tables
from inferer_contract import batches, small_data, small_graph

from gsnn.io import load
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.stats.processes import average_running_statistics, group_of

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "case.pkl").write_bytes(pickle.dumps((small_graph(), *small_data())))
    torch.multiprocessing.spawn(rank_main, (str(folder),), nprocs=2)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "case, counts",
    [
        ("unequal", [90]),
        ("few", [8]),
        ("second without samples", [90]),
        ("first without samples", [8]),
        ("three fits", [4, 4, 82]),
        ("few that are enough together, then few", [9, 4]),
    ],
)
def test_every_rank_has_the_table_of_all_samples(ranks, case, counts):
    x, y = small_data()
    graph = small_graph()
    single = MagnitudeEdgeInferer(make_model(graph), graph)
    single.fit(batches(x[: sum(counts)], y[: sum(counts)]), verbose=False)
    for seen in ranks:
        returned, n, found = seen[case]
        assert returned == counts and n == sum(counts)
        for name, want in tables(single).items():
            assert want["corr"].notna().any()
            mine, whole = (t.set_index(["src_idx", "dst_idx"]).sort_index() for t in (found[name], want))
            pd.testing.assert_frame_equal(mine, whole, rtol=0, atol=1e-10)
    for name in tables(single):  # bit by bit
        pd.testing.assert_frame_equal(ranks[0][case][2][name], ranks[1][case][2][name], rtol=0, atol=0)


def test_a_failure_is_heard_of_everywhere(ranks):
    assert ranks[0]["bad batch on rank 1"] == (
        "RuntimeError: fit failed on rank 1 of the process group, which says why"
    )
    assert ranks[1]["bad batch on rank 1"].startswith("TypeError: dataloader must yield (x, y) pairs")
    for seen in ranks:
        assert seen["no sample"].startswith("ValueError: dataloader must yield at least one sample")
        assert seen["n after failures"] == 0


def test_process_groups(ranks):
    assert ranks[0]["group of rank 0"] == "nothing"
    assert ranks[1]["group of rank 0"] == (
        "RuntimeError: process_group must contain this process, got a group without it"
    )
    for seen in ranks:
        assert (
            seen["no group"] == "TypeError: process_group must be None, True or a process group, got 'gloo'"
        )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_whole_batch(ranks, form):
    x, y = small_data()
    model = make_model(small_graph(), **FORMS[form])
    want = gradients(model, model, x[:32], y[:32])
    for seen in ranks:
        got = seen["gradients", form]
        assert got.keys() == want.keys()
        for name in want:
            close(got[name], want[name])


def test_a_wrapped_model_is_refused(ranks):
    for seen in ranks:
        assert seen["wrapped inferer"] == (
            "TypeError: model must be the network itself, got a DistributedDataParallel: give its .module"
        )
        assert seen["wrapped fit"].startswith(
            "TypeError: model must be the network itself, got a DistributedDataParallel: give its .module, or"
        )


def test_the_regressor_learns_as_on_the_whole_batches(ranks):
    x, y = small_data()
    graph = small_graph()
    model = make_model(graph)
    torch.manual_seed(5)
    regressor = MagnitudeEdgeRegressor(model, graph, **REGRESSOR)
    want = regressor_loop(regressor, model, model, batches(x[:64], y[:64], 16))
    assert want["table"].p_value.notna().sum() > 20
    for seen in ranks:
        got = seen["online"]
        assert got["n"] == want["n"] == 3 * 64
        np.testing.assert_allclose(got["losses"], want["losses"], rtol=1e-10)
        for name in ("W", "running_var", "weights"):
            close(got[name], want[name])
        pd.testing.assert_frame_equal(got["table"], want["table"], rtol=1e-6, atol=1e-8)
    assert torch.equal(ranks[0]["online"]["W"], ranks[1]["online"]["W"])


def test_the_regressor_with_unequal_batches(ranks):
    x, y = small_data()
    graph = small_graph()
    model = make_model(graph)
    torch.manual_seed(5)
    regressor = MagnitudeEdgeRegressor(model, graph, **REGRESSOR)
    for _ in range(3):
        for xb, yb in batches(x[:64], y[:64], 16):
            regressor.pre_forward()
            loss = mse(model(xb), yb)
            regressor.arm_retained_grads()
            loss.backward()
            regressor.aux_step()
    for seen in ranks:
        n, W, table = seen["unequal online"]
        assert n == 3 * 64
        close(W, regressor.W.detach())
        pd.testing.assert_frame_equal(table, regressor.evaluate(), rtol=1e-6, atol=1e-8)


def running_statistics(half):
    """Those of a process that trains on its own half, twice on the same batch."""
    x, y = small_data()
    model = make_model(small_graph(), norm="groupbatch")
    for _ in range(2):
        gradients(model, model, x[half], y[half])
    return [(b.norm.running_mean, b.norm.running_var) for b in model.ResBlocks]


def test_running_statistics(ranks):
    """Each batch is normalised by its own rank, as torch.nn.BatchNorm does it."""
    own = [running_statistics(slice(0, 16)), running_statistics(slice(16, 32))]
    for rank, seen in enumerate(ranks):
        for block in range(4):
            for kind in range(2):
                close(seen["statistics", False][block][kind], own[rank][block][kind])
                close(seen["averaged"][block][kind], (own[0][block][kind] + own[1][block][kind]) / 2)
    for block in range(4):  # broadcast before each step: one step of its own on what rank 0 had before it
        close(ranks[0]["statistics", True][block][0], own[0][block][0])
        assert not torch.equal(ranks[1]["statistics", True][block][0], own[1][block][0])


def test_without_processes():
    model = make_model(small_graph(), norm="groupbatch")
    assert group_of(None) is None and group_of(False) is None
    for call in (lambda: group_of(True), lambda: average_running_statistics(model)):
        with pytest.raises(RuntimeError, match="process_group=True needs torch.distributed: call torch.dist"):
            call()
    with pytest.raises(RuntimeError, match="process_group=True needs torch.distributed"):
        MagnitudeEdgeRegressor(model, small_graph(), process_group=True)


def test_the_script_of_the_docs_runs_under_torchrun(tmp_path):
    docs = Path(__file__).parents[1] / "docs" / "distributed.md"
    (script,) = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(docs.parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "1000 samples, 2 processes" in done.stdout
    for name in ("post_hoc.csv", "online.csv"):
        assert len(pd.read_csv(tmp_path / name)) == 24 * 23
    assert load(tmp_path / "model.gsnn").layers == 6
