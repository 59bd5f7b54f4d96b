"""An interrupted ``gsnn run`` that goes on writes the files that it would have written."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gsnn import io
from gsnn.app import demo as simulated
from gsnn.app import workflow
from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.app.run_folder import RunFolder
from gsnn.app.settings import Options
from gsnn.app.workflow import run
from gsnn.data.tables import load_data
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import _lots as train
from gsnn.train import side_by_side as together

# All networks take a step at the same time. 20 training samples of a fold make 2 steps and, on the other 20,
# 1 loss of the test fold: 3 losses an epoch; all 40 make 3.
QUICK = Options(folds=2, channels=2, epochs=3, batch_size=16, dropout=0.3, complete=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_tables(converging_tiers(4), tmp_path_factory.mktemp("data"), n=40, seed=0)


@pytest.fixture(scope="module")
def data(paths):
    return load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(data, out, QUICK, verbose=False)
    return out


class Interrupts:
    """Counts the losses that are computed; the n-th is interrupted."""

    def __init__(self, monkeypatch, at=None, kind=KeyboardInterrupt):
        self.calls, self.at, self.kind, self.in_step = 0, at, kind, False
        self.loss, self.losses = train.loss_of, train.Lot._losses
        monkeypatch.setattr(train, "loss_of", self)
        monkeypatch.setattr(train.Lot, "_losses", lambda lot, rows: self.of_step(lot, rows))

    def count(self, losses):
        before, self.calls = self.calls, self.calls + losses
        if self.at is not None and before < self.at <= self.calls:
            raise self.kind

    def of_step(self, lot, rows):
        self.count(len(lot.active))
        self.in_step = True
        try:
            return self.losses(lot, rows)
        finally:
            self.in_step = False

    def __call__(self, *args):
        if not self.in_step:
            self.count(1)
        return self.loss(*args)


def assert_same_files(one, other):
    for name in ("ranking.csv", "predictions.csv", "figures/learning_curve.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (one, other)]
    for found in metrics:
        del found["seconds"]
    assert metrics[0] == metrics[1]
    a, b = (load_file(out / "model.safetensors") for out in (one, other))
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    headers = [io.read_header(out / "model.safetensors") for out in (one, other)]
    assert headers[0] == headers[1]
    names = [{p.name for p in out.iterdir()} - {"config.toml"} for out in (one, other)]  # of the command only
    assert names[0] == names[1]


# After the folds' epochs 8, 16 and 24 losses are done and kept; then come 3 more of the one for all samples.
@pytest.mark.parametrize(("at", "left"), [(9, 19), (16, 19), (17, 11), (24, 11), (25, 3), (27, 3)])
def test_interrupted_training_goes_on(data, whole, tmp_path, monkeypatch, at, left):
    Interrupts(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "out", QUICK, verbose=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".checkpoint"]
    monkeypatch.undo()
    counted = Interrupts(monkeypatch)
    run(data, tmp_path / "out", QUICK, verbose=False)
    assert counted.calls == left
    assert_same_files(tmp_path / "out", whole)


# One network after the other: 9 losses each, 3 an epoch.
@pytest.mark.parametrize(("at", "left"), [(5, 24), (12, 18), (14, 15), (27, 3)])
def test_networks_that_do_not_fit_into_memory_go_on_too(data, whole, tmp_path, monkeypatch, at, left):
    monkeypatch.setattr(together, "_MOST_BYTES", 1)
    interrupt(data, tmp_path / "out", monkeypatch, at=at)
    counted = Interrupts(monkeypatch)
    run(data, tmp_path / "out", QUICK, verbose=False)
    assert counted.calls == left
    assert_same_files(tmp_path / "out", whole)


class Steps:
    """Counts the calls of a step of the workflow; the n-th is interrupted."""

    def __init__(self, monkeypatch, name, at=None):
        self.calls, self.at, self.step = 0, at, getattr(workflow, name)
        monkeypatch.setattr(workflow, name, self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.step(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "at", "left"), [("baseline", 2, 4), ("baseline", 3, 2), ("rank_edges", 1, 0), ("write", 1, 0)]
)
def test_other_steps_go_on_too(data, whole, tmp_path, monkeypatch, name, at, left):
    Steps(monkeypatch, name, at)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, QUICK, verbose=False)
    monkeypatch.undo()
    losses, baselines = Interrupts(monkeypatch), Steps(monkeypatch, "baseline")
    run(data, tmp_path, QUICK, verbose=False)
    assert (losses.calls, baselines.calls) == (0, left)
    assert_same_files(tmp_path, whole)


def interrupt(data, out, monkeypatch, at=12, options=QUICK, **more):
    with monkeypatch.context() as patch:
        Interrupts(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run(data, out, options, verbose=False, **more)


def test_checkpoints_every_twentieth_of_the_epochs(data, tmp_path, monkeypatch):
    options = Options(folds=0, channels=2, epochs=60, batch_size=64, complete=0)
    interrupt(data, tmp_path, monkeypatch, at=3 * 17, options=options)  # in epoch 17
    kept = load_file(tmp_path / ".checkpoint" / "networks.safetensors")
    assert kept["0.losses"].shape == kept["1.losses"].shape == (3, 15)


def test_what_differs_is_named_and_fresh_begins_anew(data, whole, tmp_path, monkeypatch):
    interrupt(data, tmp_path, monkeypatch)
    kept = {p: p.read_bytes() for p in (tmp_path / ".checkpoint").iterdir()}
    other = Options(**{**vars(QUICK), "lr": 0.5, "seed": 1})
    with pytest.raises(
        ValueError, match=r"another run: seed was 0 and is 1; lr was 0.003 and is 0.5. .* use --fresh"
    ):
        run(data, tmp_path, other, verbose=False, force=True)
    changed = type(data)(data.graph, data.x, data.y + 1e-9, data.order)
    with pytest.raises(ValueError, match=r"another run: y differs. To start afresh"):
        run(changed, tmp_path, QUICK, verbose=False)
    grouped = type(data)(
        data.graph, data.x, data.y, data.order, data.x.iloc[:, 0].rename("g").round(1).astype(str)
    )
    with pytest.raises(ValueError, match=r"another run: groups (differs|was)"):
        run(grouped, tmp_path, QUICK, verbose=False)
    turned = type(data)(data.graph, data.x, data.y, data.order[::-1])
    with pytest.raises(ValueError, match=r"another run: order of samples differs"):
        run(turned, tmp_path, QUICK, verbose=False)
    assert {p: p.read_bytes() for p in (tmp_path / ".checkpoint").iterdir()} == kept
    counted = Interrupts(monkeypatch)
    run(data, tmp_path, QUICK, verbose=False, fresh=True)
    assert counted.calls == 27
    assert_same_files(tmp_path, whole)


def test_how_many_edges_are_drawn_may_change(data, tmp_path, monkeypatch):
    interrupt(data, tmp_path, monkeypatch)
    result = run(data, tmp_path, Options(**{**vars(QUICK), "top": 3}), verbose=False)
    assert result.metrics["settings"]["top"] == 3


def test_full_folders(data, whole, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    interrupt(data, tmp_path, monkeypatch, force=True)
    with pytest.raises(FileExistsError, match="is not empty"):
        run(data, tmp_path, QUICK, verbose=False, fresh=True)
    run(data, tmp_path, QUICK, verbose=False)  # the interrupted run was allowed to be there
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is not empty"):
        run(data, tmp_path, QUICK, verbose=False)
    (tmp_path / "notes.txt").unlink()
    assert_same_files(tmp_path, whole)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"lr": 1e30, "epochs": 9}, FloatingPointError), ({"weight_decay": -1.0}, ValueError)],
)
def test_settings_that_cannot_work_leave_nothing(data, tmp_path, options, error):
    with pytest.raises(error):
        run(data, tmp_path, Options(**{**vars(QUICK), **options}), verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_before_anything_was_done(data, tmp_path, monkeypatch):
    interrupt(data, tmp_path, monkeypatch, at=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run.json", "is damaged. To start"),
        ("networks.safetensors", "truncated"),
        ("fold1.safetensors", "truncated"),
    ],
)
def test_damaged_pieces_are_refused(data, tmp_path, monkeypatch, name, message):
    with monkeypatch.context() as patch:
        Steps(patch, "rank_edges", 1)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path, QUICK, verbose=False)
    piece = tmp_path / ".checkpoint" / name
    piece.write_bytes(piece.read_bytes()[:-5])
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path, QUICK, verbose=False)
    assert piece.exists()


def words(paths, out, *more):
    p = {key: str(path) for key, path in paths.items()}
    given = [
        "run",
        "--edges",
        p["edges"],
        "--x",
        p["x"],
        "--y",
        p["y"],
        "--nodes",
        p["nodes"],
        "--out",
        str(out),
    ]
    options = [
        "--folds",
        2,
        "--channels",
        2,
        "--epochs",
        3,
        "--batch-size",
        16,
        "--dropout",
        0.3,
        "--complete",
        0,
    ]
    return [*given, *map(str, options), *more]


def test_ctrl_c_says_how_to_go_on(paths, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        Interrupts(patch, 12)
        done = CliRunner().invoke(app, words(paths, out, "--quiet"))
    assert done.exit_code == 130 and done.stdout == ""
    assert done.stderr == (
        f"interrupted; the same command goes on from {out}/.checkpoint, --fresh begins anew\n"
    )
    other = CliRunner().invoke(app, words(paths, out, "--lr", "0.5"))
    assert other.exit_code == 2 and "lr was 0.003 and is 0.5. To start afresh, use --fresh" in other.stderr
    done = CliRunner().invoke(app, words(paths, out))
    assert done.exit_code == 0 and f"going on with the interrupted run in {out}\n" in done.stderr
    assert_same_files(out, whole)
    with monkeypatch.context() as patch:
        Interrupts(patch, 1)
        done = CliRunner().invoke(app, words(paths, tmp_path / "new", "--quiet"))
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_fresh_from_the_command_line(paths, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Interrupts(patch, 12)
        assert CliRunner().invoke(app, words(paths, tmp_path, "--seed", "9")).exit_code == 130
    done = CliRunner().invoke(app, words(paths, tmp_path, "--fresh"))
    assert done.exit_code == 0 and "going on" not in done.stderr
    assert_same_files(tmp_path, whole)


def test_an_interrupted_demo_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(simulated, "DEMO_OPTIONS", Options(folds=2, channels=2, epochs=1, complete=0))
    with monkeypatch.context() as patch:
        Interrupts(patch, 12)
        done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--quiet"])
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")
    assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--quiet", "--seed", "3"]).exit_code == 0
    assert not (tmp_path / ".checkpoint").exists()


KILLED = """
import os, signal, sys
from gsnn.train import _lots as train
from gsnn.app.cli import app
loss, calls = train.loss_of, 0
def fatal(*args):
    global calls
    calls += 1
    if calls == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*args)
