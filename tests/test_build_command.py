"""gsnn build as a user types it, and the commands that read what it leaves."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import gsnn
from gsnn.app import build_command
from gsnn.app.cli import app

COLUMNS = "source target source_genesymbol target_genesymbol is_stimulation is_inhibition n_references"
QUICK = ("--folds", 0, "--epochs", 1, "--channels", 2, "--complete", 0)
OMNIPATH = (
    COLUMNS.replace(" ", "\t")
    + """
P1\tP2\tEGFR\tRAS\tTRUE\tFALSE\t9
P2\tP3\tRAS\tRAF\tTRUE\tFALSE\t5
P3\tP4\tRAF\tMYC\tTRUE\tFALSE\t1
P3\tP5\tRAF\tJUN\tFALSE\tTRUE\t4
P1\tP2\tEGFR\tRAS\tTRUE\tFALSE\t2
P9\tP3\tGAB\tRAF\tTRUE\tFALSE\t7
"""
)


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The tables of the example: two drugs, of which one has a target, and three genes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omnipath.tsv").write_text(OMNIPATH)
    (tmp_path / "targets.tsv").write_text("drug\ttarget\tsign\ngefitinib\tEGFR\t-1\nother\tRAF\t-1\n")
    rng = np.random.default_rng(0)
    rows = pd.Index([f"s{k}" for k in range(12)], name="sample")
    pd.DataFrame(rng.normal(size=(12, 2)), rows, ["gefitinib", "lost"]).to_csv("X.tsv", sep="\t")
    pd.DataFrame(rng.normal(size=(12, 3)), rows, ["MYC", "JUN", "NONE"]).to_csv("Y.tsv", sep="\t")
    return tmp_path


def test_the_example_of_the_help_runs_as_printed_and_gsnn_run_reads_its_files(study):
    (example,) = re.findall(r"Example: gsnn (.*)", build_command.build.__doc__ or "")
    done = invoke(*shlex.split(example))
    assert done.exit_code == 0, done.output
    edges = pd.read_csv("prior/edges.tsv", sep="\t")
    assert list(edges.columns) == ["source", "target", "sign", "etype"]
    assert list(edges.itertuples(index=False, name=None)) == [
        ("EGFR", "RAS", 1, "function->function"),
        ("RAF", "JUN", -1, "function->function"),
        ("RAF", "MYC", 1, "function->function"),
        ("RAS", "RAF", 1, "function->function"),
        ("gefitinib", "EGFR", -1, "input->function"),
        ("JUN", "JUN", 1, "function->output"),
        ("MYC", "MYC", 1, "function->output"),
    ]
    nodes = pd.read_csv("prior/nodes.tsv", sep="\t", keep_default_na=False)
    assert nodes["node"].tolist() == [
        *("gefitinib", "lost"),
        *("EGFR", "JUN", "MYC", "RAF", "RAS"),
        *("MYC", "JUN", "NONE"),
    ]
    report = pd.read_csv("prior/report.tsv", sep="\t", keep_default_na=False)
    assert report["reason"].tolist() == [
        *("", "", "", "", "repeats row 2", "no input reaches the source"),
        *("", "the target is no node of the interactions"),
        *("", "", "the regulator is no node of the interactions"),
    ]
    assert "interactions: 4 of 6 rows kept\n         1  " in done.stdout
    assert "1  no input reaches the source" in done.stdout and "1  repeats another row" in done.stdout
    tables = ("--edges", "prior/edges.tsv", "--nodes", "prior/nodes.tsv", "--x", "X.tsv", "--y", "Y.tsv")
    done = invoke("check", *tables, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["function_nodes"] == 5
    assert "no edge feeds 1 of 3 output nodes: 'NONE'" in done.stderr
    done = invoke("run", *tables, *QUICK, "--out", "results", "--quiet")
    assert done.exit_code == 0, done.output
    assert (study / "results" / "report.html").exists()


def test_json_confidence_and_tables_alone(study):
    (study / "measured.tsv").write_text("gene\tregulator\nreporter\tJUN\nMYC\tMYC\n")
    words = (
        "build",
        "--interactions",
        "omnipath.tsv",
        "--inputs",
        "targets.tsv",
        "--outputs",
        "measured.tsv",
    )
    done = invoke(*words, "--min-confidence", 4, "--out", "prior", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "input_nodes": 2,
        "function_nodes": 4,
        "output_nodes": 1,
        "edges": 6,
        "dropped": {
            "interactions": {"confidence below 4": 2, "no input reaches the source": 1},
            "outputs": {"the regulator is no node of the interactions": 1},
        },
        "out": "prior",
    }
    assert "1 output(s) are on no path and were left out: 'MYC'" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--y", "Y.tsv"], "--inputs or --x must say what the inputs are"),
        (["--x", "X.tsv"], "--outputs or --y must say what the outputs are"),
        (
            ["--inputs", "targets.tsv", "--y", "Y.tsv", "--max-hops", "1"],
            "max_hops must be an int of at least 2",
        ),
        (["--inputs", "targets.tsv", "--y", "Y.tsv", "--complexes", "x"], "complexes must be one of"),
        (["--inputs", "targets.tsv", "--y", "Y.tsv", "--source", "x"], "has no column 'x' for the source"),
        (
            ["--inputs", "targets.tsv", "--y", "Y.tsv", "--max-hops", "2"],
            "there is no path of at most 2 edges",
        ),
        (["--inputs", "nothing.tsv", "--y", "Y.tsv"], "nothing.tsv"),
    ],
)
def test_what_the_user_can_put_right(study, words, message):
    done = invoke("build", "--interactions", "omnipath.tsv", *words, "--out", "prior")
    assert done.exit_code == 2 and message in done.stderr
    assert not (study / "prior").exists()


def test_a_folder_with_files_is_left_alone(study):
    (study / "prior").mkdir()
    (study / "prior" / "mine").write_text("")
    done = invoke("build", "--interactions", "omnipath.tsv", "--x", "X.tsv", "--y", "Y.tsv", "--out", "prior")
    assert done.exit_code == 2 and "prior is not an empty folder" in done.stderr


EDGES = "regulator\tgene\teffect\tsource\n" + "".join(
    f"{u}\t{v}\t{sign}\tx\n"
    for u, v, sign in (
        *(("a", "f0", "+"), ("b", "f1", "+"), ("c", "f4", "+")),
        *(("f0", "f2", "+"), ("f1", "f2", "-"), ("f2", "f5", "up-regulates activity")),
        *(("f3", "y0", "+"), ("f5", "y1", "+"), ("f4", "f3", "+"), ("f2", "y2", "unknown")),
    )
)


def test_columns_can_be_named_in_check_complete_and_verify(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.tsv").write_text(EDGES)
    rng = np.random.default_rng(0)
    rows = pd.Index([f"s{k}" for k in range(40)], name="sample")
    x = pd.DataFrame(rng.normal(size=(40, 3)), rows, list("abc"))
    y = pd.DataFrame(x.to_numpy() @ rng.normal(size=(3, 3)), rows, ["y0", "y1", "y2"])
    x.to_csv("X.tsv", sep="\t")
    y.to_csv("Y.tsv", sep="\t")
    tables = ("--edges", "edges.tsv", "--x", "X.tsv", "--y", "Y.tsv")
    named = ("--source", "regulator", "--target", "gene", "--sign", "effect")
    done = invoke("check", *tables, *named, "--json")
    assert json.loads(done.stdout)["edges"]["function->function"] == 4, done.output
    options: tuple[Any, ...] = (
        "--budget",
        1,
        "--channels",
        2,
        "--epochs",
        2,
        "--stages",
        1,
        "--quiet",
        "--out",
        "completed",
    )
    done = invoke("complete", *tables, *named, *options)
    assert done.exit_code == 0, done.output
    completed = pd.read_csv("completed/graph_completed.tsv", sep="\t")
    signs = {(row.source, row.target): row.weight for row in completed.itertuples()}
    assert signs["f1", "f2"] == -1 and signs["f2", "f5"] == 1 and signs["f2", "y2"] == 0
    options = ("--model", "completed/model.safetensors", "--candidates", "completed/edges.csv")
    done = invoke("verify", *tables, *named, *options, "--out", "verified.csv")
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv("verified.csv")) == 1
    for command in ("check", "complete", "verify"):
        out = () if command == "check" else ("--out", "other.csv")
        more = options if command == "verify" else ()
        done = invoke(command, *tables, *more, *out, "--source", "tf")
        assert done.exit_code == 2 and "has no column 'tf' for the source" in done.stderr


PAGE = Path(gsnn.__file__).resolve().parents[1] / "docs" / "database.md"


def test_the_page_goes_to_a_report_in_two_commands_and_five_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    first, five = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]
    assert len([line for line in five.split("\n") if line]) == 5
    scope: dict[str, Any] = {}
    exec(first, scope)
    shell = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert shell is not None
    commands = re.findall(r"^gsnn (.*)$", shell[1], re.MULTILINE)
    assert len(commands) == 2
    for command, more in zip(
        commands, ([], ["--folds=2", "--epochs=2", "--complete=0", "--quiet"]), strict=True
    ):
        done = invoke(*shlex.split(command), *more)  # shorter than by default, otherwise as printed
        assert done.exit_code == 0, done.output
        assert "warning" not in done.stderr
    assert (tmp_path / "results" / "report.html").exists()
    report = pd.read_csv("prior/report.tsv", sep="\t", keep_default_na=False)
    study = scope["study"]
    assert len(report) == len(study.interactions) + len(study.targets) + len(study.y.columns)
    edges = set(
        pd.read_csv("prior/edges.tsv", sep="\t")[["source", "target"]].itertuples(index=False, name=None)
    )
    exec(five, scope)
    assert (tmp_path / "report" / "report.html").exists()
    table = scope["graph"].to_edge_table()
    assert edges == set(table[["source", "target"]].itertuples(index=False, name=None))
