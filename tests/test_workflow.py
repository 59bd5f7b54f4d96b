"""The main job on small simulated tables: its files, its invariances and its refusals."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch

import gsnn
from gsnn import io
from gsnn.app import candidates, workflow
from gsnn.app.candidates import rank_edges
from gsnn.app.compare import METHODS
from gsnn.app.demo import demo, write_tables
from gsnn.app.report import before_reading, describe
from gsnn.app.settings import Options, default_epochs, default_layers, new_model, reasons, settle
from gsnn.app.training import train_side_by_side
from gsnn.app.workflow import run
from gsnn.data.tables import Data, load_data
from gsnn.graph import HeteroGraph
from gsnn.graph.depth import unreached_outputs
from gsnn.simulate.scenarios import converging_tiers

QUICK = Options(folds=2, channels=2, epochs=2, batch_size=16, complete=0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_tables(converging_tiers(4), tmp_path_factory.mktemp("data"), n=40, seed=0)


def load(paths, **changes):
    p = paths | changes
    return load_data(p["edges"], p["x"], p["y"], nodes=p["nodes"], groups=p.get("groups"))


@pytest.fixture(scope="module")
def finished(paths, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "a" / "b"
    return run(load(paths), out, QUICK, verbose=False), out


def test_all_files_are_there_and_nothing_else(finished):
    result, out = finished
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    why = {"attributions.csv", "figures/explanation.png"}  # where an output is predicted, with Captum
    assert why & set(found) == (set() if "skipped" in result.metrics["attributions"] else why)
    assert [name for name in found if name not in why] == [
        "figures/learning_curve.png",
        "figures/predicted_vs_measured.png",
        "figures/top_edges.png",
        "intervals.csv",
        "metrics.json",
        "model.safetensors",
        "predictions.csv",
        "ranking.csv",
        "report.html",
    ]
    assert [p.name for p in out.parent.iterdir()] == ["b"]


def test_metrics(finished):
    result, out = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == workflow_plain(result.metrics)
    assert set(metrics["r2"]) == set(METHODS) and metrics["r2"]["mean"] == 0.0
    assert set(metrics["versions"]) == {"gsnn", "torch", "numpy", "python"}
    assert metrics["data"]["samples"] == 40 and metrics["data"]["measured"] == 160
    assert metrics["settings"]["epochs"] == 2 and metrics["settings"]["layers"] == 4
    assert "do not read p_value" in metrics["ranking"]["caution"]


def workflow_plain(metrics):
    return json.loads(json.dumps(metrics))


def test_predictions_are_out_of_fold_and_give_the_reported_r2(finished):
    result, out = finished
    table = pd.read_csv(out / "predictions.csv")
    assert len(table) == 40 * 4 and set(table["fold"]) == {1, 2}
    assert table.groupby("sample")["fold"].nunique().max() == 1
    for method in METHODS:
        left = ((table["measured"] - table[method]) ** 2).sum()
        total = ((table["measured"] - table["mean"]) ** 2).sum()
        assert 1 - left / total == pytest.approx(result.metrics["r2"][method], abs=1e-5)
    own = table["measured"].groupby([table["fold"], table["output"]]).mean()
    predicted = table["mean"].groupby([table["fold"], table["output"]]).mean()
    assert np.allclose(own[1], predicted[2], atol=1e-4)  # of two folds, one is the other's training fold


def test_intervals_are_about_the_held_out_predictions(finished):
    result, out = finished
    table, predictions = (pd.read_csv(out / f"{name}.csv") for name in ("intervals", "predictions"))
    assert set(table["method"]) == {"gsnn"}
    for name in ("sample", "output", "fold"):
        assert (table[name] == predictions[name]).all()
    assert np.allclose(table["predicted"], predictions["gsnn"], rtol=1e-4, atol=1e-4)
    said = result.metrics["intervals"]["gsnn"]
    assert said["values"] == 160 and said["coverage"] == table["inside"].mean()
    assert f"holds {said['coverage']:.1%} of 160" in (out / "report.html").read_text()


def test_edges_are_the_pairs_that_the_graph_lacks(finished, paths):
    result, out = finished
    table = pd.read_csv(out / "ranking.csv")
    graph = load(paths).graph
    names = graph.node_names_dict["function"]
    kept = {(names[i], names[j]) for i, j in graph.edge_index_dict["function", "to", "function"].T.tolist()}
    pairs = list(zip(table["source"], table["target"], strict=True))
    assert len(set(pairs)) == len(pairs) == len(names) * (len(names) - 1) - len(kept)
    assert result.metrics["ranking"]["pairs"] == result.metrics["ranking"]["listed"] == len(pairs)
    assert not kept & set(pairs) and all(u != v for u, v in pairs)
    scored = table["score"].notna()
    assert table["rank"][scored].tolist() == list(range(1, scored.sum() + 1))
    assert table["rank"][~scored].isna().all() and scored[: scored.sum()].all()
    assert table["score"].dropna().is_monotonic_decreasing
    assert list(table.columns) == ["rank", "source", "target", "score", "p_value", "q_value", "reason"]
    assert (table["reason"].notna() == ~scored).all()
    counts = result.metrics["ranking"]
    assert counts["scored"] == scored.sum() < len(pairs)
    assert counts["not_scored"] == table["reason"].dropna().value_counts().to_dict()
    assert sum(counts["not_scored"].values()) + counts["scored"] == len(pairs)


def test_pairs_that_cannot_be_scored_say_why():
    """f0 -> f1 -> f2 -> o; nothing feeds f3 and f4, and nothing reads f4: worked out by hand."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(60, 2)), columns=["i", "k"])
    y = pd.DataFrame({"o": x["i"] + 0.1 * rng.normal(size=60), "p": x["k"] - x["i"]})
    g = graph([(0, 1), (1, 2), (3, 2)], [(0, 0), (1, 0)], [(2, 0), (1, 1)], 5)
    data = Data(g, x, y, x.index)
    options = settle(data, Options(folds=2, channels=2, epochs=3, norm="none", dropout=0.0))
    model = new_model(data, options, 0)
    train_side_by_side([model], data, [options], [np.arange(60)], [0], verbose=False)
    table = rank_edges(model, data, verbose=False)
    reason: dict[Any, Any] = {(row.source, row.target): row.reason for row in table.itertuples()}
    for other in ("f0", "f1", "f2", "f4"):
        if ("f3", other) in reason:
            assert reason["f3", other] == candidates.NO_SIGNAL
    assert [reason["f0", "f4"], reason["f1", "f4"]] == [candidates.NO_GRADIENT] * 2  # .NO_GRADIENT
    assert reason["f0", "f2"] == "" and table["reason"].iloc[0] == ""
    short = table_of_hub()
    assert set(short[short["target"] == "hub"]["reason"]) == {candidates.TOO_FEW}
    assert (short[short["target"] == "free"]["reason"] == "").any()
    more_x, more_y = (pd.concat([part] * 3, ignore_index=True) for part in (x, y))
    repeated = Data(g, more_x, more_y, more_x.index)
    again = rank_edges(model, repeated, verbose=False)
    np.testing.assert_allclose(again["score"], table["score"], atol=1e-6)
    np.testing.assert_allclose(again["p_value"], table["p_value"], atol=1e-6)  # 60 inputs, not 180


