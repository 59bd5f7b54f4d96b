"""Trackers: what reaches TensorBoard, MLflow and W&B, and what is said where they are not installed."""

import copy
import math
import pickle
import sys
import types

import numpy as np
import pytest
from test_callbacks import OPTIONS, network, table

from gsnn.train import EpochState, fit, trackers

TRACKERS = {
    "TensorBoard": ("torch.utils.tensorboard", "tensorboard", {"folder": "logs"}),
    "MLflow": ("mlflow", "mlflow", {}),
    "WandB": ("wandb", "wandb", {}),
}


def state(epoch=2, val_loss=0.25, member=0, members=1):
    return EpochState(epoch, 9, 0.5, val_loss, 0.01, 1, network(), member, members)


class Recorder:
    """Stands for a run of W&B, or for MLflow's function: keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def log(self, values):
        self.calls.append(values)

    def log_metrics(self, values, step, run_id):
        self.calls.append((values, step, run_id))


def stand_in(monkeypatch, name, **content):
    module = types.ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", TRACKERS)
def test_the_extra_is_named_before_any_work(monkeypatch, name):
    module, extra, arguments = TRACKERS[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{name} needs the extra {extra}: pip install 'gsnn\[{extra}\]'"):
        getattr(trackers, name)(**arguments)


def test_mlflow_gets_the_metrics_of_each_epoch(monkeypatch):
    run = Recorder()
    stand_in(monkeypatch, "mlflow", log_metrics=run.log_metrics)
    history = fit(network(), *table(), epochs=2, seed=0, callbacks=[trackers.MLflow("r1")], **OPTIONS)
    losses = zip(history.train_loss, (1, 2), strict=True)
    assert run.calls == [({"train_loss": loss, "lr": 0.01}, epoch, "r1") for loss, epoch in losses]


def test_wandb_gets_the_metrics_of_the_active_run(monkeypatch):
    run = Recorder()
    stand_in(monkeypatch, "wandb", run=run)
    trackers.WandB().on_epoch(state(member=1, members=3))
    wanted = {"member1/train_loss": 0.5, "member1/val_loss": 0.25, "member1/lr": 0.01, "epoch": 2}
    assert run.calls == [wanted]
    trackers.WandB().on_epoch(state(val_loss=math.nan))
    assert run.calls[1] == {"train_loss": 0.5, "lr": 0.01, "epoch": 2}


def test_wandb_without_a_run(monkeypatch):
    stand_in(monkeypatch, "wandb", run=None)
    with pytest.raises(RuntimeError, match=r"WandB needs an active run: call wandb.init\(\) before the fit"):
        trackers.WandB().on_epoch(state())


def test_tensorboard_writes_what_it_can_read(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = trackers.TensorBoard(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
    history = fit(network(), *table(), epochs=3, seed=0, callbacks=[board], **OPTIONS)
    for other in (copy.deepcopy(board), pickle.loads(pickle.dumps(board))):
        assert other.folder == board.folder
    board.close()
    board.close()
    read = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert sorted(read.Tags()["scalars"]) == ["lr", "train_loss"]
    scalars = read.Scalars("train_loss")
    assert [s.step for s in scalars] == [1, 2, 3]
    np.testing.assert_allclose([s.value for s in scalars], history.train_loss, rtol=1e-6)
