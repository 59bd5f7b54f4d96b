"""Callbacks: what they are told, stopping, and that an error in one loses nothing; weights of samples."""

import copy
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dense_oracle import random_graph

from gsnn.models.GSNN import GSNN
from gsnn.train import fit, fit_side_by_side
from gsnn.train import side_by_side as side_by_side_module
from gsnn.train.rules import loss_of, weighted_mse


def network(seed=0, **arguments):
    edges, names = random_graph(torch.Generator().manual_seed(0), n_function=9)
    arguments = {"channels": 3, "layers": 3, "norm": "none", "share_layers": False, **arguments}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GSNN(edges, names, **arguments).double()


def table(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    return x, np.tanh(x[:, :4]) + 0.1 * rng.normal(size=(n, 4))


OPTIONS: dict[str, Any] = {"batch_size": 8, "verbose": False, "schedule": "constant", "lr": 0.01}


def trained(epochs, seed=0, **options):
    model = network(seed)
    fit(model, *table(), epochs=epochs, seed=seed, **{**OPTIONS, **options})
    return model


def assert_equal(model, other, **tolerance):
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, **{"rtol": 0, "atol": 0, **tolerance})


class Stops:
    """Asks to stop after an epoch, of one network or of all."""

    def __init__(self, after, member=None):
        self.after, self.member, self.seen = after, member, []

    def on_epoch(self, state):
        self.seen.append((state.member, state.epoch))
        return state.epoch == self.after and self.member in (None, state.member)


def test_each_epoch_is_told_as_the_history_has_it():
    model = network()
    told: list[Any] = []
    history = fit(
        model, *table(), validation=table(9, 1), epochs=4, seed=0, callbacks=[told.append], **OPTIONS
    )
    assert [(s.epoch, s.epochs, s.member, s.members) for s in told] == [(k, 4, 0, 1) for k in range(1, 5)]
    for name in ("train_loss", "val_loss", "lr"):
        assert tuple(getattr(s, name) for s in told) == getattr(history, name)
    assert [s.best_epoch for s in told] == [1 + int(np.argmin(history.val_loss[:k])) for k in range(1, 5)]
    assert all(s.model is model for s in told)
    assert told[0].metrics() == {"train_loss": told[0].train_loss, "val_loss": told[0].val_loss, "lr": 0.01}


def test_metrics_leave_out_what_is_not_there():
    told: list[Any] = []
    fit(network(), *table(), epochs=1, seed=0, callbacks=[told.append], **OPTIONS)
    assert math.isnan(told[0].val_loss) and sorted(told[0].metrics()) == ["lr", "train_loss"]


def test_true_stops_after_this_epoch():
    model, stop, after = network(), Stops(3), []
    history = fit(model, *table(), epochs=9, seed=0, callbacks=[stop, lambda s: after.append(1)], **OPTIONS)
    assert (len(history.train_loss), history.best_epoch, history.stopped_early) == (3, 3, True)
    assert len(after) == 3  # those behind it are called all the same
    assert_equal(model, trained(3))


def test_a_stopped_fit_restores_the_best_weights():
    options: dict[str, Any] = {**OPTIONS, "lr": 0.3, "validation": table(9, 1), "epochs": 9, "seed": 0}
    losses, best = [], []

    def watch(state):
        losses.append(state.val_loss)
        best.append(copy.deepcopy(state.model.state_dict()))
        return state.epoch == 6

    model = network()
    history = fit(model, *table(), callbacks=[watch], **options)
    at = int(np.argmin(losses))
    assert at < 5 and history.best_epoch == at + 1
    for name, value in best[at].items():
        assert torch.equal(model.state_dict()[name], value)


class Broken(Exception):
    pass


def failing(state):
    if state.epoch == 3 and state.member == state.members - 1:
        raise Broken


def test_an_error_in_a_callback_leaves_the_weights_of_that_epoch():
    model = network()
    with pytest.raises(Broken):
        fit(model, *table(), epochs=9, seed=0, callbacks=[failing], **OPTIONS)
    assert_equal(model, trained(3))


def test_an_error_in_a_callback_leaves_the_best_weights():
    options: dict[str, Any] = {**OPTIONS, "lr": 0.3, "validation": table(9, 1), "seed": 0, "epochs": 9}
    stopped, broken = network(), network()
    fit(stopped, *table(), callbacks=[Stops(3)], **options)
    with pytest.raises(Broken):
        fit(broken, *table(), callbacks=[failing], **options)
    assert_equal(broken, stopped)