def table_of_hub():
    """23 samples, 20 kept parents of one node: no freedom is left, and nothing may stand first for it."""
    rng = np.random.default_rng(1)
    names = {
        "input": [f"i{k}" for k in range(21)],
        "function": [f"f{k}" for k in range(21)] + ["hub", "free"],
        "output": ["o", "p"],
    }
    k = torch.arange(21)
    index = {
        ("function", "to", "function"): torch.stack([torch.arange(20), torch.full((20,), 21)]),
        ("input", "to", "function"): torch.cat([torch.stack([k, k]), torch.tensor([[0], [22]])], 1),
        ("function", "to", "output"): torch.tensor([[21, 22], [0, 1]]),
    }
    x = pd.DataFrame(rng.normal(size=(23, 21)), columns=names["input"])
    y = pd.DataFrame(rng.normal(size=(23, 2)), columns=["o", "p"])
    data = Data(HeteroGraph(index, names, warn=False), x, y, x.index)
    options = settle(data, Options(folds=2, channels=2, epochs=1, norm="none"))
    return rank_edges(new_model(data, options, 0), data, verbose=False)


def test_what_must_be_read_first(paths):
    data = load(paths)
    found = describe(data)["data"]
    assert (found["distinct_inputs"], found["inputs_of_one_sample"]) == (40, 0)
    lone = pd.DataFrame(np.eye(40, 4), data.x.index, data.x.columns)
    sizes = describe(replace(data, x=lone))["data"]
    assert sizes["inputs_of_one_sample"] == 4 and sizes["distinct_inputs"] == 5
    said = before_reading({"r2": {"gsnn": -0.1}, "data": sizes})
    assert "R2 -0.100" in said[0] and said[1].startswith("4 of 4 inputs differ in one sample only")
    assert before_reading({"r2": {"gsnn": 0.2}, "data": found}) == []
    assert len(before_reading({"r2": {"gsnn": float("nan")}, "data": found})) == 1


