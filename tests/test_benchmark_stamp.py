"""Benchmarks measure commits: a changed tree is refused, and tables of one are known as not to be quoted."""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

#: Measured on a changed tree: to be measured again, and until then no number to quote. None may be added.
NOT_QUOTABLE = {"compare_inference.csv", "walks.csv"}


@pytest.fixture
def stamp(tmp_path, monkeypatch):
    """The module, in a repository of its own with one commit."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _stamp

    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    for path in ("code.py", "benchmarks/cost.py", "benchmarks/results/cost.csv"):
        (tmp_path / path).write_text("before\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(_stamp, "__file__", str(folder / "_stamp.py"))
    yield _stamp
    sys.modules.pop("_stamp")


def test_a_changed_tree_is_refused_unless_told(stamp, tmp_path, capsys):
    assert stamp.command_line(argparse.ArgumentParser(), []).dirty is False
    assert not stamp.stamp()["commit"].endswith("+")
    (tmp_path / "code.py").write_text("after\n")
    with pytest.raises(SystemExit):
        stamp.command_line(argparse.ArgumentParser(), [])
    assert "differs from its commit (code.py): commit first, or add --dirty" in capsys.readouterr().err
    assert stamp.command_line(argparse.ArgumentParser(), ["--dirty"]).dirty is True
    assert stamp.stamp()["commit"].endswith("+")


def test_new_results_and_unknown_files_are_no_change(stamp, tmp_path):
    (tmp_path / "benchmarks" / "results" / "cost.csv").write_text("after\n")
    (tmp_path / "notes.txt").write_text("mine\n")
    stamp.command_line(argparse.ArgumentParser(), [])
    assert not stamp.stamp()["commit"].endswith("+")


def test_every_script_asks_first():
    for script in BENCHMARKS.glob("[a-z]*.py"):
        text = script.read_text(encoding="utf-8")
        assert "parse_args(" not in text and "command_line(parser" in text, script.name


def test_tables_of_a_changed_tree_are_known():
    dirty = set()
    for path in (BENCHMARKS / "results").glob("*.csv"):
        table = pd.read_csv(path, dtype=str)
        if "commit" in table and table["commit"].str.endswith("+").any():
            dirty.add(path.name)
    assert dirty <= NOT_QUOTABLE, f"measured on a changed tree: {sorted(dirty - NOT_QUOTABLE)}"
