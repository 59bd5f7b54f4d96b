"""What ``gsnn run`` writes, row by row against values computed here from the text of its tables."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from sklearn.linear_model import RidgeCV

from gsnn.app.candidates import rank_edges
from gsnn.app.demo import write_tables
from gsnn.app.settings import Options, new_model
from gsnn.app.workflow import run
from gsnn.data.tables import load_data
from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import fit, predict

OPTIONS = Options(
    complete=0, folds=3, channels=2, layers=4, epochs=2, batch_size=16, dropout=0.0, norm="none", seed=5
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run on tables in another unit, with gaps, rows shuffled and not in the order of their names."""
    folder = tmp_path_factory.mktemp("job")
    paths = write_tables(converging_tiers(4), folder / "data", n=40, seed=0)
    for key, unit, offset in (("x", 7.0, -3.0), ("y", 300.0, 1000.0)):
        table = offset + unit * pd.read_csv(paths[key], sep="\t", index_col=0)
        if key == "y":
            table = table.mask(np.random.default_rng(1).random(table.shape) < 0.1)
        table.sample(frac=1, random_state=len(key) + ord(key)).to_csv(paths[key], sep="\t")
    data = load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])
    result = run(data, folder / "out", OPTIONS, verbose=False)
    x, y = (pd.read_csv(paths[key], sep="\t", index_col=0) for key in ("x", "y"))
    return data, result, folder / "out", x, y.loc[x.index]


def test_predictions_row_by_row(job):
    data, _, out, x, y = job
    table = pd.read_csv(out / "predictions.csv")
    assert list(table.columns) == ["sample", "output", "fold", "measured", "mean", "ridge", "mlp", "gsnn"]
    assert list(x.index) != sorted(x.index)
    outputs = data.graph.node_names_dict["output"]
    assert table["sample"].tolist() == [s for s in x.index for _ in outputs]  # the order of X
    assert table["output"].tolist() == list(outputs) * len(x)
    np.testing.assert_allclose(table["measured"], y[list(outputs)].to_numpy().ravel(), rtol=1e-7)
    fold = table.drop_duplicates("sample").set_index("sample")["fold"]
    assert set(fold) == {1, 2, 3}
    x, y = x[list(data.graph.node_names_dict["input"])].sort_index(), y[list(outputs)].sort_index()
    for number in (1, 2, 3):
        train, test = x.index[fold[x.index] != number], x.index[fold[x.index] == number]
        expected = {
            "mean": pd.DataFrame(np.tile(y.loc[train].mean(), (len(test), 1)), test, outputs),
            "ridge": ridge(x, y, train, test),
            "gsnn": network(data, x, y, train, test, OPTIONS.seed + number),
        }
        for method, values in expected.items():
            got = table.pivot(index="sample", columns="output", values=method).loc[test, list(outputs)]
            np.testing.assert_allclose(got, values, rtol=1e-4, err_msg=method)


def ridge(x, y, train, test):
    """Each output by itself on its measured rows, columns standardised by the training rows."""
    out = {}
    mean, std = x.loc[train].mean(), x.loc[train].std(ddof=0)
    for name in y.columns:
        seen = y.loc[train, name].dropna()
        centre, scale = seen.mean(), seen.std(ddof=0)
        model = RidgeCV(10.0 ** np.arange(-3, 4.5, 0.5))
        model.fit(((x.loc[seen.index] - mean) / std).to_numpy(), (seen - centre) / scale)
        out[name] = centre + scale * model.predict(((x.loc[test] - mean) / std).to_numpy())
    return pd.DataFrame(out, test)