train.loss_of = fatal
app(sys.argv[1:])
"""


def test_killed_process(paths, whole, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, *words(paths, tmp_path, "--quiet")])
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [".checkpoint"]
    resumed = CliRunner().invoke(app, words(paths, tmp_path, "--quiet"))
    assert (resumed.exit_code, resumed.output) == (0, "")
    assert_same_files(tmp_path, whole)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 160


@pytest.mark.parametrize("left", ["all", "some", "nothing"])
def test_killed_between_the_last_file_and_the_end(paths, data, whole, tmp_path, monkeypatch, left):
    def killed(self):
        for path in [] if left == "all" else sorted(self.path.iterdir()):
            if left == "nothing" or path.name == "run.json":
                path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path, QUICK, verbose=False)
    assert (tmp_path / ".checkpoint").exists()
    before = {p: p.read_bytes() for p in tmp_path.glob("*.*") if p.is_file()}
    assert "metrics.json" in {path.name for path in before}  # it is written last
    with monkeypatch.context() as patch:
        counted = Interrupts(patch)
        done = CliRunner().invoke(app, words(paths, tmp_path))
    assert done.exit_code == 0 and counted.calls == 0 and done.stdout == ""
    assert f"the run in {tmp_path} is finished already" in done.stderr
    after = {p: p.read_bytes() for p in tmp_path.glob("*.*") if p.is_file()}
    assert {p: after[p] for p in before} == before  # the command adds its config.toml
    assert_same_files(tmp_path, whole)
    again = CliRunner().invoke(app, words(paths, tmp_path))
    assert again.exit_code == 2 and "is not empty" in again.stderr


def test_another_run_in_place_of_a_finished_one_is_not_called_finished(data, whole, tmp_path, monkeypatch):
    run(data, tmp_path, QUICK, verbose=False)
    other = replace(QUICK, seed=5)
    interrupt(data, tmp_path, monkeypatch, options=other, force=True)
    run(data, tmp_path, other, verbose=False)
    assert not (tmp_path / ".checkpoint").exists()
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["seed"] == 5
