"""suggest: settings that a network can be trained with, from the size of graph and data."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GridSearchCV, KFold
from test_estimator import graph, table

import gsnn
from gsnn import GSNNRegressor, suggest
from gsnn.simulate.scenarios import converging_tiers

SMALLER = {"epochs": 2, "n_members": 1}


def test_settings_follow_from_the_size():
    x, y = table(48)
    few = suggest(graph(), x, y)
    assert few.settings == {
        "channels": 8,
        "layers": 4,
        "epochs": 400,
        "batch_size": 64,
        "lr": 3e-3,
        "weight_decay": 0.1,
        "dropout": 0.2,
        "n_members": 5,
    }
    x, y = table(2100)
    many = suggest(graph(), x, y)
    wanted = {"channels": 16, "epochs": 61, "weight_decay": 0.01, "n_members": 1}
    assert {name: many.settings[name] for name in wanted} == wanted
    tiled = pd.concat([x] * 10, ignore_index=True), pd.concat([y] * 10, ignore_index=True)
    assert suggest(graph(), *tiled).settings["batch_size"] == 256


def test_each_setting_is_in_its_grid_and_has_its_reason():
    found = suggest(graph(), *table(48))
    assert set(found.why) == set(found.settings)
    for name, values in found.grid.items():
        assert found.settings[name] in values and len(values) > 1
        assert values == sorted(values)
    text = str(found)
    assert all(f"{name}" in text and reason in text for name, reason in found.why.items())
    assert isinstance(GSNNRegressor(graph(), **found.settings), GSNNRegressor)


def test_weights_are_counted_as_published():
    """6,924: the published count for this graph with 6 layers of 8 channels, see tests/test_gsnn.py."""
    scenario = converging_tiers(width=12)
    x, _, y, _ = scenario.sample(n_train=30, n_test=0, seed=0)
    found = gsnn.estimator.suggestion._weights(scenario.partial, 8, 6)
    assert found == 6924
    layers = suggest(scenario.partial, x, y).settings["layers"]
    count = gsnn.estimator.suggestion._weights(scenario.partial, 8, layers)
    assert (
        f"{count:,} weights for {30 * 12:,} measured values"
        in suggest(scenario.partial, x, y).why["weight_decay"]
    )


def test_gaps_and_rows_without_any_value_do_not_count():
    x, y = table(48)
    y.iloc[:8] = np.nan
    y.iloc[10, 0] = np.nan
    found = suggest(graph(), x, y)
    assert (
        found.why["channels"].startswith("40 samples") and "79 measured values" in found.why["weight_decay"]
    )
    with pytest.raises(ValueError, match="y must have at least one measured value, got none"):
        suggest(graph(), x, y * np.nan)
    with pytest.raises(ValueError, match="x has no column for 1 input node"):
        suggest(graph(), x.drop(columns="a"), y)


def test_replicates_are_pointed_out():
    x, y = table(48)
    assert suggest(graph(), x, y).notes == ()
    x.iloc[24:] = x.iloc[:24].to_numpy()
    note = suggest(graph(), x, y).notes[0]
    assert note.startswith("48 samples have 24 different inputs: give groups")
    assert str(suggest(graph(), x, y)).endswith(note)


def test_the_grid_can_be_searched():
    x, y = table(24)
    found = suggest(graph(), x, y)
    grid = {name: found.grid[name][:2] for name in ("channels", "lr")}
    model = GSNNRegressor(graph(), random_state=0).set_params(**found.settings).set_params(**SMALLER)
    search = GridSearchCV(model, grid, cv=KFold(2)).fit(x, y)
    assert set(search.best_params_) == {"channels", "lr"}


class Trial:
    """Answers as Optuna's trials do: the last of the values, the upper end of a range."""

    def suggest_categorical(self, name, values):
        return values[-1]

    def suggest_float(self, name, low, high, log):
        assert log and low < high
        return high


def test_asking_a_trial():
    found = suggest(graph(), *table(48))
    asked = found.ask(Trial(), prefix="gsnn__")
    assert asked == {f"gsnn__{name}": values[-1] for name, values in found.grid.items()}


def test_optuna_can_search():
    optuna = pytest.importorskip("optuna", reason="needs the extra optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    x, y = table(24)
    found = suggest(graph(), x, y)
    tried = []

    def objective(trial):
        model = GSNNRegressor(graph(), random_state=0).set_params(**found.ask(trial)).set_params(**SMALLER)
        tried.append(model.get_params())
        return model.fit(x[:16], y[:16]).score(x[16:], y[16:])

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    assert set(study.best_params) == set(found.grid)
    assert all(1e-3 <= params["lr"] <= 1e-2 for params in tried) and len({p["lr"] for p in tried}) == 3