def test_side_by_side_one_stops_and_the_others_go_on():
    models, alone = [network(k) for k in range(3)], [network(k) for k in range(3)]
    stop = Stops(2, member=1)
    options: dict[str, Any] = {**OPTIONS, "epochs": 5}
    histories = fit_side_by_side(models, [table()] * 3, seeds=[0, 1, 2], callbacks=[stop], **options)
    assert sorted(stop.seen) == sorted([(m, e) for m in (0, 2) for e in range(1, 6)] + [(1, 1), (1, 2)])
    assert [h.stopped_early for h in histories] == [False, True, False]
    for k, model in enumerate(alone):
        fit(model, *table(), seed=k, callbacks=[Stops(2)] if k == 1 else (), **options)
        assert_equal(models[k], model, rtol=1e-7, atol=1e-9)


def test_side_by_side_callbacks_see_the_weights_of_their_network():
    seen = {}

    def keep(state):
        seen[state.member, state.epoch] = copy.deepcopy(state.model)

    fit_side_by_side(
        [network(0), network(1)], [table()] * 2, seeds=[0, 1], epochs=3, callbacks=[keep], **OPTIONS
    )
    for member, epoch in seen:
        assert_equal(seen[member, epoch], trained(epoch, member), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_side_by_side_an_error_leaves_the_weights_of_that_epoch(error):
    def fails(state):
        if state.epoch == 3 and state.member == 1:
            raise error

    models = [network(0), network(1)]
    with pytest.raises(error):
        fit_side_by_side(models, [table()] * 2, seeds=[0, 1], epochs=9, callbacks=[fails], **OPTIONS)
    for k, model in enumerate(models):
        assert_equal(model, trained(3, k), rtol=1e-7, atol=1e-9)


def test_side_by_side_an_error_leaves_the_best_weights():
    options: dict[str, Any] = {**OPTIONS, "lr": 0.3, "epochs": 9}
    aside = table(9, 1)
    models = [network(0), network(1)]
    with pytest.raises(Broken):
        fit_side_by_side(
            models, [table()] * 2, seeds=[0, 1], validation=[aside] * 2, callbacks=[failing], **options
        )
    for k, model in enumerate(models):
        alone = network(k)
        fit(alone, *table(), seed=k, validation=aside, callbacks=[Stops(3)], **options)
        assert_equal(model, alone, rtol=1e-6, atol=1e-8)


def test_side_by_side_members_are_counted_over_lots(monkeypatch):
    monkeypatch.setattr(side_by_side_module, "_MOST_BYTES", 1)
    told: list[Any] = []
    fit_side_by_side(
        [network(0), network(1)], [table()] * 2, seeds=[0, 1], epochs=1, callbacks=[told.append], **OPTIONS
    )
    assert [(s.member, s.members) for s in told] == [(0, 2), (1, 2)]
    assert sorted(told[1].metrics()) == ["member1/lr", "member1/train_loss"]


def test_random_numbers_of_a_callback_change_nothing():
    def draws(state):
        torch.rand(7)

    for seed in (0, 1):
        model = network(dropout=0.3)
        fit(model, *table(), epochs=3, seed=seed, callbacks=[draws], **OPTIONS)
        other = network(dropout=0.3)
        fit(other, *table(), epochs=3, seed=seed, **OPTIONS)
        assert_equal(model, other)


def test_what_was_stopped_stays_stopped(tmp_path):
    for name, members in (("one", 1), ("side", 2)):
        options: dict[str, Any] = {
            **OPTIONS,
            "epochs": 8,
            "checkpoint_path": tmp_path / f"{name}.safetensors",
        }
        found: list[Any] = []
        for callbacks in ([Stops(3)], ()):
            models = [network(k) for k in range(members)]
            if members == 1:
                history = [fit(models[0], *table(), seed=0, callbacks=callbacks, **options)]
            else:
                history = fit_side_by_side(
                    models, [table()] * 2, seeds=[0, 1], callbacks=callbacks, **options
                )
            found.append((models, history))
        (first, expected), (again, histories) = found
        assert [h.stopped_early for h in histories] == [True] * members
        assert [h.train_loss for h in histories] == [h.train_loss for h in expected]
        for model, other in zip(again, first, strict=True):
            assert_equal(model, other)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (3, "callbacks must be a list of functions or objects with on_epoch, got 3"),
        (["no"], "got 'no' in it"),
        ([Stops], "got <class 'test_callbacks.Stops'> in it"),
        ([lambda state: 0.5], "a callback must return True to stop, else False or None; .* returned 0.5"),
    ],
)
def test_bad_callbacks(callbacks, message):
    with pytest.raises(TypeError, match=message):
        fit(network(), *table(), epochs=2, seed=0, callbacks=callbacks, **OPTIONS)


REPEATS = np.array([2, 1, 0, 3, 1, 2])


