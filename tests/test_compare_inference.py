"""The comparison's harness: resumable, blind to labels, and right in its arithmetic."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import _methods  # noqa: E402
import _notes  # noqa: E402
import _scenarios  # noqa: E402
import _tables  # noqa: E402
import compare_inference as compare  # noqa: E402

TINY = {
    "kind": "tiers", "width": 4, "samples": 40, "noise": 0.15, **_scenarios.POST_HOC,
    "channels": 2, "layers": 3, "epochs": 2, "batch_size": 20,
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """Two scenarios of 8 function nodes, and a comparison that only pretends to train; returns its calls."""
    monkeypatch.setattr(_scenarios, "RECIPES", {"tiers12": TINY, "tiers25": {**TINY, "width": 5}})
    calls = []

    def train(problems, recipe, seeds, validation_edges):
        return [(recipe["width"], None) for _ in seeds]

    def pretend(problem, width, regressor, seed):
        n = len(problem.graph.node_names_dict["function"])
        calls.append((width, seed))
        scores = np.random.default_rng([seed, width])
        # All methods that the figures ask for.
        names = ["random", "degree product", "corr, mean", "sv of M", "sv of M, joint", "regressor, last"]
        names += ["kge directed", "|activation| x |gradient|"]
        return {name: scores.random((n, n)) for name in names}, {"test_mse": 0.5 + seed}

    monkeypatch.setattr(_methods, "train_all", train)
    monkeypatch.setattr(_methods, "score_all", pretend)
    return calls


CELLS = [("tiers12", 0), ("tiers25", 0), ("tiers12", 1)]


def test_a_finished_cell_is_never_run_twice(tiny, tmp_path):
    first = compare.run(CELLS, tmp_path, 1, "threading")
    assert tiny == [(4, 0), (4, 1), (5, 0)]
    again = compare.run([*CELLS, ("tiers25", 1)], tmp_path, 1, "threading")
    assert tiny[3:] == [(5, 1)]
    assert again[:3] == first


def test_a_killed_run_loses_only_the_running_cell(tiny, tmp_path):
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(BENCHMARKS)!r})
        import numpy as np
        import _methods, _scenarios, compare_inference as compare
        from pathlib import Path
        _scenarios.RECIPES = {_scenarios.RECIPES!r}
        def train_all(problems, recipe, seeds, validation_edges):
            if 1 in seeds:
                os.kill(os.getpid(), signal.SIGKILL)
            return [(None, None)]
        def score_all(problem, model, regressor, seed):
            n = len(problem.graph.node_names_dict["function"])
            return {{"killed run": np.eye(n)}}, {{}}
        _methods.train_all, _methods.score_all = train_all, score_all
        compare.run({CELLS!r}, Path({str(tmp_path)!r}), 1, "threading", together=1)
    """
    code = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=BENCHMARKS.parent, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    parts = compare.run(CELLS, tmp_path, 1, "threading")
    assert tiny == [(4, 1)]
    assert [next(iter(part["methods"])) for part in parts] == ["killed run", "killed run", "random"]


