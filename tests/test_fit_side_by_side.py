"""fit_side_by_side: every model ends where ``fit`` alone would have taken it."""

import copy
import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from dense_oracle import random_graph

from gsnn.data.scaling import Scaling
from gsnn.models.GSNN import GSNN
from gsnn.models.SideBySide import SideBySide
from gsnn.train import _lots as lots
from gsnn.train import side_by_side as module
from gsnn.train.loop import fit, predict
from gsnn.train.side_by_side import fit_side_by_side


def networks(differ=False, n=3, dtype=torch.float64, **arguments):
    arguments = {"channels": 3, "layers": 3, "norm": "groupbatch", "share_layers": False, **arguments}
    models = []
    for k in range(n):
        generator = torch.Generator().manual_seed(k * differ)
        edges, names = random_graph(generator, n_function=9 + 2 * k * differ)
        with torch.random.fork_rng():
            torch.manual_seed(k)
            models.append(GSNN(edges, names, **arguments).to(dtype))
    return models


def tables(sizes=(40, 40, 33), gaps=False):
    rng = np.random.default_rng(0)
    data = []
    for size in sizes:
        x = rng.normal(size=(size, 5)) * 3 + 1
        y = np.tanh(x[:, :4]) + 0.1 * rng.normal(size=(size, 4))
        if gaps:
            y[rng.random(y.shape) < 0.2] = np.nan
        data.append((x, y))
    return data