@pytest.mark.parametrize("validation", [None, "given"])
def test_weights_are_repeats(validation):
    """One full batch, no norm: a row of weight 3 is three rows, one of weight 0 is none."""
    x, y = table(6)
    options: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 64,
        "verbose": False,
        "seed": 0,
        "lr": 0.01,
        "weight_decay": 0.1,
    }
    options["validation"] = None if validation is None else table(9, 1)
    weighted, repeated = network(), network()
    history = fit(weighted, x, y, sample_weight=REPEATS, **options)
    expected = fit(repeated, np.repeat(x, REPEATS, 0), np.repeat(y, REPEATS, 0), **options)
    assert_equal(weighted, repeated, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(history.train_loss, expected.train_loss)
    np.testing.assert_allclose(history.val_loss, expected.val_loss)


def test_rows_of_weight_0_are_in_no_batch():
    """In several batches, with running statistics and scaling: as if the rows had been taken out by hand."""
    x, y = table(24)
    weight = np.ones(24)
    weight[[0, 5, 6, 20, 23]] = 0.0
    options: dict[str, Any] = {**OPTIONS, "epochs": 3, "seed": 0, "standardize": True}
    weighted, without = network(norm="groupbatch"), network(norm="groupbatch")
    fit(weighted, x, y, sample_weight=weight, **options)
    fit(without, x[weight > 0], y[weight > 0], sample_weight=weight[weight > 0], **options)
    assert_equal(weighted, without)
    assert weighted.scaling == without.scaling


def test_weights_side_by_side():
    models, alone = [network(0), network(1)], [network(0), network(1)]
    weights = [np.linspace(0, 2, 24), np.linspace(3, 1, 24)]
    options: dict[str, Any] = {**OPTIONS, "epochs": 3}
    data = [table()] * 2
    fit_side_by_side(models, data, seeds=[0, 1], sample_weight=weights, validation=[0.3] * 2, **options)
    for k, model in enumerate(alone):
        fit(model, *table(), seed=k, sample_weight=weights[k], validation=0.3, **options)
        assert_equal(models[k], model, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="sample_weight must be given for all models or for none"):
        fit_side_by_side(models, data, seeds=[0, 1], sample_weight=[weights[0], None], **options)


def test_weights_meet_measured_entries():
    yhat = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    y = torch.tensor([[0.0, math.nan], [1.0, 4.0]])
    loss = loss_of(weighted_mse, yhat, y, True, torch.tensor([3.0, 0.5]))
    assert float(loss) == pytest.approx((3 * 1 + 0.5 * 4 + 0.5 * 1) / 3)


def test_weights_of_put_aside_rows_count_in_the_validation_loss():
    """Where one row has all the weight of those put aside, the loss is that row's."""
    x, y = table(10)
    model = network()
    told: list[Any] = []
    weight = np.ones(10)
    options: dict[str, Any] = {**OPTIONS, "seed": 3, "epochs": 1, "validation": 0.3}
    fit(model, x, y, sample_weight=weight, callbacks=[told.append], **options)
    held = torch.randperm(10, generator=torch.Generator().manual_seed(3))[:3].numpy()
    weight[held] = [1e6, 1e-6, 1e-6]
    model = network()
    history = fit(model, x, y, sample_weight=weight, restore_best=False, **options)
    with torch.no_grad():
        errors = (model.eval()(torch.from_numpy(x)) - torch.from_numpy(y)).square().mean(1).numpy()
    assert history.val_loss[0] == pytest.approx(errors[held[0]], rel=1e-5)
    assert told[0].val_loss != pytest.approx(history.val_loss[0], rel=1e-3)


def test_a_series_of_weights_is_matched_by_name():
    x, y = table(6)
    names = list("abcdef")
    frame = pd.DataFrame(x, index=names, columns=network().graph.node_names_dict["input"])
    options: dict[str, Any] = {**OPTIONS, "seed": 0, "epochs": 2}
    series = pd.Series(REPEATS, index=names)
    one, other = network(), network()
    fit(one, frame, y, sample_weight=series[::-1], **options)
    fit(other, x, y, sample_weight=REPEATS, **options)
    assert_equal(one, other)
    with pytest.raises(ValueError, match="sample_weight must name the samples of x, each once; 2 are in one"):
        fit(one, frame, y, sample_weight=series.rename({"a": "z"}), **options)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(5), r"sample_weight must have the shape \(6,\), one weight a row, got \(5,\)"),
        (-np.ones(6), "sample_weight must be finite numbers of at least 0, not all .*, got -1 to -1"),
        (np.zeros(6), "not all of them zero, got 0 to 0"),
        (np.full(6, np.nan), "sample_weight must be finite"),
        (["a"] * 6, "sample_weight must be numeric"),
    ],
)
def test_bad_weights(weight, message):
    with pytest.raises(ValueError, match=message):
        fit(network(), *table(6), sample_weight=weight, **OPTIONS)