def test_the_comparison_is_told_before_edges_are_ranked(paths, tmp_path, monkeypatch):
    told: list[Any] = []

    def never(*args, **options):
        raise OSError("after the folds")

    monkeypatch.setattr("gsnn.app.workflow.rank_edges", never)
    with pytest.raises(OSError, match="after the folds"):
        run(
            load(paths),
            tmp_path / "o",
            Options(folds=2, channels=2, epochs=1, complete=0),
            verbose=False,
            told=told.append,
        )
    (metrics,) = told
    assert set(metrics["r2"]) == {"mean", "ridge", "mlp", "gsnn"} and metrics["data"]["samples"] == 40


def test_saved_model_predicts_in_the_units_of_y(finished, paths):
    result, out = finished
    data = load(paths)
    model = gsnn.load(out / "model.safetensors")
    yhat = gsnn.predict(model, data.x[data.x.columns[::-1]])
    np.testing.assert_array_equal(yhat, gsnn.predict(result.model, data.x))
    assert model.scaling.y_mean == pytest.approx(data.y.mean().tolist())
    assert io.read_header(out / "model.safetensors")["extra"]["settings"]["channels"] == 2


def test_order_of_columns_and_rows_changes_nothing(finished, paths, tmp_path):
    result, _ = finished
    changed = {}
    for key in ("x", "y"):
        table = pd.read_csv(paths[key], sep="\t", index_col=0, dtype=str)
        changed[key] = tmp_path / f"{key}.tsv"
        table.sample(frac=1, random_state=1).sample(frac=1, random_state=2, axis=1).to_csv(
            changed[key], sep="\t"
        )
    other = run(load(paths, **changed), tmp_path / "out", QUICK, verbose=False)
    for method in METHODS:
        assert other.metrics["r2"][method] == result.metrics["r2"][method]
    pd.testing.assert_frame_equal(other.ranking, result.ranking)
    order = ["sample", "output"]
    pd.testing.assert_frame_equal(
        other.predictions.sort_values(order, ignore_index=True),
        result.predictions.sort_values(order, ignore_index=True),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(other.model.parameters(), result.model.parameters(), strict=True)
    )


def test_global_random_state_is_left_alone(paths, tmp_path):
    torch.manual_seed(0)
    state, state_np = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    run(load(paths), tmp_path, QUICK, verbose=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], state_np)


