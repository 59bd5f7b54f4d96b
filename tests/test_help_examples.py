"""What the help of each command prints as examples runs as it stands there, on smaller tables."""

import shlex

import pytest
from typer.testing import CliRunner

from gsnn.app import demo
from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.simulate.database import database_study
from gsnn.simulate.scenarios import converging_tiers

#: In an order in which each finds the files of those before it. Words after the example only make it shorter.
COMMANDS = {
    "demo": ("--quiet",),
    "run": ("--channels", "2", "--epochs", "1", "--quiet", "--folds", "0", "--complete", "0"),
    "complete": ("--channels", "2", "--epochs", "1", "--quiet", "--stages", "1", "--budget", "2"),
    "verify": (),
    "predict": (),
    "explain": (),
    "check": (),
    "simulate": (),
    "build": (),
}


def printed(name):
    """The examples as a terminal of 60 columns shows them, far narrower than they are long."""
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "60", "TERMINAL_WIDTH": "60"})
    assert done.exit_code == 0
    _, _, examples = done.stdout.partition("\nExample")
    return [shlex.split(line)[1:] for line in examples.splitlines() if line.startswith("  gsnn ")]


def test_every_command_is_here():
    assert {getattr(command.callback, "__name__", "") for command in app.registered_commands} == set(COMMANDS)
    for name in COMMANDS:
        assert printed(name) and all(example[0] == name for example in printed(name)), name


def test_examples_run_as_printed(tmp_path, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DEMO_OPTIONS", demo.Options(folds=0, channels=2, epochs=1, complete=0))
    monkeypatch.setattr(demo, "converging_tiers", lambda width: converging_tiers(5))
    monkeypatch.setattr(
        demo, "write_tables", lambda scenario, folder, n, seed: write_tables(scenario, folder, 40, seed)
    )
    new = write_tables(converging_tiers(5), tmp_path / "new", n=40, seed=1)
    for table in "xy":  # samples that had no part in choosing the edges
        new[table].rename(tmp_path / f"new_{table.upper()}.tsv")
    study = database_study(seed=0)  # what docs/database.md writes
    study.interactions.to_csv("omnipath.tsv", sep="\t", index=False)
    study.targets.to_csv("targets.tsv", sep="\t", index=False)
    study.x.to_csv("X.tsv", sep="\t")
    study.y.to_csv("Y.tsv", sep="\t")
    for name, shorter in COMMANDS.items():
        for words in printed(name):
            done = CliRunner().invoke(app, [*words, *shorter])
            assert done.exit_code == 0, f"gsnn {shlex.join(words)}: {done.output}"
    made = ("results/report.html", "again/report.html", "completed/model.safetensors", "verified.csv")
    for path in (*made, "predicted.csv", "why.csv", "simulated/X.tsv", "prior/edges.tsv"):
        assert (tmp_path / path).exists(), path
