"""An interrupted fit that goes on gives, bit for bit, what the uninterrupted one gives."""

import math
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gsnn import io
from gsnn.models.GSNN import GSNN
from gsnn.train import fit, fit_side_by_side, predict
from gsnn.train.resume import check_same_run

OPTIONS: dict[str, Any] = {"epochs": 6, "batch_size": 8, "lr": 0.02, "seed": 1, "verbose": False}


def small_model(seed=0, **options):
    edges = {
        ("input", "to", "function"): torch.tensor([[0, 1, 2], [0, 1, 2]]),
        ("function", "to", "function"): torch.tensor([[0, 1, 2, 3], [3, 3, 1, 2]]),
        ("function", "to", "output"): torch.tensor([[3, 2], [0, 1]]),
    }
    names = {"input": ["a", "b", "c"], "function": ["f0", "f1", "f2", "f3"], "output": ["y1", "y2"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GSNN(edges, names, **{"channels": 3, "layers": 3, "norm": "none", **options})


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(41, 3))
    y = np.column_stack([x[:, 0] - x[:, 1], np.tanh(x[:, 2])]) + 0.1 * rng.normal(size=(41, 2))
    y[3, 0] = np.nan
    return x, y


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.safetensors"


class Fuse:
    """A loss that is interrupted at its n-th call, and counts them."""

    def __init__(self, at=math.inf):
        self.at, self.calls = at, 0

    def __call__(self, yhat, y):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return torch.nn.functional.mse_loss(yhat, y)


def same(a, b):
    """Every weight and buffer, bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("model_options", "options"),
    [
        ({}, {}),
        ({"dropout": 0.3, "norm": "groupbatch", "share_layers": False}, {"standardize": True}),
        ({"dropout": 0.3}, {"validation": 0.25, "schedule": "constant"}),
        ({"norm": "batch"}, {"validation": 0.25, "patience": 4, "lr": 0.3, "epochs": 30}),
        ({"dropout": 0.1}, {"validation": 0.25, "restore_best": False, "checkpoint_every": 2}),
    ],
)
@pytest.mark.parametrize("at", [3, 12, 21])
def test_goes_on_to_the_same_bits(table, path, model_options, options, at):
    options = OPTIONS | options
    whole, broken = small_model(**model_options), small_model(**model_options)
    expected = fit(whole, *table, crit=Fuse(), **options)
    assert expected.stopped_early == ("patience" in options)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, *table, crit=Fuse(at), checkpoint_path=path, **options)
    fresh = small_model(**model_options)  # as in a new process
    again = Fuse()
    got = fit(fresh, *table, crit=again, checkpoint_path=path, **options)
    assert repr(got) == repr(expected) and same(fresh, whole)
    np.testing.assert_array_equal(predict(fresh, table[0]), predict(whole, table[0]))
    total = Fuse()
    fit(small_model(**model_options), *table, crit=total, **options)
    per_epoch = total.calls // len(got.train_loss)
    skipped = (at - 1) // per_epoch  # finished epochs, of which every k-th was written
    skipped -= skipped % options.get("checkpoint_every", 1)
    assert again.calls == total.calls - skipped * per_epoch


def test_interrupted_again_and_again(table, path):
    whole, model = small_model(dropout=0.2), small_model(dropout=0.2)
    expected = fit(whole, *table, crit=Fuse(), **OPTIONS)
    for _ in range(5):
        model = small_model(dropout=0.2)
        with pytest.raises(KeyboardInterrupt):
            fit(model, *table, crit=Fuse(9), checkpoint_path=path, **OPTIONS)
    model = small_model(dropout=0.2)
    assert repr(fit(model, *table, crit=Fuse(), checkpoint_path=path, **OPTIONS)) == repr(expected)
    assert same(model, whole)


@pytest.mark.parametrize("options", [{}, {"validation": 0.3}, {"validation": 0.3, "patience": 1, "lr": 0.5}])
def test_a_finished_fit_is_passed_over(table, path, options):
    options = OPTIONS | options
    model, again, fuse = small_model(), small_model(), Fuse()
    expected = fit(model, *table, crit=Fuse(), checkpoint_path=path, checkpoint_every=4, **options)
    assert os.listdir(path.parent) == [path.name]
    got = fit(again, *table, crit=fuse, checkpoint_path=path, **options)
    assert fuse.calls == 0 and repr(got) == repr(expected) and same(again, model)


def test_checkpoints_change_nothing(table, path):
    plain, kept = small_model(dropout=0.2), small_model(dropout=0.2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    expected = fit(plain, *table, validation=0.2, **OPTIONS)
    got = fit(kept, *table, validation=0.2, checkpoint_path=path, **OPTIONS)
    assert repr(got) == repr(expected) and same(plain, kept)
    assert torch.equal(torch.get_rng_state(), before)
    fit(small_model(dropout=0.2), *table, validation=0.2, checkpoint_path=path, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_of_numpy_are_the_same_settings(table, path):
    fit(small_model(), *table, checkpoint_path=str(path), **OPTIONS)
    options: dict[str, Any] = OPTIONS | {"epochs": np.int64(6), "lr": np.float64(0.02), "seed": np.int32(1)}
    fit(small_model(), *table, checkpoint_path=path, **options)
    path.unlink()
    fit(small_model(), *table, checkpoint_path=path, **options)
    fit(small_model(), *table, checkpoint_path=path, **OPTIONS)


def test_shared_layers_are_stored_once(table, path):
    fit(small_model(layers=7), *table, checkpoint_path=path, **OPTIONS)
    names = [name for name in load_file(path) if name.endswith("lin_in.values")]
    assert sorted(names) == ["best.ResBlocks.0.lin_in.values", "model.ResBlocks.0.lin_in.values"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 7}, "epochs was 6 and is 7. To start afresh, delete it or choose another file"),
        ({"lr": 0.03, "batch_size": 9}, "batch_size was 8 and is 9; lr was 0.02 and is 0.03"),
        ({"weight_decay": 0.0}, "weight_decay was 0.01 and is 0.0"),
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"schedule": "constant"}, "schedule was 'cosine' and is 'constant'"),
        ({"standardize": True}, "standardize was False and is True"),
        ({"restore_best": False}, "restore_best was True and is False"),
        ({"patience": 3}, "patience was None and is 3"),
        ({"crit": torch.nn.functional.l1_loss}, "crit was 'mse_loss' and is 'l1_loss'"),
        ({"validation": 0.3}, "validation was 0.2 and is 0.3; x differs; y differs; x_val differs"),
        ({"x": lambda x: x + 1e-12}, "x differs; x_val differs. To"),
        ({"y": lambda y: np.where(np.arange(41)[:, None] == 3, 0.0, y)}, "y(_val)? differs. To"),
        ({"model": {"seed": 1}}, "initial weights differs. To"),
        ({"model": {"dropout": 0.1}}, "model differs. To"),
        ({"model": {"channels": 4}}, "model differs; initial weights differs"),
    ],
)
def test_another_run_is_refused_and_the_file_stays(table, path, change, message):
    options: dict[str, Any] = OPTIONS | {"validation": 0.2}
    fit(small_model(), *table, checkpoint_path=path, **options)
    content = path.read_bytes()
    x, y = table
    x, y = change.pop("x", lambda x: x)(x), change.pop("y", lambda y: y)(y)
    model = small_model(**change.pop("model", {}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.scaling = before_scaling = object()
    refused = pytest.raises(ValueError, match=f"the checkpoint .* belongs to another run: .*{message}")
    with refused as caught:
        fit(model, x, y, checkpoint_path=path, **(options | change))
    assert str(caught.value).endswith("To start afresh, delete it or choose another file")
    assert path.read_bytes() == content and model.scaling == before_scaling
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_graph_is_refused(table, path):
    fit(small_model(), *table, checkpoint_path=path, **OPTIONS)
    model = small_model()
    names = {**model.graph.node_names_dict, "function": ["f0", "f1", "f2", "other"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = GSNN(model.graph.edge_index_dict, names, channels=3, layers=3, norm="none")
    with pytest.raises(ValueError, match="another run: graph differs"):
        fit(other, *table, checkpoint_path=path, **OPTIONS)


def test_other_versions_are_refused():
    with pytest.raises(
        ValueError, match="the run in out belongs to another run: torch was '2.0' and is '2.1'"
    ):
        check_same_run({"torch": "2.0", "a": 1}, {"torch": "2.1", "a": 1}, "the run in out", "use --fresh")


def test_frozen_parameters_are_part_of_the_run(table, path):
    fit(small_model(), *table, checkpoint_path=path, **OPTIONS)
    model = small_model()
    model.ResBlocks[0].lin_in.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="another run: model differs"):
        fit(model, *table, checkpoint_path=path, **OPTIONS)


def test_damaged_and_other_files_are_refused(table, path):
    fit(small_model(), *table, checkpoint_path=path, **OPTIONS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file .*truncated"):
        fit(small_model(), *table, checkpoint_path=path, **OPTIONS)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 20).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"truncated|damaged|no checkpoint file|format version|checksum"):
            fit(small_model(), *table, checkpoint_path=path, **OPTIONS)
        assert path.read_bytes() == damaged
    io.save(small_model(), path)
    with pytest.raises(ValueError, match="is a safetensors file, but no checkpoint file of gsnn"):
        fit(small_model(), *table, checkpoint_path=path, **OPTIONS)


def test_a_write_that_fails_leaves_the_last_checkpoint(table, path, monkeypatch):
    whole = small_model()
    expected = fit(whole, *table, **OPTIONS)
    write = io.container._write
    written: list[Any] = []

    def full(name, data):
        if len(written) == 2:
            name.write_bytes(b"half")
            raise OSError("disk full")
        written.append(name)
        write(name, data)

    monkeypatch.setattr("gsnn.io.container._write", full)
    with pytest.raises(OSError, match="disk full"):
        fit(small_model(), *table, checkpoint_path=path, **OPTIONS)
    assert os.listdir(path.parent) == [path.name]
    monkeypatch.undo()
    model = small_model()
    assert repr(fit(model, *table, checkpoint_path=path, **OPTIONS)) == repr(expected)
    assert same(model, whole)


def test_a_missing_folder_is_noticed_before_any_work(table, tmp_path):
    fuse = Fuse()
    with pytest.raises(FileNotFoundError, match="checkpoint_path must be in a folder that exists, got"):
        fit(small_model(), *table, crit=fuse, checkpoint_path=tmp_path / "no" / "fit", **OPTIONS)
    assert fuse.calls == 0


class Explosive:
    """A loss that is infinite from its n-th call on, and notes whether there was a checkpoint then."""

    def __init__(self, path, at):
        self.path, self.left, self.seen = path, at, False

    def __call__(self, yhat, y):
        self.left -= 1
        if self.left == 0:
            self.seen = self.path.exists()
        return torch.nn.functional.mse_loss(yhat, y) * (1.0 if self.left > 0 else math.inf)


@pytest.mark.parametrize("together", [False, True])
def test_a_loss_that_exploded_leaves_no_checkpoint(table, path, together):
    model, (x, y) = small_model(), table
    crit, y = Explosive(path, at=15), np.nan_to_num(y)
    options: dict[str, Any] = {k: v for k, v in OPTIONS.items() if k != "seed"} | {"crit": crit}
    back = "every model got .*, or the initial ones" if together else "the initial weights were put back"
    with pytest.raises(FloatingPointError, match=f"in epoch 3 of 6; {back}"):
        if together:
            fit_side_by_side([model], [(x, y)], seeds=[1], checkpoint_path=path, **options)
        else:
            fit(model, x, y, seed=1, checkpoint_path=path, **options)
    assert crit.seen and not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seed": None},
            "checkpoint_path needs a seed, as an unseeded fit cannot be repeated, got seed=None",
        ),
        ({"checkpoint_every": 0}, "checkpoint_every must be a positive int, got 0"),
    ],
)
def test_bad_options(table, path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(), *table, checkpoint_path=path, **(OPTIONS | options))
    assert not path.exists()


KILLED = """
import os, signal, sys
import numpy as np, torch, gsnn
sys.path.insert(0, sys.argv[2])
from test_checkpoint import OPTIONS, small_model
rng = np.random.default_rng(5)
x, calls, fatal = rng.normal(size=(41, 3)), 0, int(sys.argv[3])
def crit(yhat, y):
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.nn.functional.mse_loss(yhat, y)
model = small_model(dropout=0.2, norm="groupbatch")
history = gsnn.fit(model, x, x[:, :2] ** 2, crit=crit, checkpoint_path=sys.argv[1] + "/fit", **OPTIONS)
gsnn.save(model, sys.argv[1] + "/model", extra={"history": repr(history)})
"""


def test_killed_process(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()

    def start(folder, fatal):
        words = [str(tmp_path / folder), os.path.dirname(__file__), str(fatal)]
        return subprocess.run([sys.executable, "-c", KILLED, *words]).returncode

    assert start("whole", 0) == 0
    assert start("killed", 20) == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["fit"]
    assert start("killed", 0) == 0
    whole, killed = (load_file(tmp_path / name / "model") for name in ("whole", "killed"))
    assert list(whole) == list(killed) and all(torch.equal(whole[n], killed[n]) for n in whole)
    history = [io.read_header(tmp_path / name / "model")["extra"] for name in ("whole", "killed")]
    assert history[0] == history[1]
