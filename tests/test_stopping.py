"""choose_epochs: the length that predicts samples put aside best, and what it says of it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import KFold
from test_estimator import graph, regressor, table

from gsnn import GSNN, fit, predict
from gsnn.estimator import stopping as module
from gsnn.estimator.stopping import choose_epochs

OPTIONS: dict[str, Any] = {"lr": 0.03, "weight_decay": 0.0, "standardize": True}


def network(seed):
    torch.manual_seed(seed)
    return GSNN(graph().edge_index_dict, graph().node_names_dict, channels=4, layers=2, norm="none")


def arrays(n=24, noise=False, seed=0):
    x, y = (t.to_numpy(copy=True) for t in table(n, seed))  # pandas gives what cannot be written
    return x, np.random.default_rng(seed).normal(size=y.shape) if noise else y


@pytest.fixture
def short(monkeypatch):
    """A ladder of 2, 4, ..., 128 epochs."""
    monkeypatch.setattr(module, "default_epochs", lambda n, batch_size: 32)


@pytest.mark.usefixtures("short")
def test_losses_are_those_of_single_fits_on_the_folds():
    x, y = arrays()
    y[np.random.default_rng(1).random(y.shape) < 0.2] = np.nan
    found = choose_epochs(network, x, y, seed=5, **OPTIONS)
    squares = []
    for k, (train, held) in enumerate(KFold(3, shuffle=True, random_state=5).split(x)):
        model = network(5 + k)
        fit(model, x[train], y[train], epochs=2, seed=5 + k, verbose=False, **OPTIONS)
        error = (predict(model, x[held]) - y[held]) / np.nanstd(y[train], axis=0)
        squares += list(error[~np.isnan(error)] ** 2)
    assert list(found.losses)[:2] == [2, 4]
    assert found.losses[2] == pytest.approx(np.mean(squares), rel=1e-4)


@pytest.mark.usefixtures("short")
def test_noise_is_left_early_and_structure_is_learnt():
    noise = choose_epochs(network, *arrays(noise=True), **OPTIONS)
    assert noise.epochs <= 8 and len(noise.losses) <= 5
    clear = choose_epochs(network, *arrays(), **OPTIONS)
    assert clear.epochs >= 64 and clear.losses[clear.epochs] < 0.1
    for choice in (noise, clear):
        assert choice.why.startswith(f"{choice.epochs} epochs, by the loss on samples put aside in 3 folds")
        for epochs, loss in choice.losses.items():
            assert f"{loss:.3f} after {epochs}" in choice.why
    assert noise.why.endswith("twice as many lower it by less than 2%")


def spied(monkeypatch):
    seen = []

    def spy(models, data, **options):
        seen.append((data, options))

    monkeypatch.setattr(module, "fit_side_by_side", spy)
    return seen


@pytest.mark.usefixtures("short")
def test_it_ends_where_twice_as_many_are_not_worth_it(monkeypatch):
    losses = iter([0.9, 0.5, 0.4, 0.393])
    seen = spied(monkeypatch)
    monkeypatch.setattr(module, "_loss", lambda *args: next(losses))
    assert choose_epochs(network, *arrays()).epochs == 8
    assert [options["epochs"] for _, options in seen] == [2, 4, 8, 16]
    falling = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    monkeypatch.setattr(module, "_loss", lambda *args: next(falling))
    choice = choose_epochs(network, *arrays())
    assert list(choice.losses) == [2, 4, 8, 16, 32, 64, 128] and choice.epochs == 128
    assert choice.why.endswith("0.300 after 128; this is the longest that is tried")


@pytest.mark.usefixtures("short")
def test_groups_stay_whole_and_weights_go_along(monkeypatch):
    seen = spied(monkeypatch)
    monkeypatch.setattr(module, "_loss", lambda *args: 1.0)
    x, y = arrays()
    labels, weight = np.repeat(list("abcdef"), 4), np.arange(24.0)
    choose_epochs(network, x, y, groups=labels, sample_weight=weight)
    group = {tuple(row): label for row, label in zip(x, labels, strict=True)}
    for (part, _), weights in zip(seen[0][0], seen[0][1]["sample_weight"], strict=True):
        counts = pd.Series([group[tuple(row)] for row in part]).value_counts()
        assert len(part) == 16 and (counts == 4).all()
        np.testing.assert_array_equal(x[weights.astype(int)], part)


def test_a_design_is_not_dealt_out_one_level_to_a_fold():
    level = np.tile(np.arange(3), 9)
    for seed in range(5):
        splits = module._splits(np.zeros((27, 1)), np.arange(27), 3, seed)
        assert sorted(np.concatenate([held for _, held in splits])) == list(range(27))
        assert all(len(held) == 9 and len(set(level[held])) == 3 for _, held in splits)


@pytest.mark.parametrize("case", ["one sample", "one group", "an output measured once"])
def test_where_nothing_can_be_put_aside(case):
    x, y = arrays()
    labels: Any = None
    if case == "one sample":
        x, y = x[:1], y[:1]
    elif case == "one group":
        labels = ["a"] * 24
    else:
        y[1:, 0] = np.nan
        x, y, labels = x[:4], y[:4], [0, 1, 1, 1]
    choice = choose_epochs(network, x, y, groups=labels)
    if case == "an output measured once":
        assert len(choice.losses) > 0  # judged on the part without that sample
    else:
        assert (choice.epochs, choice.losses) == (400, {})
        assert choice.why.startswith("400 epochs, the default for") and "too few samples" in choice.why


def test_folds_are_checked():
    with pytest.raises(ValueError, match="folds must be an int of at least 2, got 1"):
        choose_epochs(network, *arrays(), folds=1)


@pytest.mark.usefixtures("short")
def test_the_estimator_uses_it():
    x, y = table(24)
    model = regressor(epochs="auto", lr=0.03, norm="none").fit(x, y)
    choice = model.epochs_choice_
    assert model.epochs_ == choice.epochs == len(model.histories_[0].train_loss)
    again = regressor(epochs=choice.epochs, lr=0.03, norm="none").fit(x, y)
    np.testing.assert_array_equal(model.predict(x), again.predict(x))
    assert not hasattr(again, "epochs_choice_")
    assert not hasattr(model.set_params(epochs=1).fit(x, y), "epochs_choice_")
    with pytest.raises(ValueError, match="epochs must be one of 'auto', got 'many'"):
        regressor(epochs="many").fit(x, y)
