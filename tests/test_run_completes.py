"""The end of a run: the edges it adds are those of complete and verify, and it says what they are worth."""

import json
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import gsnn
from gsnn.app import completion, workflow
from gsnn.app.compare import make_splits
from gsnn.app.completion import budgets_of, put_aside
from gsnn.app.demo import write_tables
from gsnn.app.settings import Options, new_model, settle
from gsnn.app.training import length
from gsnn.app.workflow import run
from gsnn.data.tables import Data, load_data
from gsnn.estimator.stopping import EpochChoice
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.optim import search
from gsnn.optim import verify as verification
from gsnn.optim.staging import train_together
from gsnn.simulate.scenarios import converging_tiers
from gsnn.stats.baselines import baseline, r2

OPTIONS = Options(folds=2, channels=3, epochs=12, lr=1e-2, batch_size=16, dropout=0.0, complete=4, seed=3)
STEPS = {"base_steps": 40, "stage_steps": 10}
STAGES = 2
NAMES = ["src_func", "dst_func"]
EXPLAINED = find_spec("captum") is not None  # the extra explain
FILES = [
    *(["attributions.csv"] * EXPLAINED),
    *("edges.csv", "figures", "graph_completed.tsv", "intervals.csv", "metrics.json", "model.safetensors"),
    *("model_completed.safetensors", "predictions.csv", "ranking.csv", "report.html"),
]


@pytest.fixture(scope="module", autouse=True)
def _short_searches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "SEARCH_STEPS", STEPS)
        patch.setattr(completion, "STAGES", STAGES)
        patch.setitem(verification._SETTLING, "steps", 60)
        patch.setattr(workflow, "baseline", lambda kind, *args: baseline("ridge", *args))  # the MLP is slow
        patch.setattr(plt, "savefig", lambda path, dpi: path.write_bytes(b""))  # drawn, but not rendered
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    paths = write_tables(converging_tiers(4), tmp_path_factory.mktemp("data"), n=120, seed=0)
    return load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run(data, out, OPTIONS, verbose=False), out


def edges_of(out):
    return pd.read_csv(out / "edges.csv", keep_default_na=False, na_values=[""])


def test_all_files_are_there(finished):
    _, out = finished
    assert sorted(p.name for p in out.iterdir()) == FILES
    figures = {"added_edges", "learning_curve", "predicted_vs_measured", "r2_by_edges"}
    figures |= {"explanation"} if EXPLAINED else set()
    assert {p.stem for p in (out / "figures").iterdir()} == figures


