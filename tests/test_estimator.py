"""GSNNRegressor: names, gaps, weights, groups, members, and the machinery of scikit-learn around it."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gsnn
from gsnn import GSNN, GSNNRegressor, HeteroGraph, fit, predict
from gsnn.estimator import regressor as module

INPUTS, OUTPUTS = ["a", "b", "c"], ["u", "v"]


def graph(inputs=INPUTS, outputs=OUTPUTS):
    """a, b -> f0 -> u and c -> f1 -> v, f0 -> f1."""
    edges = {
        ("input", "to", "function"): torch.tensor([[0, 1, 2], [0, 0, 1]]),
        ("function", "to", "function"): torch.tensor([[0], [1]]),
        ("function", "to", "output"): torch.tensor([[0, 1], [0, 1]]),
    }
    return HeteroGraph(edges, {"input": inputs, "function": ["f0", "f1"], "output": outputs})


def table(n=48, seed=0, gaps=False):
    rng = np.random.default_rng(seed)
    x = pd.DataFrame(rng.normal(size=(n, 3)), columns=INPUTS, index=[f"s{i}" for i in range(n)])
    y = pd.DataFrame({"u": 5 + 2 * x["a"] - x["b"], "v": 30 * x["c"] - 10 * x["a"]})
    y += rng.normal(size=y.shape) * 0.05
    if gaps:
        y = y.mask(rng.random(y.shape) < 0.2)
    return x, y


def regressor(**options):
    options = {"channels": 4, "layers": 2, "epochs": 3, "dropout": 0.0, "random_state": 0, **options}
    return GSNNRegressor(options.pop("graph", None) or graph(), **options)


LEARNS = {"epochs": 120, "lr": 0.03, "norm": "none", "batch_size": 16}


def test_it_learns_in_the_units_of_y():
    x, y = table(gaps=True)
    model = regressor(**LEARNS).fit(x, y)
    x_new, y_new = table(60, seed=1)
    yhat = model.predict(x_new)
    assert yhat.shape == (60, 2)
    assert r2_score(y_new, yhat, multioutput="raw_values").min() > 0.95
    assert model.score(x_new, y_new) == pytest.approx(r2_score(y_new, yhat))
    assert (model.layers_, model.epochs_, model.n_features_in_, model.n_outputs_) == (2, 120, 3, 2)


def test_one_member_is_one_fit():
    x, y = table(gaps=True)
    model = regressor().fit(x, y)
    seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=2)[1]
    torch.manual_seed(seed)
    alone = GSNN(
        graph().edge_index_dict,
        graph().node_names_dict,
        channels=4,
        layers=2,
        norm="groupbatch",
        share_layers=False,
    )
    history = fit(
        alone, x, y, epochs=3, lr=3e-3, weight_decay=1e-2, standardize=True, seed=int(seed), verbose=False
    )
    np.testing.assert_allclose(model.predict(x), predict(alone, x), rtol=1e-4)
    np.testing.assert_allclose(model.histories_[0].train_loss, history.train_loss, rtol=1e-4)


def test_members_are_averaged_and_their_spread_is_told():
    x, y = table()
    model = regressor(n_members=3).fit(x, y)
    each = np.stack([predict(member, x).to_numpy() for member in model.models_]).astype(float)
    mean, std = model.predict(x, return_std=True)
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(((each - each.mean(0)) ** 2).sum(0) / 2), rtol=1e-6)
    assert (std > 0).all() and len(model.histories_) == 3
    first = regressor(n_members=1).fit(x, y)
    np.testing.assert_allclose(first.predict(x), each[0], rtol=1e-4)
    with pytest.raises(ValueError, match="return_std needs n_members of at least 2, got 1"):
        first.predict(x, return_std=True)


def test_columns_go_by_name_and_predictions_in_the_order_of_y():
    x, y = table()
    expected = regressor().fit(x, y).predict(x)
    model = regressor().fit(x[["c", "a", "b"]], y[["v", "u"]])
    np.testing.assert_array_equal(model.predict(x), expected[:, ::-1])
    np.testing.assert_array_equal(model.predict(x[["b", "c", "a"]]), expected[:, ::-1])
    assert list(model.feature_names_in_) == ["c", "a", "b"] and model.output_names_ == ["v", "u"]
    assert model.score(x, y) == pytest.approx(r2_score(y, expected))
    with pytest.warns(UserWarning, match="X does not have valid feature names, but GSNNRegressor was fitted"):
        found = model.predict(x[["c", "a", "b"]].to_numpy())  # an array has the order of fit
    np.testing.assert_array_equal(found, expected[:, ::-1])
    arrays = regressor().fit(x.to_numpy(), y.to_numpy())
    np.testing.assert_array_equal(arrays.predict(x.to_numpy()), expected)
    assert not hasattr(arrays, "feature_names_in_")
    assert not hasattr(model.fit(x.to_numpy(), y.to_numpy()), "feature_names_in_")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.drop(columns="b"), y), "X has no column for 1 input node.*'b'"),
        (lambda x, y: (x, y.rename(columns={"u": "w"})), "Y has no column for 1 output node.*'u'.*'w'"),
        (lambda x, y: (x.to_numpy()[:, :2], y), r"X must have the shape \(samples, 3\)"),
        (lambda x, y: (x, y.to_numpy()[:, 0]), r"Y must have the shape \(samples, 2\)"),
        (lambda x, y: (x.rename({"s0": "zz"}), y), "X and Y must have the same samples"),
        (lambda x, y: (x, y.replace(y.iloc[0, 0], np.inf)), "Y must be finite or NaN, got inf"),
        (lambda x, y: (x, y.to_numpy().astype(complex)), "Complex data not supported"),
        (lambda x, y: (x, None), "requires y to be passed, but the target y is None"),
    ],
)
def test_bad_tables(change, message):
    model = regressor()
    with pytest.raises(ValueError, match=message):
        model.fit(*change(*table()))
    with pytest.raises(NotFittedError):
        model.predict(table()[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_members": 0}, ValueError, "n_members must be a positive int, got 0"),
        ({"validation": 1.5}, ValueError, r"validation must be \(X_val, Y_val\) or a fraction in"),
        ({"graph": 3}, TypeError, "graph must be a HeteroGraph or a function that returns one"),
        ({"model_options": {"nothing": 1}}, TypeError, "nothing"),
        ({"callbacks": 3}, TypeError, "callbacks must be a list"),
        (
            {"checkpoint_path": "f", "random_state": None},
            ValueError,
            "checkpoint_path needs a random_state",
        ),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        regressor(**options).fit(*table())


def test_rows_of_two_frames_go_by_name():
    x, y = table()
    expected = regressor().fit(x, y).predict(x)
    weight = pd.Series(np.linspace(0.5, 2, len(x)), index=x.index)
    np.testing.assert_array_equal(regressor().fit(x, y[::-1]).predict(x), expected)
    weighted = regressor().fit(x, y, sample_weight=weight)
    np.testing.assert_array_equal(
        regressor().fit(x, y, sample_weight=weight[::-1]).predict(x), weighted.predict(x)
    )
    assert weighted.score(x, y[::-1]) == weighted.score(x, y)
    assert not np.allclose(weighted.predict(x), expected)


def test_a_vector_in_a_vector_out():
    x, y = table()
    single = HeteroGraph(
        {k: v for k, v in graph().edge_index_dict.items() if k[2] != "output"}
        | {("function", "to", "output"): torch.tensor([[0], [0]])},
        {"input": INPUTS, "function": ["f0", "f1"], "output": ["u"]},
        warn=False,
    )
    model = regressor(graph=single, n_members=2).fit(x, y["u"])
    mean, std = model.predict(x, return_std=True)
    assert mean.shape == std.shape == (48,)
    column = regressor(graph=single, n_members=2).fit(x, y[["u"]]).predict(x)
    np.testing.assert_array_equal(column, mean[:, None])
    np.testing.assert_array_equal(regressor(graph=single, n_members=2).fit(x, y["u"][::-1]).predict(x), mean)


def test_score_leaves_out_what_was_not_measured():
    x, y = table(gaps=True)
    model = regressor().fit(x, y)
    yhat, weight = model.predict(x), np.arange(48.0)
    expected = []
    for j in range(2):
        seen = y.iloc[:, j].notna().to_numpy()
        t, g, w = y.to_numpy()[seen, j], yhat[seen, j], weight[seen]
        mean = (w * t).sum() / w.sum()
        expected.append(1 - (w * (t - g) ** 2).sum() / (w * (t - mean) ** 2).sum())
    assert model.score(x, y, sample_weight=weight) == pytest.approx(np.mean(expected))
    few = y.copy()
    few.iloc[1:, 1] = np.nan
    assert model.score(x, few) == pytest.approx(r2_score(y["u"].dropna(), yhat[y["u"].notna().to_numpy(), 0]))
    with pytest.raises(ValueError, match="Y must have an output with at least two measured samples"):
        model.score(x, few.assign(u=np.nan))


def spied(monkeypatch):
    seen = []
    real = module.fit_side_by_side

    def spy(models, data, **options):
        seen.append((data, options))
        return real(models, data, **options)

    monkeypatch.setattr(module, "fit_side_by_side", spy)
    return seen


def test_groups_stay_whole_where_a_share_is_put_aside(monkeypatch):
    x, y = table()
    labels = np.repeat(np.arange(12), 4)
    seen = spied(monkeypatch)
    for seed in range(3):
        model = regressor(validation=0.25, n_members=2, random_state=seed)
        model.fit(x.to_numpy(), y.to_numpy(), groups=labels)
        (train, again), options = seen[-1][0], seen[-1][1]
        held = options["validation"][0][0]
        rows = {tuple(row): group for row, group in zip(x.to_numpy(), labels, strict=True)}
        of_train = {rows[tuple(row)] for row in train[0]}
        of_held = {rows[tuple(row)] for row in held}
        assert not of_train & of_held and len(of_held) == 3 and len(of_train) == 9
        assert again[0] is train[0] and len(train[0]) == 36
    with pytest.raises(ValueError, match=r"groups must have the shape \(48,\), one label a row, got \(3,\)"):
        model.fit(x, y, groups=[1, 2, 3])


def test_validation_tables_and_patience():
    x, y = table()
    aside = table(20, seed=2)
    model = regressor(validation=aside, patience=2, lr=0.3, epochs=40).fit(x, y)
    history = model.histories_[0]
    assert history.stopped_early and len(history.val_loss) < 40
    assert history.best_epoch == 1 + int(np.argmin(history.val_loss))
    arrays = regressor(validation=tuple(t.to_numpy() for t in aside), patience=2, lr=0.3, epochs=40)
    np.testing.assert_array_equal(arrays.fit(x, y).predict(x), model.predict(x))


def test_weight_zero_is_absence():
    x, y = table()
    weight = np.ones(48)
    weight[30:] = 0
    found = regressor().fit(x, y, sample_weight=weight).predict(x)
    np.testing.assert_allclose(found, regressor().fit(x[:30], y[:30]).predict(x), rtol=1e-4, atol=1e-5)


def test_sparse_inputs():
    from scipy.sparse import csr_array

    x, y = table()
    x = x.where(x > 0, 0)
    expected = regressor(validation=0.3).fit(x.to_numpy(), y).predict(x.to_numpy())
    found = regressor(validation=0.3).fit(csr_array(x.to_numpy()), y).predict(csr_array(x.to_numpy()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_copies_clones_and_pickles():
    x, y = table()
    model = regressor(n_members=2).fit(x, y)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), clone(model).fit(x, y)):
        np.testing.assert_array_equal(other.predict(x), model.predict(x))
    assert not hasattr(clone(model), "models_")
    assert model.get_params()["channels"] == 4 and model.set_params(channels=3).fit(x, y).channels == 3
    assert model.models_[0].channels == 3


def test_what_decides_the_result_is_random_state():
    x, y = table()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = regressor(dropout=0.3).fit(x, y).predict(x)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(regressor(dropout=0.3).fit(x, y).predict(x), one)
    assert not np.allclose(regressor(dropout=0.3, random_state=1).fit(x, y).predict(x), one)
    np.random.seed(0)
    drawn = regressor(dropout=0.3, random_state=None).fit(x, y).predict(x)
    np.testing.assert_array_equal(drawn, one)


def test_out_of_fold_predictions_of_a_pipeline_are_those_of_y():
    x, y = table(gaps=True)
    chain = make_pipeline(StandardScaler().set_output(transform="pandas"), regressor(**LEARNS))
    yhat = cross_val_predict(chain, x[["c", "b", "a"]], y[["v", "u"]], cv=KFold(3))
    for j, name in enumerate(["v", "u"]):
        seen = y[name].notna().to_numpy()
        assert r2_score(y[name][seen], yhat[seen, j]) > 0.9


def test_grid_search_over_settings_and_graphs():
    x, y = table(gaps=True)
    cut = graph().without_edges([("a", "f0")])
    search = GridSearchCV(
        regressor(**LEARNS), {"graph": [cut, graph()], "channels": [2, 4]}, cv=GroupKFold(2)
    )
    search.fit(x, y, groups=np.arange(48) // 2)
    assert search.best_params_["graph"] == graph() and search.best_score_ > 0.9
    table_of = pd.DataFrame(search.cv_results_)
    without = table_of[[g == cut for g in table_of["param_graph"]]]
    assert without["mean_test_score"].max() < search.best_score_ - 0.1
    assert isinstance(search.predict(x), np.ndarray)


def test_groups_reach_fit_where_routing_is_on(monkeypatch):
    x, y = table()
    labels = np.repeat(np.arange(12), 4)
    seen = spied(monkeypatch)
    with sklearn.config_context(enable_metadata_routing=True):
        model = regressor(validation=0.25).set_fit_request(groups=True)
        GridSearchCV(model, {"channels": [2]}, cv=GroupKFold(2), refit=False).fit(x, y, groups=labels)
    assert len(seen) == 2
    for data, options in seen:
        held = {tuple(row) for row in options["validation"][0][0]}
        of_held = {g for row, g in zip(x.to_numpy(), labels, strict=True) if tuple(row) in held}
        assert len(held) == 4 * len(of_held) and len(data[0][0]) + len(held) == 24


def test_a_graph_of_the_names():
    x, y = table()
    asked = []

    def made(inputs, outputs):
        asked.append((inputs, outputs))
        return graph(inputs, outputs)

    expected = regressor().fit(x, y).predict(x)
    np.testing.assert_array_equal(regressor(graph=made).fit(x, y).predict(x), expected)
    arrays = regressor(graph=made).fit(x.to_numpy(), y.to_numpy())
    np.testing.assert_array_equal(arrays.predict(x.to_numpy()), expected)
    assert asked == [(INPUTS, OUTPUTS), (["x0", "x1", "x2"], ["y0", "y1"])]


def test_defaults_are_those_of_graph_and_data():
    x, y = table()
    model = GSNNRegressor(graph(), random_state=0, callbacks=[lambda state: True]).fit(x, y)
    assert (model.layers_, model.epochs_) == (4, 400)
    assert model.models_[0].config["norm"] == "groupbatch" and model.models_[0].config["dropout"] == 0.2
    model = regressor(model_options={"nonlin": torch.nn.Tanh}, share_layers=True).fit(x, y)
    assert model.models_[0].config["nonlin"] is torch.nn.Tanh
    assert model.models_[0].ResBlocks[0].lin_in is model.models_[0].ResBlocks[1].lin_in


def test_the_signs_of_the_graph_can_bind_the_network():
    x, y = table()
    index, names = graph().edge_index_dict, graph().node_names_dict
    signs = {etype: -torch.ones(index[etype].shape[1]) for etype in index}
    signed = HeteroGraph(index, names, signs)
    model = regressor(graph=signed, norm="none", model_options={"edge_signs": "respect"}, epochs=3).fit(x, y)
    (network,) = model.models_
    assert network.config["edge_signs"] == "respect" and network.graph == signed
    given = torch.randn(20, 3, requires_grad=True)
    outputs = network(given).sum(0)
    u, v = (torch.autograd.grad(output, given, retain_graph=True)[0] for output in outputs)
    assert (u[:, :2] >= 0).all() and (v[:, 2] >= 0).all()  # two inhibitions
    assert (v[:, :2] <= 0).all() and (v[:, :2] < 0).any()  # three
    with pytest.raises(ValueError, match="needs edge_weight_dict"):
        regressor(norm="none", model_options={"edge_signs": "respect"}).fit(x, y)


def test_after_an_error_in_a_callback_it_predicts_what_was_learnt():
    def fails(state):
        if state.epoch == 2:
            raise KeyError("full disk")

    x, y = table()
    model = regressor(epochs=9, callbacks=[fails], n_members=2, schedule="constant")
    with pytest.raises(KeyError, match="full disk"):
        model.fit(x, y)
    expected = regressor(epochs=2, n_members=2, schedule="constant").fit(x, y)
    np.testing.assert_allclose(model.predict(x), expected.predict(x), rtol=1e-4, atol=1e-5)


def test_it_goes_on_from_a_checkpoint(tmp_path):
    def fails(state):
        if state.epoch == 2:
            raise KeyError

    x, y = table()
    options = {"n_members": 2, "checkpoint_path": tmp_path / "fit.safetensors"}
    with pytest.raises(KeyError):
        regressor(callbacks=[fails], **options).fit(x, y)
    found = regressor(**options).fit(x, y)
    np.testing.assert_array_equal(found.predict(x), regressor(n_members=2).fit(x, y).predict(x))


def test_members_are_models_of_the_package(tmp_path):
    x, y = table()
    model = regressor().fit(x, y)
    gsnn.save(model.models_[0], tmp_path / "model.safetensors")
    loaded = gsnn.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(predict(loaded, x), model.predict(x))