def test_gaps_groups_and_one_split(paths, tmp_path):
    y = pd.read_csv(paths["y"], sep="\t", index_col=0)
    y[np.random.default_rng(0).random(y.shape) < 0.3] = np.nan
    y.iloc[0] = np.nan
    y.to_csv(tmp_path / "y.tsv", sep="\t")
    groups = pd.Series(np.arange(40) // 8, y.index, name="batch")
    groups.to_csv(tmp_path / "g.tsv", sep="\t")
    data = load(paths, y=tmp_path / "y.tsv", groups=tmp_path / "g.tsv")
    for folds in (0, 5):
        options = Options(folds=folds, channels=2, epochs=1, complete=0)
        result = run(data, tmp_path / f"out{folds}", options, verbose=False)
        table = result.predictions.merge(groups.rename_axis("sample").reset_index())
        assert table.groupby("batch")["fold"].nunique().max() == 1
        assert len(table) == (32 if folds == 0 else 160)
        assert np.isfinite(list(result.metrics["r2"].values())).all()


def test_folder_that_is_not_empty(paths, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises(FileExistsError, match=r"is not empty; choose another folder or use --force"):
        run(load(paths), tmp_path, QUICK, verbose=False)
    assert (tmp_path / "metrics.json").read_text() == "old"
    run(load(paths), tmp_path, QUICK, force=True, verbose=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "metrics.json").read_text())["r2"]
    with pytest.raises(FileExistsError, match="out must be a folder"):
        run(load(paths), tmp_path / "notes.txt", QUICK, force=True, verbose=False)


def test_metrics_come_last(paths, tmp_path, monkeypatch):
    """Whoever sees metrics.json sees all files of that run; an earlier one is gone before any is moved."""
    move, seen = os.replace, []

    def moved(source, target):
        target = Path(target)
        if target.suffix != ".safetensors" or target.parent.name != ".checkpoint":
            seen.append((target.name, (tmp_path / "metrics.json").exists()))
        move(source, target)

    run(load(paths), tmp_path, QUICK, verbose=False)
    monkeypatch.setattr("gsnn.app.report.os.replace", moved)
    run(load(paths), tmp_path, QUICK, force=True, verbose=False)
    names = [name for name, _ in seen]
    written = names[names.index("predictions.csv") :]
    assert {"report.html", "ranking.csv", "model.safetensors"} <= set(names)
    assert written[-1] == "metrics.json" and names.count("metrics.json") == 1
    assert not any(there for _, there in seen[-7:])


def test_a_failed_run_leaves_no_result(paths, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("gsnn.io.model.save", fails)
    with pytest.raises(OSError, match="disk full"):
        run(load(paths), tmp_path / "out", QUICK, verbose=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".checkpoint"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"folds must be 0 \(one split\) or at least 2, got 1"),
        ({"folds": 41}, "folds must be at most the number of samples, 40, got 41"),
        ({"top": 0}, "top must be a positive int, got 0"),
        ({"complete": -1}, "complete must be an int of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be a positive int, got 0"),
        ({"layers": 1}, "layers must be at least 2, .* got 1"),
        ({"channels": 0}, "channels must be a positive int, got 0"),
        ({"norm": "nope"}, "norm must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"lr": -1.0}, "lr must be a positive number, got -1.0"),
        ({"epochs": 0}, "epochs must be a positive int, got 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        pytest.param(
            {"device": "cuda"},
            "device 'cuda' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_options_stop_before_any_work(paths, tmp_path, monkeypatch, options, message):
    def never(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(workflow, "baseline", never)
    with pytest.raises(ValueError, match=message):
        run(load(paths), tmp_path / "out", Options(**options), verbose=False)


def test_too_few_groups(paths, tmp_path):
    rows = pd.read_csv(paths["x"], sep="\t", index_col=0).index
    pd.Series(np.arange(40) % 2, rows, name="g").to_csv(tmp_path / "g.tsv", sep="\t")
    with pytest.raises(ValueError, match="groups must have at least 5 labels to split by, got 2"):
        settle(load(paths, groups=tmp_path / "g.tsv"), Options(folds=5))


def graph(between, into, out, n):
    def edges(pairs):
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T

    return HeteroGraph(
        {
            ("function", "to", "function"): edges(between),
            ("input", "to", "function"): edges(into),
            ("function", "to", "output"): edges(out),
        },
        {"input": ["i", "k"], "function": [f"f{j}" for j in range(n)], "output": ["o", "p"]},
        warn=False,
    )


def test_every_pair_of_a_graph_without_function_edges_is_a_candidate(paths, tmp_path):
    data = load(paths)
    x, y = data.x.iloc[:, :2].set_axis(["i", "k"], axis=1), data.y.iloc[:, :2].set_axis(["o", "p"], axis=1)
    bare = graph([], [(0, 0), (1, 1)], [(0, 0), (1, 1)], 2)
    options = Options(folds=2, channels=2, epochs=1, complete=0)
    found = run(type(data)(bare, x, y, data.order), tmp_path / "out", options, verbose=False)
    assert found.metrics["ranking"]["pairs"] == 2
    assert {*zip(found.ranking["source"], found.ranking["target"], strict=True)} == {
        ("f0", "f1"),
        ("f1", "f0"),
    }


def test_settings_come_with_their_reasons(paths):
    data = load(paths)
    found = reasons(data, Options(batch_size=8))
    assert found == {
        "layers": "4 layers: function nodes on the longest of the shortest paths from an input to an output, "
        "within 4 to 12",
        "epochs": "400 epochs of 5 steps: about 2,000 steps, in 30 to 400 epochs",
    }
    assert reasons(data, Options())["epochs"].startswith("400 epochs of 1 step:")
    given = reasons(data, Options(layers=3, epochs=7))
    assert given == {"layers": "3 layers, as asked for", "epochs": "7 epochs, as asked for"}


def test_default_layers_let_every_signal_arrive():
    chain = [(j, j + 1) for j in range(6)]
    assert default_layers(graph(chain, [(0, 0), (1, 5)], [(6, 0), (1, 1)], 7)) == 7
    shortcut = [*chain, (0, 6)]
    assert default_layers(graph(shortcut, [(0, 0), (1, 5)], [(6, 0), (1, 1)], 7)) == 4
    assert default_layers(graph([(0, 1)], [(0, 0)], [], 2)) == 4
    long = [(j, j + 1) for j in range(29)]
    assert default_layers(graph(long, [(0, 0), (1, 0)], [(29, 0), (29, 1)], 30)) == 12


def test_outputs_that_no_input_reaches():
    """i -> f0 -> f1 -> f2 -> o; f3 -> p, and nothing feeds f3."""
    cut = graph([(0, 1), (1, 2)], [(0, 0), (1, 1)], [(2, 0), (3, 1)], 4)
    assert unreached_outputs(cut) == ["p"]
    assert unreached_outputs(cut, 2) == ["p"]  # from k by f1 and f2
    assert unreached_outputs(cut, 1) == ["o", "p"]
    assert unreached_outputs(cut.with_edges([("f2", "f3")])) == []
    assert unreached_outputs(cut.with_edges([("f2", "f3")]), 2) == ["p"]


@pytest.mark.parametrize(("n", "expected"), [(56, 400), (400, 286), (1000, 125), (100_000, 30)])
def test_default_epochs(n, expected):
    assert default_epochs(n, 64) == expected


def test_demo_counts_hidden_edges(tmp_path, monkeypatch):
    monkeypatch.setattr("gsnn.app.completion.SEARCH_STEPS", {"base_steps": 60, "stage_steps": 16})
    options = Options(folds=0, channels=3, epochs=12, lr=1e-2, complete=6)
    found = demo(tmp_path, options, verbose=False)
    hidden = set(converging_tiers(12).held_out)
    table = pd.read_csv(tmp_path / "edges.csv", keep_default_na=False)
    assert found.held_out == len(hidden) == 16
    verified, others = set(), set()
    for row in table[table["verified"].astype(str) == "True"].itertuples():
        verified.add((row.src_func, row.dst_func))
        others |= {tuple(edge.split(" -> ")) for edge in str(row.alternatives).split("; ") if edge}
    assert found.verified == len(verified) > 0 and found.found == len(verified & hidden)
    assert found.alternatives == len(others - verified) > 0 and found.among == len(
        (others - verified) & hidden
    )
    assert found.found + found.among > 0
    r2 = found.result.metrics["r2"]
    assert found.said().startswith(
        f"R2 on test folds: {r2['gsnn']:.2f} on the given graph, {r2['completed']:.2f} with edges added, "
        f"{r2['ridge']:.2f} by ridge"
    )
    assert found.said().endswith(
        f"Of the 16 true edges that were hidden, {found.found} are among the {found.verified} verified "
        f"edges, and {found.among} more among the {found.alternatives} alternatives that these name."
    )
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"edges.tsv", "nodes.tsv", "X.tsv", "Y.tsv"}
    again = demo(tmp_path, replace(options, complete=0), verbose=False)
    pd.testing.assert_frame_equal(again.result.ranking, found.result.ranking)
    assert (again.verified, again.found) == (0, 0) and "with edges added" not in again.said()
    assert not (tmp_path / "edges.csv").exists()


@pytest.mark.parametrize(("channels", "threads"), [(1, 1), (630, 1), (631, 3), (10**6, 3)])
def test_only_work_worth_sharing_gets_more_than_one_thread(paths, channels, threads):
    data = load(paths)  # 13 edges and batches of 64: 630 channels are 524,160 numbers, 128 below 2**19
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with workflow.threads_for(data, Options(channels=channels)):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_edges_are_ranked_on_what_a_user_gives_the_inferer(finished, paths):
    """Column by column what `MagnitudeEdgeInferer` finds on a `RowDataset`, in unequal batches."""
    result, _ = finished
    data = load(paths)
    inferer = gsnn.MagnitudeEdgeInferer(result.model, data.graph)
    loader = torch.utils.data.DataLoader(gsnn.RowDataset(result.model, data.x, data.y), batch_size=7)
    inferer.fit(loader, verbose=False)
    table = inferer.evaluate(layer_agg="max", score="partial")
    table = table[~table["has_edge"] & table["corr"].notna()].set_index(["src_func", "dst_func"])["corr"]
    found = result.ranking.dropna(subset="score").set_index(["source", "target"])["score"]
    assert len(found) == len(table) > 10
    np.testing.assert_allclose(found, table.loc[found.index], rtol=1e-6)


@pytest.mark.parametrize("completed", [False, True])
def test_the_graph_is_drawn_with_the_edges_that_were_found(paths, monkeypatch, completed):
    data = load(paths)
    ranking = pd.DataFrame({"rank": [1, 2, 3, None], "source": list("abcd"), "target": list("efgh")})
    edges = pd.DataFrame({"src_func": ["p", "q"], "dst_func": ["r", "s"]})
    added: Any = (
        SimpleNamespace(edges=edges, nested=SimpleNamespace(table="the table")) if completed else None
    )
    drawn = {}
    for name in ("layered_graph", "r2_by_edges", "learning_curve", "predicted_vs_measured"):
        monkeypatch.setattr(
            workflow.plot, name, lambda *args, name=name, **options: drawn.update({name: (args, options)})
        )
    yhat: Any = {"gsnn": "yhat"}
    histories: Any = ["history"]
    figures = workflow.figures_of(data, yhat, ranking, added, histories, 2, [("x", "y")])
    for draw in figures.values():
        draw()
    inferred = [("p", "r"), ("q", "s")] if completed else [("a", "e"), ("b", "f")]
    assert drawn["layered_graph"] == ((data.graph,), {"inferred": inferred, "held_out": [("x", "y")]})
    assert drawn["learning_curve"] == ((["history"],), {"val_label": "test fold"})
    assert drawn["predicted_vs_measured"][0][1] == "yhat"
    assert drawn["predicted_vs_measured"][0][0] is data.y
    assert drawn.get("r2_by_edges") == ((("the table",), {}) if completed else None)
    assert ("added_edges" in figures, "top_edges" in figures) == (completed, not completed)