def thirds(n, seed):
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[n // 3 :]), np.sort(order[: n // 3])


def test_edges_are_those_of_complete_and_verify(finished, data):
    """Both called as a user would, the one on two thirds of the samples, the other on the rest."""
    result, out = finished
    rest, aside = thirds(120, 3)
    options = settle(data, OPTIONS)
    x, y = data.x, data.y
    settings = {
        **{"channels": 3, "layers": options.layers, "epochs": 12, "lr": 1e-2, "batch_size": 16},
        **STEPS,
    }
    chosen = gsnn.complete(
        *(data.graph, x.iloc[rest], y.iloc[rest], 4),
        **{"stages": STAGES, "seed": 3, "settings": settings, "verbose": False},
    ).edges
    model = new_model(data, options, 3)
    gsnn.fit(
        *(model, x.iloc[rest], y.iloc[rest]),
        **{"epochs": 12, "lr": 1e-2, "batch_size": 16, "standardize": True, "seed": 3, "verbose": False},
    )
    tested = gsnn.verify(model, data.graph, chosen, x.iloc[aside], y.iloc[aside], seed=3)
    table = edges_of(out)
    assert list(table.columns) == [
        *("order", "stage", *NAMES, "score", "gain", "gain_low", "gain_high", "p_value", "q_value"),
        *("verified", "placebo_gain", "alternatives", "share"),
    ]
    shared = ["order", "stage", *NAMES, "score"]
    pd.testing.assert_frame_equal(table[shared], chosen[shared], rtol=1e-4)
    numbers = ["gain", "gain_low", "gain_high", "p_value", "q_value", "placebo_gain"]
    # The network that is verified was trained beside another one here, so it differs by rounding.
    pd.testing.assert_frame_equal(table[numbers], tested[numbers], rtol=1e-4, atol=1e-5)
    assert table["verified"].tolist() == tested["verified"].tolist()
    assert any(tested["verified"]) and tested["alternatives"].map(len).sum() > 0
    texts = ["; ".join(f"{s} -> {t}" for s, t in others) for others in tested["alternatives"]]
    assert table["alternatives"].fillna("").tolist() == texts
    found = result.metrics["completion"]
    assert (found["chosen_from"], found["verified_on"], found["added"]) == (80, 40, 4)
    assert found["verified"] == tested["verified"].sum()


def test_share_is_of_the_folds_that_chose_the_edge_too(finished, data):
    _, out = finished
    fold = pd.read_csv(out / "predictions.csv").drop_duplicates("sample").set_index("sample")["fold"]
    fold = fold.loc[data.x.index].to_numpy()
    options = settle(data, OPTIONS)
    count: dict[Any, int] = {}
    settings = {"channels": 3, "layers": options.layers, "batch_size": 16, "epochs": 1, **STEPS}
    for number in (1, 2):
        rows = np.flatnonzero(fold != number)
        edges = gsnn.complete(
            *(data.graph, data.x.iloc[rows], data.y.iloc[rows], 4),
            **{"stages": STAGES, "seed": 3 + number, "settings": settings, "verbose": False},
        ).edges
        for edge in edges[NAMES].itertuples(index=False, name=None):
            count[edge] = count.get(edge, 0) + 1
    table = edges_of(out)
    expected = [count.get(edge, 0) / 2 for edge in table[NAMES].itertuples(index=False, name=None)]
    assert table["share"].tolist() == expected and max(expected) > 0


def test_completed_graph_and_model(finished, data):
    result, out = finished
    table = edges_of(out)
    given, grown = data.graph.to_edge_table(), pd.read_csv(out / "graph_completed.tsv", sep="\t")
    pairs = [set(t[["source", "target", "etype"]].itertuples(index=False, name=None)) for t in (given, grown)]
    added = {(s, t, "function->function") for s, t in table[NAMES].itertuples(index=False, name=None)}
    assert pairs[1] - pairs[0] == added and len(added) == 4 and pairs[0] < pairs[1]
    model = gsnn.load(out / "model_completed.safetensors")
    assert model.graph == result.completed.graph == data.graph.with_edges(table[NAMES].values.tolist())
    assert model.scaling.y_mean == pytest.approx(data.y.mean().tolist())  # of all samples
    np.testing.assert_array_equal(gsnn.predict(model, data.x), gsnn.predict(result.completed.model, data.x))
    assert gsnn.load(out / "model.safetensors").graph == data.graph


def test_r2_is_that_of_the_predictions(finished):
    result, out = finished
    table = pd.read_csv(out / "predictions.csv")
    methods = ["mean", "ridge", "mlp", "gsnn", "random", "completed"]
    assert list(table.columns) == ["sample", "output", "fold", "measured", *methods]
    y, mean = table["measured"].to_numpy(), table["mean"].to_numpy()
    for method in methods:
        assert r2(y, table[method].to_numpy(), mean) == pytest.approx(result.metrics["r2"][method], abs=1e-5)
    rows = result.metrics["completion"]["r2"]
    assert [row["budget"] for row in rows] == [0, 1, 2, 4] == budgets_of(4)
    assert rows[-1]["r2"] > rows[0]["r2"] + 0.05 and rows[0]["gain"] == 0.0
    assert rows[0]["r2"] == pytest.approx(result.metrics["r2_standardised"]["gsnn"], abs=0.02)
    assert budgets_of(1) == [0, 1] and budgets_of(20) == [0, 5, 10, 20]
    json.dumps(json.loads((out / "metrics.json").read_text()), allow_nan=False)


def test_auto_epochs_look_at_their_own_training_samples_only(data, tmp_path, monkeypatch):
    """Each training asks once, with its own rows; what was compared is trained for the fold's own length."""
    asked, trained = [], []

    def choose(network, x, y, *, groups, seed, **options):
        asked.append((x, y, groups, seed))
        return EpochChoice(1 + len(asked), {}, f"{1 + len(asked)} epochs, by the loss")

    def together(models, parts, seeds, settings, epochs, **options):
        trained.append(list(epochs))
        return train_together(models, parts, seeds, settings, epochs, **options)

    monkeypatch.setattr("gsnn.app.training.choose_epochs", choose)
    monkeypatch.setattr("gsnn.optim.cross_validation.train_together", together)
    grouped = replace(data, groups=pd.Series(np.arange(120) // 2, data.x.index, name="group"))
    options = replace(OPTIONS, epochs="auto", folds=2, complete=1)
    found = run(grouped, tmp_path / "out", options, verbose=False)
    settled = settle(grouped, options)
    splits = make_splits(grouped.y, grouped.groups, 2, options.seed)
    rest, aside, _ = put_aside(grouped, options.seed)
    assert settled.epochs == "auto" and len(aside)
    rows = [splits[0][0], splits[1][0], np.arange(120), rest]
    for (x, y, groups, _), own in zip(asked, rows, strict=True):
        np.testing.assert_array_equal(x, data.x.to_numpy()[own])
        np.testing.assert_array_equal(y, data.y.to_numpy()[own])
        np.testing.assert_array_equal(groups, own // 2)
    assert [len(history.train_loss) for history in found.histories] == [2, 3, 4]
    # each fold: no edge, one chosen edge, one random edge
    assert trained == [[2, 2, 2, 3, 3, 3]]
    assert found.metrics["why"]["epochs"] == "4 epochs, by the loss; in the folds, by their own, 2, 3"
    assert found.metrics["settings"]["epochs"] == "auto"


def test_auto_epochs_are_those_of_choose_epochs(data, monkeypatch):
    monkeypatch.setattr("gsnn.estimator.stopping.default_epochs", lambda n, batch: 16)
    options = settle(data, replace(OPTIONS, epochs="auto", folds=0, lr=0.03))
    rows = np.arange(60)
    found, why = length(data, options, rows, 0, False)
    other = data.y.copy()
    other.iloc[60:] = 1e3
    assert length(replace(data, y=other), options, rows, 0, False) == (found, why)
    assert replace(found, epochs="auto") == options and found.epochs in [2**k for k in range(7)]
    assert why.startswith(f"{found.epochs} epochs, by the loss on samples put aside in 3 folds of the 60")
    fixed = replace(options, epochs=7)
    assert length(data, fixed, rows, 0, False) == (fixed, "")
    with pytest.raises(ValueError, match="epochs must be a positive int or 'auto', got 'never'"):
        replace(options, epochs=cast(Any, "never"))


def test_units_of_the_outputs_change_nothing(finished, data, tmp_path):
    same = finished[0].completed.edges
    other = replace(data, y=data.y * 250.0 - 4000.0)
    found = run(other, tmp_path, replace(OPTIONS, folds=0), verbose=False)
    assert found.completed is not None
    edges = found.completed.edges
    pd.testing.assert_frame_equal(edges[NAMES], same[NAMES])
    assert edges["alternatives"].tolist() == same["alternatives"].tolist()
    np.testing.assert_allclose(edges["gain"], same["gain"], atol=2e-3)
    assert found.metrics["r2"]["completed"] > found.metrics["r2"]["gsnn"]


def test_none_are_added_where_that_is_turned_off(finished, data, tmp_path):
    for name in (*FILES, "notes.txt"):  # as an earlier run would have left them
        if name != "figures":
            (tmp_path / name).write_text("old")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "added_edges.png").write_text("old")
    result = run(data, tmp_path, replace(OPTIONS, complete=0), force=True, verbose=False)
    left = {p.name for p in tmp_path.iterdir()}
    assert {*FILES, "notes.txt"} - left == {
        "edges.csv",
        "graph_completed.tsv",
        "model_completed.safetensors",
    }
    figures = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert figures - {"explanation"} == {"learning_curve", "predicted_vs_measured", "top_edges"}
    assert result.completed is None and "completed" not in result.metrics["r2"]
    assert result.metrics["completion"] == {"skipped": "it was turned off"}
    for method in ("gsnn", "ridge", "mlp"):
        assert result.metrics["r2"][method] == finished[0].metrics["r2"][method]


def small_graph(between):
    index = {
        EDGE_TYPES[0]: torch.tensor(between).reshape(-1, 2).T,
        EDGE_TYPES[1]: torch.tensor([[0, 1], [0, 1]]),
        EDGE_TYPES[2]: torch.tensor([[0, 1], [0, 1]]),
    }
    names = {"input": ["i", "k"], "function": ["f", "g"], "output": ["o", "p"]}
    return HeteroGraph(index, names, warn=False)


def test_where_nothing_can_be_added_a_line_says_so(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(30, 2)), columns=["i", "k"])
    y = pd.DataFrame(rng.normal(size=(30, 2)), columns=["o", "p"])
    options = replace(OPTIONS, epochs=1)
    full = run(Data(small_graph([(0, 1), (1, 0)]), x, y, x.index), tmp_path / "a", options, verbose=False)
    assert full.completed is None
    skipped = full.metrics["completion"]["skipped"]
    assert skipped == "every pair of function nodes is an edge already, so there is none to add"
    assert skipped in (tmp_path / "a" / "report.html").read_text()
    one = run(Data(small_graph([(0, 1)]), x, y, x.index), tmp_path / "b", options, verbose=False)
    assert one.completed is not None
    assert one.completed.edges[NAMES].values.tolist() == [["g", "f"]]  # all that there is
    assert one.metrics["completion"]["added"] == 1
    # Ten samples are a third: too few to verify anything, and the edges are chosen from all.
    assert "fewer than the 20" in one.completed.not_verified
    assert one.completed.edges["gain"].isna().all() and one.completed.edges["verified"].isna().all()
    assert one.metrics["completion"]["chosen_from"] == 30 and one.metrics["completion"]["verified"] is None
    assert "not known: a third of the samples is 10" in (tmp_path / "b" / "report.html").read_text()
    monkeypatch.setattr(completion, "_MOST_BYTES", 16 * 3 * (2 * 3) ** 2 - 1)
    options = settle(Data(small_graph([(0, 1)]), x, y, x.index), options)
    assert options.layers == 4
    budget, why = completion.budget_of(Data(small_graph([(0, 1)]), x, y, x.index), options)
    assert budget == 0 and "gsnn complete has no such limit" in why


def test_what_is_put_aside(data):
    rest, aside, why = put_aside(data, 3)
    assert why == "" and not set(rest) & set(aside) and len(rest) + len(aside) == 120
    assert len(aside) == 40 and put_aside(data, 4)[1].tolist() != aside.tolist()
    labels = pd.Series(np.arange(120) // 3, data.x.index).astype(str)
    grouped = replace(data, groups=labels)
    rest, aside, why = put_aside(grouped, 0)
    assert why == "" and not set(labels.iloc[rest]) & set(labels.iloc[aside]) and 40 <= len(aside) < 43
    few = replace(data, groups=pd.Series(np.arange(120) // 20, data.x.index))
    rest, aside, why = put_aside(few, 0)
    assert (len(rest), len(aside)) == (120, 0) and "is of 2 groups, fewer than the 10" in why
    large = pd.Series(np.maximum(np.arange(120) - 100, 0), data.x.index)
    assert any("too large" in put_aside(replace(data, groups=large), seed)[2] for seed in range(20))
    y = data.y.copy()
    y.iloc[9:, 1] = np.nan
    y.iloc[3] = np.nan  # a row without a value has no part in it
    rest, aside, why = put_aside(replace(data, y=y), 0)
    assert "'o1' has too few measured values" in why and 3 not in rest and len(rest) == 119


def test_gaps_and_groups(data, tmp_path):
    y = data.y.mask(np.random.default_rng(0).random(data.y.shape) < 0.2)
    y.iloc[0] = np.nan
    groups = pd.Series(np.arange(120) // 3, data.x.index, name="donor").astype(str)
    given = replace(data, y=y, groups=groups)
    found = run(given, tmp_path, replace(OPTIONS, complete=2), verbose=False)
    assert found.completed is not None
    assert found.completed.not_verified == "" and found.completed.edges["gain"].notna().all()
    table = found.predictions.dropna(subset="completed")
    assert len(table) == 119 * y.shape[1]


def assert_same_files(one, other):
    for name in ("edges.csv", "predictions.csv", "ranking.csv", "graph_completed.tsv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    metrics = [json.loads((out / "metrics.json").read_text()) for out in (one, other)]
    for found in metrics:
        del found["seconds"]
    assert metrics[0] == metrics[1]
    for name in ("model.safetensors", "model_completed.safetensors"):
        a, b = (load_file(out / name) for out in (one, other))
        assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())


# Trainings of searches: nested ones before the first stage and after each, then the one on two thirds.
@pytest.mark.parametrize(
    ("where", "name", "at"),
    [
        (search, "train_together", 3),
        (search, "train_together", 5),
        (completion, "train_side_by_side", 1),
        (completion, "verify", 1),
    ],
)
def test_an_interrupted_run_goes_on(data, finished, tmp_path, monkeypatch, where, name, at):
    step, calls = getattr(where, name), []

    def interrupted(*args, **options):
        calls.append(name)
        if len(calls) == at:
            raise KeyboardInterrupt
        return step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out", OPTIONS, verbose=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".checkpoint"]
    run(data, tmp_path / "out", OPTIONS, verbose=False)
    assert_same_files(tmp_path / "out", finished[1])
