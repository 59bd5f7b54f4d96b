"""gsnn predict, explain, check and simulate as a user types them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.io import load, save
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import fit, predict


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """What ``gsnn demo`` leaves, but for its training: demo_out with tables and a model."""
    monkeypatch.chdir(tmp_path)
    scenario = converging_tiers(5)
    write_tables(scenario, tmp_path / "demo_out" / "data", n=40, seed=0)
    x, y = (
        pd.read_csv(tmp_path / "demo_out" / "data" / f"{t}.tsv", sep="\t", index_col=0) for t in ("X", "Y")
    )
    torch.manual_seed(0)
    graph = scenario.partial
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=2, layers=4)
    fit(model, x, y, epochs=2, standardize=True, seed=0, verbose=False)
    save(model, tmp_path / "demo_out" / "model.safetensors")
    return tmp_path


def test_predictions_are_those_of_the_model_by_name(demo):
    x = pd.read_csv("demo_out/data/X.tsv", sep="\t", index_col=0)
    mixed = x.iloc[::-1, ::-1]
    mixed.to_csv("mixed.tsv", sep="\t")
    done = invoke(
        "predict", "--model", "demo_out/model.safetensors", "--x", "mixed.tsv", "--out", "p.csv", "--json"
    )
    assert json.loads(done.stdout) == {"samples": 40, "outputs": 5, "out": "p.csv"}
    found = pd.read_csv("p.csv", index_col=0)
    want = predict(load("demo_out/model.safetensors"), x).iloc[::-1]
    assert list(found.index) == list(want.index) and list(found.columns) == list(want.columns)
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_check_counts_and_warns(demo):
    words = ["check", *(f"--{t.lower()}=demo_out/data/{t}.tsv" for t in ("X", "Y"))]
    done = invoke(*words, "--edges", "demo_out/data/edges.tsv", "--json")
    said = json.loads(done.stdout)
    assert (said["samples"], said["function_nodes"], said["measured"]) == (40, 10, 1.0)
    assert said["edges"] == {"function->function": 7, "input->function": 5, "function->output": 5}
    assert said["why"]["epochs"] == "400 epochs of 1 step: about 2,000 steps, in 30 to 400 epochs"
    assert f"  {said['why']['layers']}\n" in invoke(*words, "--edges", "demo_out/data/edges.tsv").stdout
    table = pd.read_csv("demo_out/data/Y.tsv", sep="\t", index_col=0)
    table.rename(columns={"o1": "oh1"}).to_csv("odd.tsv", sep="\t")
    done = invoke(
        "check", "--edges", "demo_out/data/edges.tsv", "--x", "demo_out/data/X.tsv", "--y", "odd.tsv"
    )
    assert done.exit_code == 2 and "oh1" in done.stderr and "odd.tsv" in done.stderr


def test_explain_writes_scores_and_a_picture(demo):
    pytest.importorskip("captum")
    from gsnn.explain import attribute

    words = [
        "explain",
        "--model",
        "demo_out/model.safetensors",
        "--x",
        "demo_out/data/X.tsv",
        "--output",
        "o3",
    ]
    done = invoke(*words, "--of", "edges", "--out", "why.tsv", "--figure", "why.png")
    assert done.exit_code == 0, done.output
    x = pd.read_csv("demo_out/data/X.tsv", sep="\t", index_col=0)
    want = attribute(load("demo_out/model.safetensors"), x, "o3", of="edges")
    found = pd.read_csv("why.tsv", sep="\t")
    assert list(found.columns) == ["source", "target", "score", "magnitude", "spread"]
    np.testing.assert_allclose(found["score"], want["score"], rtol=1e-5, atol=1e-9)
    assert (demo / "why.png").read_bytes().startswith(b"\x89PNG")
    done = invoke(*words, "--of", "edges", "--per-sample", "--out", "each.csv")
    assert len(pd.read_csv("each.csv", index_col=0)) == 40
    done = invoke(*words, "--of", "proteins", "--out", "no.csv")
    assert done.exit_code == 2 and "of must be one of 'inputs', 'nodes', 'edges'" in done.stderr
    assert not (demo / "no.csv").exists()


def test_simulate_is_the_sum_of_the_parents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.tsv").write_text(
        "source\ttarget\tsign\tetype\na\tf\t-1\tinput->function\nb\tf\t1\tinput->function\n"
        "f\ty\t1\tfunction->output\n"
    )
    done = invoke("simulate", "--edges", "e.tsv", "--out", "s", "--samples", 30, "--noise", 0, "--seed", 3)
    assert done.exit_code == 0, done.output
    x, y = (pd.read_csv(f"s/{t}.tsv", sep="\t", index_col=0) for t in ("X", "Y"))
    np.testing.assert_allclose(y["y"], x["b"] - x["a"], atol=1e-6)
    assert list(x.index) == list(y.index) and len(x) == 30
    again = invoke("simulate", "--edges", "e.tsv", "--out", "s")
    assert again.exit_code == 2 and "not an empty folder" in again.stderr


def test_files_are_checked_before_any_work(demo):
    base = ["predict", "--model", "demo_out/model.safetensors", "--x", "demo_out/data/X.tsv", "--out"]
    done = invoke(*base, "nowhere/p.csv")
    assert done.exit_code == 2 and "there is no folder nowhere" in done.stderr
    done = invoke(*base, "demo_out")
    assert done.exit_code == 2 and "demo_out is a folder" in done.stderr
