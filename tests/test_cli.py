"""The commands as a user types them."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import gsnn
from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.app.options import Options
from gsnn.simulate.scenarios import converging_tiers

QUICK = ["--folds", "2", "--channels", "2", "--epochs", "1", "--complete", "0"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_tables(converging_tiers(4), tmp_path_factory.mktemp("data"), n=30, seed=0)


def arguments(paths, out, **changes):
    p = {k: str(v) for k, v in (paths | changes).items()}
    return ["run", "--edges", p["edges"], "--x", p["x"], "--y", p["y"], "--out", str(out), *QUICK]


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_run_prints_a_summary_and_writes_the_files(paths, tmp_path):
    done = invoke(*arguments(paths, tmp_path / "out"))
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for method in ("mean", "ridge", "mlp", "gsnn"):
        assert f"{method:<7} {metrics['r2'][method]:>16.3f}" in done.stdout
    assert "No edges were added to the graph: it was turned off." in done.stdout
    first = pd.read_csv(tmp_path / "out" / "ranking.csv").iloc[0]
    assert f"1  {first['source']} -> {first['target']}" in done.stdout
    assert "do not read p_value" in done.stdout and "30 samples" in done.stdout
    assert "2 folds and all samples" in done.stderr


def test_run_takes_every_option_of_a_run():
    """Names, defaults and help stand in Options alone; what a user may type is what Options holds."""
    group: Any = get_command(app)
    found = {parameter.name: parameter for parameter in group.commands["run"].params}
    for one in fields(Options):
        parameter = found[one.name]
        assert parameter.opts == ["--" + one.name.replace("_", "-")]
        assert (parameter.default, parameter.help) == (one.default, one.metadata["help"])
    names = "folds seed channels layers norm dropout lr epochs weight_decay batch_size top complete device"
    assert " ".join(name for name in found if name in {one.name for one in fields(Options)}) == names


@pytest.mark.parametrize("option", ["--folds", "--layers", "--lr"])
def test_numbers_are_read_as_numbers(paths, tmp_path, option):
    done = invoke(*arguments(paths, tmp_path / "out"), option, "many")
    assert done.exit_code == 2 and f"Invalid value for '{option}'" in done.output


def test_quiet_says_nothing(paths, tmp_path):
    done = invoke(*arguments(paths, tmp_path / "out"), "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / "out" / "metrics.json").exists()


def test_every_option_arrives(paths, tmp_path):
    groups = tmp_path / "g.tsv"
    rows = pd.read_csv(paths["x"], sep="\t", index_col=0).index
    pd.DataFrame({"a": 1, "b": range(len(rows))}, rows).to_csv(groups, sep="\t")
    done = invoke(
        *arguments(paths, tmp_path / "out"),
        *("--nodes", paths["nodes"], "--groups", groups, "--group-column", "b", "--seed", 3, "--layers", 3),
        *("--norm", "layer", "--dropout", 0.4, "--lr", 0.02, "--weight-decay", 0.3, "--batch-size", 9),
        *("--top", 4, "--device", "cpu"),
    )
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"] == {
        "folds": 2,
        "seed": 3,
        "channels": 2,
        "layers": 3,
        "norm": "layer",
        "dropout": 0.4,
        "lr": 0.02,
        "epochs": 1,
        "weight_decay": 0.3,
        "batch_size": 9,
        "top": 4,
        "complete": 0,
        "device": "cpu",
    }
    assert metrics["data"]["groups"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"in1": "in_1"}), "has no column for 1 input node(s): 'in1'"),
        (lambda t: t.assign(more=t["in0"]), "has 1 column(s) that are no input node: 'more'"),
        (lambda t: t.assign(in2=0), "'in2' is 0 in every sample"),
        (lambda t: t.rename(index={"s0001": "sX"}), "has 1 sample(s) that"),
        (lambda t: t.assign(in2="x"), "must be numeric, got 'x' in column 'in2', sample 's0000'"),
    ],
)
def test_misfits_end_with_one_line_and_code_2(paths, tmp_path, change, message):
    table = pd.read_csv(paths["x"], sep="\t", index_col=0)
    change(table).to_csv(tmp_path / "x.tsv", sep="\t")
    done = invoke(*arguments(paths, tmp_path / "out", x=tmp_path / "x.tsv"))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "error: folds must be 0"),
        (["--norm", "nope"], "error: norm must be one of"),
        (["--device", "abacus"], "error: device 'abacus' cannot be used"),
        (["--epochs", "never"], "error: epochs must be a positive int or 'auto', got 'never'"),
        (["--lr", "-1"], "error: lr must be a positive number"),
        (["--groups", "nothing.tsv"], "error: no file nothing.tsv"),
        (["--nonsense", "1"], "No such option"),
        (["--folds", "x"], "Invalid value"),
    ],
)
def test_bad_options_end_with_code_2(paths, tmp_path, words, message):
    done = invoke(*arguments(paths, tmp_path / "out"), *words)
    assert done.exit_code == 2 and message in done.stderr


def test_exploding_training_is_an_error_of_one_line(paths, tmp_path):
    done = invoke(*arguments(paths, tmp_path / "out"), "--quiet", "--lr", "1e30", "--epochs", "5")
    assert done.exit_code == 2 and done.stderr.startswith("error: the loss of model 0 became")


def test_missing_options_and_files(tmp_path):
    assert "Missing option" in invoke("run").stderr
    nothing = tmp_path / "nothing.tsv"
    done = invoke("run", "--edges", nothing, "--x", nothing, "--y", nothing, "--out", tmp_path / "out")
    assert done.exit_code == 2 and f"error: no file {nothing}" in done.stderr


def test_full_folder_is_checked_before_the_tables(tmp_path):
    (tmp_path / "a").write_text("")
    nothing = tmp_path / "nothing.tsv"
    done = invoke("run", "--edges", nothing, "--x", nothing, "--y", nothing, "--out", tmp_path)
    assert done.exit_code == 2 and "is not empty" in done.stderr


def test_warnings_are_one_line_each(paths, tmp_path):
    edges = pd.read_csv(paths["edges"], sep="\t")
    edges[edges["target"] != "o3"].to_csv(tmp_path / "e.tsv", sep="\t", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "default")
        done = invoke(
            *arguments(paths, tmp_path / "out", edges=tmp_path / "e.tsv"),
            "--nodes",
            paths["nodes"],
            "--quiet",
        )
    assert done.exit_code == 0, done.output
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("warning: ") and "'o3'" in lines[0]


def test_demo_tells_how_many_hidden_edges_it_found(tmp_path, monkeypatch):
    from gsnn.app import demo

    monkeypatch.setattr(demo, "DEMO_OPTIONS", demo.Options(folds=0, channels=2, epochs=1, complete=2))
    monkeypatch.setattr("gsnn.app.completion.SEARCH_STEPS", {"base_steps": 4, "stage_steps": 4})
    done = invoke("demo", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("R2 on test folds: ") and "Of the 16 true edges that were hidden, " in last
    assert (tmp_path / "data" / "X.tsv").exists() and (tmp_path / "edges.csv").exists()
    assert "Edges that would repair the prediction, of 2 added (edges.csv):" in done.stdout
    assert "On samples that it had not seen" in done.stdout and "recovered" not in done.stdout


def test_version_and_help():
    assert invoke("--version").stdout.strip() == f"gsnn {gsnn.__version__}"
    assert "--edges" in invoke("run", "--help").stdout
    assert "run" in invoke("--help").stdout


def test_help_loads_neither_torch_nor_pandas():
    code = (
        "import sys; from gsnn.app.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_run_with_measured_function_nodes_and_columns_of_other_names(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.Index([f"{i:03}" for i in range(24)], name="sample")
    pd.DataFrame(rng.normal(size=(24, 2)), rows, ["x1", "x2"]).to_csv(tmp_path / "X.csv")
    y = pd.DataFrame(rng.normal(size=(24, 2)).round(3), rows, ["d", "b"])
    y.to_csv(tmp_path / "Y.csv")
    edges = "tf,gene,effect\nx1,a,+\nx2,b,-\na,b,activation\nb,c,inhibition\nc,d,+\n"
    (tmp_path / "edges.csv").write_text(edges)
    done = invoke(
        *("run", "--edges", tmp_path / "edges.csv", "--x", tmp_path / "X.csv", "--y", tmp_path / "Y.csv"),
        *("--source", "tf", "--target", "gene", "--sign", "effect", "--out", tmp_path / "out", *QUICK),
    )
    assert done.exit_code == 0, done.output
    assert "warning: 1 column(s) of" in done.stderr and "name function nodes" in done.stderr
    found = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype={"sample": str})
    measured = found.pivot(index="sample", columns="output", values="measured")
    pd.testing.assert_frame_equal(measured[["d", "b"]], y, check_names=False)
    model = gsnn.load(tmp_path / "out" / "model.safetensors")
    assert sorted(model.graph.node_names_dict["output"]) == ["b", "d"]
    assert sorted(model.graph.node_names_dict["function"]) == ["a", "b", "c"]
