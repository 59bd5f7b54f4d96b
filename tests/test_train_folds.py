"""The networks of a run, trained side by side, against each of them trained alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gsnn.app.demo import write_tables
from gsnn.app.settings import Options, new_model
from gsnn.app.training import train_folds
from gsnn.data.tables import load_data
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import fit
from gsnn.train import side_by_side as module

OPTIONS = Options(folds=3, channels=3, layers=4, epochs=4, batch_size=7, lr=1e-2, dropout=0.3, seed=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 samples with gaps; the last five are not measured at all."""
    paths = write_tables(converging_tiers(4), tmp_path_factory.mktemp("data"), n=40, seed=0)
    data = load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])
    gaps = np.random.default_rng(0).random(data.y.shape) < 0.2
    gaps[35:] = True
    return replace(data, y=data.y.mask(gaps))


@pytest.mark.parametrize("norm", ["groupbatch", "layer"])
@pytest.mark.parametrize("most", [2**30, 1], ids=["at one time", "cut"])
def test_each_ends_where_it_would_alone(data, norm, most, monkeypatch):
    """Folds of 27, 26 and 35 training rows, so of 4 and 5 batches; the last test fold is not measured."""
    options = replace(OPTIONS, norm=norm)
    monkeypatch.setattr(module, "_MOST_BYTES", most)
    splits = [
        (np.arange(13, 40), np.arange(13)),
        (np.r_[0:13, 27:40], np.arange(13, 27)),
        (np.arange(35), np.arange(35, 40)),
    ]
    models, histories, why = train_folds(data, options, splits, verbose=False)
    assert why == ""
    x, y = data.x.to_numpy(), data.y.to_numpy()
    everything = (np.arange(40), None)
    for number, (train, test) in enumerate([*splits, everything], 1):
        seed = 5 + number if number < 4 else 5
        alone = new_model(data, options, seed)
        watched = None if number > 2 else (x[test], y[test])
        expected = fit(
            alone,
            x[train],
            y[train],
            validation=watched,
            restore_best=False,
            epochs=4,
            batch_size=7,
            lr=1e-2,
            weight_decay=options.weight_decay,
            standardize=True,
            seed=seed,
            verbose=False,
        )
        found, history = models[number - 1], histories[number - 1]
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        for name in ("train_loss", "val_loss", "lr"):
            np.testing.assert_allclose(getattr(history, name), getattr(expected, name), rtol=1e-4)
        assert found.scaling == alone.scaling