def network(data, x, y, train, test, seed):
    """A GSNN fitted to the training rows only, in the order of the samples' names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GSNN(
            data.graph.edge_index_dict,
            data.graph.node_names_dict,
            channels=2,
            layers=4,
            dropout=0.0,
            norm="none",
            share_layers=False,
        )
    fit(
        model,
        x.loc[train],
        y.loc[train],
        epochs=2,
        batch_size=16,
        lr=OPTIONS.lr,
        weight_decay=OPTIONS.weight_decay,
        standardize=True,
        seed=seed,
        verbose=False,
    )
    return predict(model, x.loc[test])


def ranked(model, graph, x, y, how):
    """Missing pairs by the inferer's own table, best first."""
    inferer = MagnitudeEdgeInferer(model, graph)
    inferer.fit([(torch.tensor(x).float(), torch.tensor(y).float())], verbose=False)
    table = inferer.evaluate(layer_agg=how, score="partial")
    table = table[~table["has_edge"] & table["corr"].notna()]
    return table.set_index(["src_func", "dst_func"])["corr"]


def test_edges_are_those_of_the_inferer_on_standardised_tables_largest_over_layers(job):
    data, result, out, x, y = job
    names = data.graph.node_names_dict
    x, y = x[list(names["input"])].to_numpy(), y[list(names["output"])].to_numpy()
    z, t = (x - x.mean(0)) / x.std(0), (y - np.nanmean(y, 0)) / np.nanstd(y, 0)
    table = pd.read_csv(out / "ranking.csv")
    scored = table[table["score"].notna()].set_index(["source", "target"])["score"]
    expected = ranked(result.model, data.graph, z, t, "max")
    assert len(scored) == len(expected) > 20
    np.testing.assert_allclose(scored, expected[scored.index], rtol=1e-3, atol=1e-4)
    assert scored.index[:10].tolist() == expected.index[:10].tolist()
    for other in (
        ranked(result.model, data.graph, z, y, "max"),
        ranked(result.model, data.graph, z, t, "mean"),
    ):
        off = (scored - other.reindex(scored.index)).abs()
        assert off.max() > 0.02  # the tables tell the right way from these
    again = rank_edges(result.model, data, verbose=False)
    assert again["score"].equals(result.ranking["score"])


def test_p_and_q_of_repeated_inputs(monkeypatch, tmp_path):
    """Samples of equal inputs are one draw; where only the best of each target are listed, q is not given."""
    paths = write_tables(converging_tiers(4), tmp_path, n=40, seed=0)
    data = load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])
    data.x.iloc[:] = data.x.to_numpy()[np.arange(40) % 8 + 8 * (np.arange(40) // 20)]
    distinct = len({tuple(row) for row in data.x.to_numpy()})
    assert distinct == 16
    model = new_model(data, OPTIONS, seed=0)
    table = rank_edges(model, data, verbose=False)
    scored = table[table["rank"].notna()]
    edges = pd.read_csv(paths["edges"], sep="\t")
    functions = data.graph.node_names_dict["function"]
    parents = edges[edges["source"].isin(functions)].groupby("target").size()
    n_cond = scored["target"].map(parents).fillna(0)
    assert n_cond.nunique() > 1
    z = np.sqrt(distinct - 3 - n_cond) * np.arctanh(scored["score"])
    expected = scipy.stats.norm.sf(z)  # one-sided: a missing edge makes the correlation positive
    np.testing.assert_allclose(scored["p_value"], expected, rtol=1e-6)
    np.testing.assert_allclose(scored["q_value"], scipy.stats.false_discovery_control(expected), rtol=1e-6)
    monkeypatch.setattr("gsnn.app.candidates._MOST_EDGES", 16)  # 64 pairs, four times as many: all are read
    assert rank_edges(model, data, verbose=False)["q_value"].equals(table["q_value"][:16])
    monkeypatch.setattr("gsnn.app.candidates._MOST_EDGES", 15)
    few = rank_edges(model, data, verbose=False)
    assert few["q_value"].isna().all() and few["p_value"].notna().any()
    merged = few.merge(table, on=["source", "target"], suffixes=("", "_all"))
    np.testing.assert_allclose(merged["p_value"], merged["p_value_all"])