def test_a_part_is_whole_or_absent(tiny, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        compare.run(CELLS[:1], tmp_path, 1, "threading")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_settings_are_another_cell(tiny, tmp_path, monkeypatch):
    compare.run(CELLS[:1], tmp_path, 1, "threading")
    monkeypatch.setitem(_scenarios.RECIPES, "tiers12", {**TINY, "lr": 0.5})
    compare.run(CELLS[:1], tmp_path, 1, "threading")
    monkeypatch.setitem(_methods.SETTINGS, "kge epochs", 7)
    compare.run(CELLS[:1], tmp_path, 1, "threading")
    assert tiny == [(4, 0)] * 3


def test_labels_change_the_checkpoint_and_nothing_else(monkeypatch):
    monkeypatch.setitem(_scenarios.RECIPES, "tiny", {**TINY, "width": 6})
    monkeypatch.setitem(_methods.SETTINGS, "kge epochs", 2)
    problem, validation, test = _scenarios.build("tiny", 0)
    recipe = {**_scenarios.RECIPES["tiny"], "lr": 1e-2, "epochs": 6}

    def scored(validation_edges):
        (trained,) = _methods.train_all([problem], recipe, [0], [validation_edges])
        return _methods.score_all(problem, *trained, 0)

    found, quality = scored(validation)
    names = problem.graph.node_names_dict["function"]
    kept = set(
        zip(
            *(
                np.array(names)[part]
                for part in problem.graph.edge_index_dict[("function", "to", "function")]
            ),
            strict=True,
        )
    )
    others = [(u, v) for u in names for v in names if u != v and (u, v) not in kept and v == "f3"]
    other, _ = scored(others)
    changed = [method for method in found if not np.array_equal(found[method], other[method], equal_nan=True)]
    assert changed in ([], ["regressor, best"])
    assert set(quality) == {"train_mse", "test_mse"}
    assert {scores.shape for scores in found.values()} == {(12, 12)}
    assert set(validation) | set(test) <= {(u, v) for u in names for v in names} - kept


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_cells_trained_side_by_side_are_those_trained_alone(monkeypatch, schedule):
    """Against the loop as a user writes it, drawing from the global generator."""
    recipe = {**TINY, "width": 5, "dropout": 0.2, "epochs": 3, "schedule": schedule}
    monkeypatch.setitem(_scenarios.RECIPES, "tiny", recipe)
    problems, validation, _ = zip(*(_scenarios.build("tiny", seed) for seed in (3, 8)), strict=True)
    problems[1].y[::7, 2] = torch.nan
    state = torch.get_rng_state()
    together = _methods.train_all(problems, recipe, [3, 8], validation)
    assert torch.equal(torch.get_rng_state(), state)
    for problem, seed, edges, (found, of_found) in zip(problems, (3, 8), validation, together, strict=True):
        torch.manual_seed(seed)
        model = _scenarios.network(problem.graph, recipe)
        regressor = MagnitudeEdgeRegressor(model, problem.graph, **_methods.SETTINGS["regressor"])
        loader = DataLoader(TensorDataset(problem.x, problem.y), batch_size=20, shuffle=True)
        opt = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 6)
        best = (-1.0, torch.zeros(0))
        for _ in range(3):
            for x, y in loader:
                regressor.pre_forward()
                yhat, measured = model(x), ~y.isnan()
                loss = torch.nn.functional.mse_loss(yhat[measured], y[measured])
                regressor.arm_retained_grads()
                opt.zero_grad()
                loss.backward()
                regressor.aux_step()
                opt.step()
                if schedule == "cosine":
                    rates.step()
            auc = regressor.evaluate_against(edges)["auc"]
            if auc > best[0]:
                best = auc, regressor.W.detach().clone()
        assert not found.training
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(of_found.W, regressor.W, rtol=1e-3, atol=1e-6)
        of_found.load_best()
        torch.testing.assert_close(of_found.W.detach(), best[1], rtol=1e-3, atol=1e-6)
        assert best[1].abs().max() > 1e-3


def test_lots_are_of_one_scenario_and_cells_early_first():
    cells = [(name, seed) for seed in range(3) for name in "ab"]
    assert compare.lots_of(cells, 2) == [[("a", 0), ("a", 1)], [("b", 0), ("b", 1)], [("a", 2)], [("b", 2)]]
    assert compare.lots_of(cells, 1) == [[cell] for cell in cells]


@pytest.mark.parametrize("name", list(_scenarios.RECIPES))
def test_held_out_edges_are_missing_from_the_graph(name):
    if not _scenarios.present(name):
        pytest.skip(f"no data in {_scenarios.DATA}; GSNN_DATA says where they are")
    problem, validation, test = _scenarios.build(name, 0)
    edges = problem.graph.to_edge_table()
    kept = set(zip(edges["source"], edges["target"], strict=True))
    names = set(problem.graph.node_names_dict["function"])
    held_out = [*validation, *test]
    assert validation and test and len(set(held_out)) == len(held_out)
    assert not kept & set(held_out)
    assert {end for edge in held_out for end in edge} <= names
    assert problem.x.shape[0] == problem.y.shape[0]
    assert abs(float(problem.y.nanmean())) < 1e-3
    recipe = _scenarios.RECIPES[name]
    if recipe.get("critical"):
        table = pd.read_csv(_scenarios.DATA / recipe["folder"] / "edge_criticality.tsv", sep="\t")
        lost = table.set_index(["source", "target"])["lost_pairs"]
        assert all(lost[edge] > 0 for edge in held_out)
    if recipe["kind"] == "folder":
        assert set(_scenarios.build(name, 1)[2]) != set(test)


