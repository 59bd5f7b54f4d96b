"""--config: options out of a TOML file, and the file beside every result that repeats it."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.io import save
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import converging_tiers

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Tables and an untrained model, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    scenario = converging_tiers(4)
    write_tables(scenario, tmp_path / "data", n=30, seed=0)
    graph = scenario.partial
    torch.manual_seed(0)
    save(GSNN(graph.edge_index_dict, graph.node_names_dict, channels=2, layers=3), tmp_path / "m.safetensors")
    return tmp_path


TABLES = ("--edges", "data/edges.tsv", "--x", "data/X.tsv", "--y", "data/Y.tsv")
QUICK = ("--folds", "2", "--channels", "2", "--epochs", "1", "--complete", "0", "--quiet")


def test_a_run_is_repeated_by_the_file_that_it_leaves(folder):
    assert invoke("run", *TABLES, *QUICK, "--dropout", "0.3", "--out", "one").exit_code == 0
    kept = tomllib.loads((folder / "one" / "config.toml").read_text(encoding="utf-8"))
    assert set(kept) == {"run"}
    assert kept["run"]["edges"] == "data/edges.tsv" and kept["run"]["dropout"] == 0.3
    assert kept["run"]["seed"] == 0 and kept["run"]["norm"] == "groupbatch"  # what nobody asked for, too
    assert not set(kept["run"]) & {"quiet", "json", "force", "fresh", "config", "groups"}
    done = invoke("run", "--config", "one/config.toml", "--quiet", "--out", "two")
    assert done.exit_code == 0, done.output
    first, second = (json.loads((folder / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for name in ("predictions.csv", "ranking.csv", "model.safetensors"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    again = tomllib.loads((folder / "two" / "config.toml").read_text(encoding="utf-8"))
    assert again["run"] == {**kept["run"], "out": "two"}


def test_the_command_line_goes_before_the_file(folder):
    (folder / "c.toml").write_text(
        "[other]\nx = 1\n[simulate]\nedges = 'data/edges.tsv'\nnodes = 'data/nodes.tsv'\n"
        "samples = 7\nseed = 3\nnoise = 2\nout = 'drawn'\n"
    )
    assert invoke("simulate", "--config", "c.toml", "--samples", "5").exit_code == 0
    kept = tomllib.loads((folder / "drawn" / "config.toml").read_text(encoding="utf-8"))["simulate"]
    assert (kept["samples"], kept["seed"], kept["noise"]) == (5, 3, 2.0)
    assert len(pd.read_csv("drawn/X.tsv", sep="\t")) == 5


def test_a_file_of_results_gets_a_file_beside_it_and_flags_are_kept(folder):
    pytest.importorskip("captum")
    words = ("--model", "m.safetensors", "--x", "data/X.tsv", "--output", "o1", "--out", "why.csv")
    assert invoke("explain", *words, "--per-sample").exit_code == 0
    (folder / "why.csv.toml").rename(folder / "c.toml")
    kept = tomllib.loads((folder / "c.toml").read_text(encoding="utf-8"))["explain"]
    assert kept["per-sample"] is True and kept["output"] == "o1"
    assert invoke("explain", "--config", "c.toml", "--out", "again.csv").exit_code == 0
    assert (folder / "again.csv").read_bytes() == (folder / "why.csv").read_bytes()


def test_odd_names_survive(folder):
    odd = 'a "b" \\ é \x7f = #.tsv'
    (folder / "data" / "X.tsv").rename(folder / odd)
    words = ("predict", "--model", "m.safetensors", "--out", "p.csv")
    assert invoke(*words, "--x", odd).exit_code == 0
    before = (folder / "p.csv").read_bytes()
    assert tomllib.loads((folder / "p.csv.toml").read_text(encoding="utf-8"))["predict"]["x"] == odd
    (folder / "p.csv").unlink()
    assert invoke("predict", "--config", "p.csv.toml").exit_code == 0
    assert (folder / "p.csv").read_bytes() == before


def test_check_takes_a_file_and_leaves_none(folder):
    (folder / "c.toml").write_text(
        '[check]\nedges = "data/edges.tsv"\nx = "data/X.tsv"\ny = "data/Y.tsv"\njson = true\n'
    )
    before = set(folder.rglob("*"))
    done = invoke("check", "--config", "c.toml")
    assert json.loads(done.stdout)["samples"] == 30 and set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file c.toml"),
        ("[simulate", "c.toml is no TOML file"),
        ("", "must have a table [simulate] with options of gsnn simulate, got an empty file"),
        ("[run]\nseed = 1\n", "must have a table [simulate] with options of gsnn simulate, got 'run'"),
        ("[simulate]\nsample = 3\n", "among edges, out, nodes, samples, noise, seed, json, got 'sample'"),
        ("[simulate]\nconfig = 'd.toml'\n", "got 'config'"),
        ("[simulate]\nseed = true\n", "seed in c.toml must be a string or a number, got True"),
        ("[simulate]\nseed = [1]\n", "seed in c.toml must be a string or a number, got [1]"),
        ("[simulate]\njson = 1\n", "json in c.toml must be true or false, got 1"),
    ],
)
def test_what_the_user_can_put_right(folder, text, message):
    if text is not None:
        (folder / "c.toml").write_text(text)
    done = invoke("simulate", "--edges", "data/edges.tsv", "--out", "o", "--config", "c.toml")
    assert done.exit_code == 2 and done.stderr.startswith("error: --config: ") and message in done.stderr
    assert not (folder / "o").exists()


def test_a_value_of_the_wrong_kind_is_refused_as_on_the_command_line(folder):
    (folder / "c.toml").write_text("[simulate]\nseed = 'one'\n")
    done = invoke("simulate", "--edges", "data/edges.tsv", "--out", "o", "--config", "c.toml")
    assert done.exit_code == 2 and "Invalid value for '--seed'" in " ".join(done.stderr.split())


def test_a_command_that_fails_leaves_no_file(folder):
    done = invoke("predict", "--model", "m.safetensors", "--x", "data/Y.tsv", "--out", "p.csv")
    assert done.exit_code == 2 and not list(folder.glob("p.csv*"))


@pytest.mark.parametrize("command", [getattr(c.callback, "__name__", "") for c in app.registered_commands])
def test_every_command_speaks_to_machines_and_takes_a_file(command):
    told = invoke(command, "--help").stdout
    assert "--json" in told and "--config" in told


def test_run_and_demo_print_their_metrics_as_one_line(folder, monkeypatch):
    from gsnn.app import demo

    done = invoke("run", *TABLES, *QUICK, "--json", "--out", "one")
    metrics = json.loads((folder / "one" / "metrics.json").read_text())
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout) == {"out": "one", **metrics}
    monkeypatch.setattr(demo, "DEMO_OPTIONS", demo.Options(folds=0, channels=2, epochs=1, complete=0))
    monkeypatch.setattr(demo, "converging_tiers", lambda width: converging_tiers(4))
    monkeypatch.setattr(demo, "write_tables", lambda s, to, n, seed: write_tables(s, to, 30, seed))
    done = invoke("demo", "--json", "--quiet", "--out", "d")
    said = json.loads(done.stdout)
    assert said["demo"] == {"held_out": 4, "verified": 0, "found": 0, "alternatives": 0, "among": 0}
    assert (folder / "d" / "config.toml").exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [("gsnn pre", "predict"), ("gsnn run --batch", "--batch-size"), ("gsnn check --g", "--groups")],
)
def test_the_shell_completes(words, found):
    """As bash asks, by the script that --show-completion prints."""
    code = "from gsnn.app.cli import app; app(prog_name='gsnn')"
    asked = {"_GSNN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert found in done.stdout.split(), done.stderr