def assert_same(models, histories, alone, expected):
    for model, history, other, want in zip(models, histories, alone, expected, strict=True):
        for name, value in other.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-7, atol=1e-8)
        for name in ("train_loss", "val_loss", "lr"):
            np.testing.assert_allclose(getattr(history, name), getattr(want, name), rtol=1e-8)
        assert (history.best_epoch, history.stopped_early) == (want.best_epoch, want.stopped_early)
        assert getattr(model, "scaling", None) == getattr(other, "scaling", None)
        assert model.training == other.training


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled, gaps": {"standardize": True, "gaps": True},
    "watched": {"validation": True, "restore_best": False},
    "restored": {"validation": True, "lr": 0.05},
    "stops early": {"validation": True, "patience": 2, "lr": 0.05, "epochs": 25},
    "a fraction": {"validation": 0.3},
    "constant": {"schedule": "constant", "weight_decay": 0.1},
    "other loss": {"crit": torch.nn.functional.l1_loss},
    "dropout": {"dropout": 0.3},
    "dropout, layer": {"dropout": 0.3, "norm": "layer", "share_layers": True},
    "other graphs": {"differ": True, "share_layers": True},
    "one by one": {"nonlin": torch.nn.Tanh, "dropout": 0.2},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_each_ends_where_fit_alone_would_take_it(case):
    options: dict[str, Any] = {"epochs": 5, "batch_size": 8, "lr": 0.01, "verbose": False, **OPTIONS[case]}
    of_model = {
        k: options.pop(k) for k in ("dropout", "norm", "share_layers", "nonlin", "differ") if k in options
    }
    data, held = tables(gaps=options.pop("gaps", False)), options.pop("validation", None)
    aside = (
        [None] * 3 if held is None else [held] * 3 if held is not True else [tables((13,))[0]] * 2 + [None]
    )
    if "patience" in options:
        aside[2] = tables((11,))[0]
    models = networks(**of_model)
    models[1].ResBlocks[0].eval()
    alone = copy.deepcopy(models)
    seeds = [7, 8, 9]
    state = torch.get_rng_state()
    histories = fit_side_by_side(models, data, seeds=seeds, validation=aside, **options)
    assert torch.equal(torch.get_rng_state(), state)
    expected = [
        fit(model, *d, seed=seed, validation=v, **options)
        for model, d, seed, v in zip(alone, data, seeds, aside, strict=True)
    ]
    if case == "stops early":
        assert any(history.stopped_early for history in expected)
    assert_same(models, histories, alone, expected)
    assert [m.training for m in models[1].modules()] == [m.training for m in alone[1].modules()]
    for model, other, (x, _) in zip(models, alone, data, strict=True):
        np.testing.assert_allclose(predict(model, x), predict(other, x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gaps", [(), (1,), (0, 1)])
def test_batches_of_one_size_with_and_without_gaps(gaps):
    models, data = networks(n=2), tables((40, 40))
    for k in gaps:
        data[k][1][3:9, 1] = np.nan
    alone = copy.deepcopy(models)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "verbose": False}
    histories = fit_side_by_side(models, data, seeds=[7, 8], **options)
    expected = [
        fit(model, *d, seed=seed, **options) for model, d, seed in zip(alone, data, [7, 8], strict=True)
    ]
    assert_same(models, histories, alone, expected)


def test_each_for_as_many_epochs_as_asked_for():
    models, data, lengths = networks(dropout=0.2), tables(), [4, 2, 5]
    alone = copy.deepcopy(models)
    options: dict[str, Any] = {"batch_size": 8, "lr": 0.01, "verbose": False}
    histories = fit_side_by_side(models, data, seeds=[7, 8, 9], epochs=lengths, **options)
    expected = [
        fit(model, *d, seed=seed, epochs=many, **options)
        for model, d, seed, many in zip(alone, data, [7, 8, 9], lengths, strict=True)
    ]
    assert [len(history.train_loss) for history in histories] == lengths
    assert_same(models, histories, alone, expected)
    with pytest.raises(ValueError, match="epochs must have one entry for each of 3 models, got 2"):
        fit_side_by_side(models, data, seeds=[7, 8, 9], epochs=[1, 2])
    with pytest.raises(ValueError, match="epochs must be a positive int, got 0"):
        fit_side_by_side(models, data, seeds=[7, 8, 9], epochs=[1, 0, 2])


def test_lots_change_nothing(monkeypatch):
    found = []
    for most in (2**30, 1):
        monkeypatch.setattr(module, "_MOST_BYTES", most)
        models = networks(dropout=0.2)
        fit_side_by_side(models, tables(), seeds=[1, 2, 3], epochs=3, batch_size=8, verbose=False)
        found.append([value for model in models for value in model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class Killed(Exception):
    pass


@pytest.mark.parametrize("most", [2**30, 1])
@pytest.mark.parametrize("steps", [1, 7, 12, 23, 29])
def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch, steps, most):
    """Killed after some steps, in a lot or in the next; the last file need not be of that step."""
    monkeypatch.setattr(module, "_MOST_BYTES", most)
    options: dict[str, Any] = {
        "seeds": [1, 2, 3],
        "epochs": 6,
        "batch_size": 8,
        "standardize": True,
        "verbose": False,
    }
    options["validation"] = [tables((13,))[0]] * 3
    data = tables((40, 40, 22))
    whole_models = networks(dropout=0.2)
    expected = fit_side_by_side(whole_models, data, **options)
    left, step = [steps], lots.Lot._one_step

    def dying(self):
        if not left[0]:
            raise Killed
        left[0] -= 1
        step(self)

    monkeypatch.setattr(lots.Lot, "_one_step", dying)
    options["checkpoint_path"] = tmp_path / "fit.safetensors"
    with pytest.raises(Killed):
        fit_side_by_side(networks(dropout=0.2), data, **options)
    monkeypatch.setattr(lots.Lot, "_one_step", step)
    for _ in range(2):  # the second time everything is finished
        models = networks(dropout=0.2)
        histories = fit_side_by_side(models, data, **options)
        assert [history.train_loss for history in histories] == [history.train_loss for history in expected]
        for model, other in zip(models, whole_models, strict=True):
            assert all(torch.equal(value, model.state_dict()[k]) for k, value in other.state_dict().items())
    with pytest.raises(ValueError, match="lr was"):
        fit_side_by_side(networks(dropout=0.2), data, lr=0.5, **options)


def test_the_best_weights_and_statistics_outlast_an_interruption(tmp_path):
    """The best epoch lies before it, and none after it is as good; norm 'batch' has running statistics."""
    data = tables((40, 40))
    options: dict[str, Any] = {
        **{"seeds": [1, 2], "epochs": 8, "batch_size": 8, "lr": 0.05, "verbose": False},
        "validation": [(x, -y) for x, y in tables((13, 13))],
    }
    whole_models = networks(n=2, norm="batch")
    expected = fit_side_by_side(whole_models, data, **options)
    assert max(history.best_epoch for history in expected) < 4
    options["checkpoint_path"] = tmp_path / "fit.safetensors"

    def killed(state):
        if state.epoch == 5:
            raise Killed

    with pytest.raises(Killed):
        fit_side_by_side(networks(n=2, norm="batch"), data, callbacks=[killed], **options)
    models = networks(n=2, norm="batch")
    assert fit_side_by_side(models, data, **options) == expected
    for model, other in zip(models, whole_models, strict=True):
        assert all(torch.equal(value, model.state_dict()[k]) for k, value in other.state_dict().items())


def test_a_log_has_the_losses_of_the_first_network(tmp_path, capsys):
    options: dict[str, Any] = {"seeds": [1, 2], "batch_size": 8, "validation": [tables((13,))[0]] * 2}
    path = tmp_path / "fit.safetensors"
    first, _ = fit_side_by_side(networks(n=2), tables((40, 40)), epochs=4, checkpoint_path=path, **options)
    lines = [
        f"epochs: {k} of 4 ({25 * k}%), train {train:.4g}, val {val:.4g}"
        for k, train, val in zip(range(1, 5), first.train_loss, first.val_loss, strict=True)
    ]
    assert capsys.readouterr().err.splitlines() == lines
    path.unlink()

    def killed(state):
        if state.epoch == 3 and state.member == 0:
            raise Killed

    with pytest.raises(Killed):
        fit_side_by_side(
            networks(n=2),
            tables((40, 40)),
            **{"epochs": 4, "checkpoint_path": path, "callbacks": [killed], "verbose": False},
            **options,
        )
    assert capsys.readouterr().err == ""
    fit_side_by_side(
        networks(n=2), tables((40, 40)), epochs=4, checkpoint_path=path, verbose="again", **options
    )
    assert capsys.readouterr().err.splitlines() == [line.replace("epochs", "again") for line in lines[2:]]


def test_a_checkpoint_of_another_scaling_is_refused(tmp_path):
    path, data = tmp_path / "fit.safetensors", tables((20,))
    options: dict[str, Any] = {"seeds": [0], "epochs": 2, "verbose": False, "checkpoint_path": path}
    scalings = [Scaling.of(*(torch.tensor(t) for t in rows)) for rows in (data[0], tables((33,))[0])]
    fit_side_by_side(networks(n=1), data, standardize=scalings[0], **options)
    fit_side_by_side(networks(n=1), data, standardize=scalings[0], **options)  # finished, and taken as it is
    for other in (scalings[1], True, False):
        with pytest.raises(ValueError, match="standardize was"):
            fit_side_by_side(networks(n=1), data, standardize=other, **options)


@pytest.mark.parametrize("other", ["x", "y", "weights"])
def test_a_checkpoint_of_other_data_is_refused(tmp_path, other):
    path, data = tmp_path / "fit.safetensors", tables((20,))
    options: dict[str, Any] = {"seeds": [0], "epochs": 2, "verbose": False, "checkpoint_path": path}
    fit_side_by_side(networks(n=1), data, **options)
    model = networks(n=1)
    if other == "weights":
        with torch.no_grad():
            next(model[0].parameters()).add_(1)
    else:
        data[0]["xy".index(other)][3, 1] += 1
    what = "initial weights" if other == "weights" else other
    with pytest.raises(ValueError, match=f"another run: {what} of network 0 differs. To start"):
        fit_side_by_side(model, data, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "epochs was 2 and is 3"),
        ({"batch_size": 9}, "batch_size was 8 and is 9"),
        ({"lr": 0.5}, "lr was 0.02 and is 0.5"),
        ({"weight_decay": 0.0}, "weight_decay was 0.01 and is 0.0"),
        ({"patience": 3}, "patience was None and is 3"),
        ({"schedule": "constant"}, "schedule was 'cosine' and is 'constant'"),
        ({"restore_best": False}, "restore_best was True and is False"),
        ({"seeds": [5]}, r"seeds was \[0\] and is \[5\]"),
        ({"crit": torch.nn.functional.l1_loss}, "crit was 'mse_loss' and is 'l1_loss'"),
        ({"validation": [0.5]}, r"validation was \[0.25\] and is \[0.5\]"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, change, message):
    options: dict[str, Any] = {
        **{"seeds": [0], "epochs": 2, "batch_size": 8, "lr": 0.02, "validation": [0.25]},
        **{"verbose": False, "checkpoint_path": tmp_path / "fit.safetensors"},
    }
    fit_side_by_side(networks(n=1), tables((20,)), **options)
    with pytest.raises(ValueError, match=f"belongs to another run: {message}"):
        fit_side_by_side(networks(n=1), tables((20,)), **(options | change))


def test_defaults_are_those_of_fit():
    its = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
    mine = {name: p.default for name, p in inspect.signature(fit_side_by_side).parameters.items()}
    assert {name: mine[name] for name in mine if name in its} == {
        name: its[name] for name in mine if name in its
    }


def test_a_loss_of_the_models_own_parameters_is_refused():
    models = networks(n=2)
    before = [[p.clone() for p in model.parameters()] for model in models]

    def crit(yhat, y):
        return (yhat - y).square().mean() + models[1].ResBlocks[0].lin_in.values.square().sum()

    with pytest.raises(ValueError, match="depends on parameters of model 1: train it with fit"):
        fit_side_by_side(models, tables((40, 40)), seeds=[0, 1], epochs=2, crit=crit, verbose=False)
    for model, old in zip(models, before, strict=True):
        assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), old, strict=True))