def test_judged_against_counting_and_sklearn():
    problem, _, test = _scenarios.build("tiers12", 0)
    names = list(problem.graph.node_names_dict["function"])
    scores = np.random.default_rng(0).integers(0, 9, (24, 24)).astype(float)
    scores[3, 5] = np.nan
    found = _tables.judged(scores, problem.graph, test)
    for (source, target), rank in zip(test, found["ranks"], strict=True):
        own = scores[names.index(source), names.index(target)]
        others = [scores[k, names.index(target)] for k in range(24) if names[k] not in (source, target)]
        assert rank == 1 + sum(s > own for s in others) + sum(s == own for s in others) / 2
    assert found["metrics"]["mrr"] == pytest.approx(np.mean(1 / np.array(found["ranks"])))
    edges = problem.graph.to_edge_table()
    kept = set(zip(edges["source"], edges["target"], strict=True))
    pairs = [(u, v) for u in names for v in names if u != v and (u, v) not in kept]
    y = [pair in set(test) for pair in pairs]
    s = [np.nan_to_num(scores[names.index(u), names.index(v)], nan=-1) for u, v in pairs]
    assert found["metrics"]["auc"] == pytest.approx(roc_auc_score(y, s))
    assert integrate.trapezoid(found["roc"], _tables.FALSE_POSITIVE_RATES) == pytest.approx(
        roc_auc_score(y, s), abs=0.01
    )
    assert found["counts"] == {"n_positives": 8, "n_negatives": len(pairs) - 8}


def test_roc_of_no_information_is_the_diagonal():
    found = _tables.roc(np.zeros(5), np.zeros(9))
    np.testing.assert_allclose(found, _tables.FALSE_POSITIVE_RATES)
    perfect = _tables.roc(np.array([2.0, 3.0]), np.array([0.0, np.nan]))
    assert perfect.min() == 1.0


def test_summary_is_the_mean_over_seeds_with_its_bootstrap_interval():
    values = np.random.default_rng(1).normal(0.7, 0.1, 20)
    low, high = _tables.interval(values)
    assert (low, high) == _tables.interval(values)
    oracle = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, random_state=3)
    np.testing.assert_allclose((low, high), oracle.confidence_interval, atol=2e-3)
    assert _tables.interval(np.full(4, 0.3)) == pytest.approx((0.3, 0.3))

    rows = [
        {"scenario": s, "seed": k, "method": m, "metric": "auc", "value": v + shift}
        for s, shift in (("one", 0.0), ("two", 5.0))
        for m in ("a", "b")
        for k, v in enumerate(values)
    ]
    table = _tables.summary_of(pd.DataFrame(rows)).set_index(["scenario", "method", "metric"])
    assert table.loc[("two", "b", "auc"), "mean"] == pytest.approx(values.mean() + 5)
    assert list(table.loc[("one", "a", "auc"), ["low", "high"]]) == pytest.approx([low, high])
    assert set(table["n_seeds"]) == {20}


def test_the_whole_run_writes_tidy_stamped_tables_and_figures(tiny, tmp_path, capsys):
    words = [
        "--dirty",
        "--seeds",
        "2",
        "--backend",
        "threading",
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "c"),
    ]
    compare.main(words)
    table = pd.read_csv(tmp_path / "out" / "compare_inference.csv")
    assert len(tiny) == 4
    assert not table.duplicated(["scenario", "seed", "method", "metric"]).any()
    assert {"scenario", "seed", "method", "metric", "value", "settings", "commit", "torch", "numpy"} <= set(
        table
    )
    settings = json.loads((tmp_path / "out" / "compare_inference_settings.json").read_text())
    assert settings[table["settings"][0]] == compare.settings_of(table["scenario"][0])
    mse = table[(table["method"] == "gsnn") & (table["metric"] == "test_mse")]
    assert mse["value"].tolist() == [0.5, 0.5, 1.5, 1.5]
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert figures == ["compare_auc.png", "compare_ranks.png", "compare_roc.png"]
    assert "auc: mean [95% interval of the mean over seeds]" in capsys.readouterr().out
    compare.main(words)
    assert len(tiny) == 4
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "out" / "compare_inference.csv"))


def test_absent_data_is_said_and_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_scenarios, "DATA", tmp_path)
    compare.main(["--dirty", "--scenarios", "cno_extliver", "--out", str(tmp_path / "out")])
    assert "skipped cno_extliver: no data in" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_backends_that_cannot_work_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="--backend threading needs --jobs 1"):
        compare.ready("threading", 2)
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match=r"--backend dask needs: pip install 'dask\[distributed\]'"):
        compare.ready("dask", 2)
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with pytest.raises(ImportError, match="--backend ray needs: pip install ray"):
        compare.ready("ray", 2)


def test_the_notes_say_what_the_results_say():
    text = _notes.NOTES.read_text()
    assert len(_notes.BLOCK.findall(text)) == text.count("<!-- table:") > 5
    assert _notes.written(text) == text, "run benchmarks/_notes.py"
