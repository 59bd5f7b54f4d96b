"""gsnn complete and gsnn verify as a user types them."""

import json

import pandas as pd
import pytest
from test_complete import data, graph
from typer.testing import CliRunner

import gsnn
from gsnn.app.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables of the graph that lacks f2 -> f3, samples to choose on, and new ones."""
    path = tmp_path_factory.mktemp("tables")
    graph().to_edge_table().to_csv(path / "edges.tsv", sep="\t", index=False)
    for name, seed in (("", 0), ("new_", 5)):
        x, y = data(200, seed=seed)
        rows = pd.Index([f"s{k}" for k in range(200)], name="sample")
        pd.DataFrame(x, rows, ["a", "b", "c"]).to_csv(path / f"{name}X.tsv", sep="\t")
        pd.DataFrame(y, rows, ["y0", "y1", "y2"]).to_csv(path / f"{name}Y.tsv", sep="\t")
    return path


def typed(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_complete_then_verify(folder):
    tables = ["--edges", folder / "edges.tsv", "--x", folder / "X.tsv", "--y", folder / "Y.tsv"]
    out = folder / "completed"
    options = ["--budget", 1, "--channels", 3, "--epochs", 30, "--json", "--quiet"]
    done = typed("complete", *tables, "--out", out, *options)
    assert done.exit_code == 0, done.output
    ((source, target),) = json.loads(done.stdout)["added"]
    assert target == "f3" and source in ("f2", "f5")
    written = {path.name for path in out.iterdir()}
    assert written == {"config.toml", "edges.csv", "graph_completed.tsv", "model.safetensors"}
    completed = pd.read_csv(out / "graph_completed.tsv", sep="\t")
    assert (completed[["source", "target"]] == [source, target]).all(axis=1).sum() == 1
    model = gsnn.load(out / "model.safetensors")
    assert len(completed) == sum(index.shape[1] for index in model.graph.edge_index_dict.values())

    new = ["--edges", folder / "edges.tsv", "--x", folder / "new_X.tsv", "--y", folder / "new_Y.tsv"]
    options = ["--model", out / "model.safetensors", "--candidates", out / "edges.csv"]
    done = typed("verify", *new, *options, "--out", folder / "verified.csv")
    assert done.exit_code == 0, done.output
    assert "1 of 1 verified" in done.stdout
    table = pd.read_csv(folder / "verified.csv")
    assert table.verified.tolist() == [True] and "f3" in table.alternatives[0]

    done = typed("complete", *tables, "--out", out)
    assert done.exit_code == 2 and "is not empty" in done.stderr


def test_an_interruption_of_complete_names_no_option_that_it_lacks(folder, monkeypatch):
    def interrupted(*args, checkpoint_path, **kwargs):
        checkpoint_path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("gsnn.optim.complete.complete", interrupted)
    tables = ["--edges", folder / "edges.tsv", "--x", folder / "X.tsv", "--y", folder / "Y.tsv"]
    done = typed("complete", *tables, "--out", folder / "stopped")
    left = f"the same command goes on from {folder}/stopped/.checkpoint, without it, it begins anew"
    assert (done.exit_code, done.stderr) == (130, f"interrupted; {left}\n")


def test_what_the_user_can_put_right(folder):
    tables = ["--edges", folder / "edges.tsv", "--x", folder / "X.tsv", "--y", folder / "Y.tsv"]
    done = typed("complete", *tables, "--out", folder / "o", "--budget", "many")
    assert done.exit_code == 2 and "--budget must be an int of at least 0 or auto, got 'many'" in done.stderr
    options = ["--model", "none", "--candidates", "c.csv", "--out", folder / "no/v.csv"]
    done = typed("verify", *tables, *options)
    assert done.exit_code == 2 and "there is no folder" in done.stderr