def test_lots_hold_as_many_networks_as_memory_allows(monkeypatch):
    models = networks(n=5)
    # L + 4 states of so many rows, samples (16 more than a batch, for padding) and bytes.
    each = (3 + 4) * models[0].plan.n_rows * (8 + 16) * 8
    sizes = []
    fit_lot = lots.Lot.fit

    def counted(self):
        sizes.append(len(self.members))
        fit_lot(self)

    monkeypatch.setattr(lots.Lot, "fit", counted)
    for most, wanted in (
        (2 * each, [2, 2, 1]),
        (2 * each - 1, [1] * 5),
        (5 * each, [5]),
        (each // 2, [1] * 5),
    ):
        sizes.clear()
        monkeypatch.setattr(module, "_MOST_BYTES", most)
        options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "verbose": False}
        fit_side_by_side(models, tables((20,) * 5), seeds=range(5), **options)
        assert sizes == wanted


def test_a_checkpoint_needs_a_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="checkpoint_path must be in a folder that exists, got .*nowhere"
    ):
        fit_side_by_side(
            networks(n=1), tables((20,)), seeds=[0], epochs=1, checkpoint_path=tmp_path / "nowhere" / "fit"
        )


def test_a_loss_that_explodes():
    models = networks()
    before = [copy.deepcopy(model.state_dict()) for model in models]
    data = tables()
    data[1] = (data[1][0], data[1][1] * 1e200)
    with pytest.raises(FloatingPointError, match="model 1"):
        fit_side_by_side(models, data, seeds=[0, 1, 2], epochs=3, batch_size=8, verbose=False)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_loss_that_explodes_late():
    """In the third of six epochs, without validation: every model gets its initial weights back."""
    models = networks(n=2)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    losses = 0

    def crit(yhat, y):
        nonlocal losses
        losses += 1
        return (yhat - y).square().mean() * (math.inf if losses > 2 * 2 * 5 else 1.0)

    with pytest.raises(FloatingPointError, match="model 0 became nan in epoch 3 of 6"):
        fit_side_by_side(
            models, tables((40, 40)), seeds=[0, 1], epochs=6, batch_size=8, crit=crit, verbose=False
        )
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_wrong_arguments():
    models, data = networks(), tables()
    for name, value in {"data": data[:2], "seeds": [1], "validation": [0.2], "sample_weight": [None]}.items():
        given = {"data": data, "seeds": [1, 2, 3], name: value}
        with pytest.raises(ValueError, match=f"^{name} must have one entry for each of 3 models, got"):
            fit_side_by_side(models, **given)
    with pytest.raises(ValueError, match="same model twice"):
        fit_side_by_side([models[0]] * 3, data, seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="epochs"):
        fit_side_by_side(models, data, seeds=[1, 2, 3], epochs=0)
    assert isinstance(SideBySide(models), torch.nn.Module)
