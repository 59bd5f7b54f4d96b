"""The README: its example runs as printed, and the demo ends as quoted."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest

from gsnn.app.demo import Demo, demo

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(example, str(README), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "src_func" in printed
    assert len(printed.strip().splitlines()) >= 11


def quoted():
    """The last line of the demo as the README has it, on one line."""
    lines = re.findall(r"^> (.*)$", README.read_text(), re.MULTILINE)
    return " ".join(lines)


def test_the_quoted_demo_is_what_the_demo_says():
    numbers = map(float, re.findall(r"\d+(?:\.\d+)?", quoted().removeprefix("R2")))
    before, after, ridge, hidden, found, verified, among, alternatives = numbers
    r2 = {"gsnn": before, "completed": after, "ridge": ridge}
    result: Any = SimpleNamespace(metrics={"r2": r2})
    said = Demo(
        result,
        int(hidden),
        int(verified),
        int(found),
        int(alternatives),
        int(among),
    ).said()
    assert said == quoted()


@pytest.mark.slow
def test_the_demo_ends_with_what_is_quoted(tmp_path):
    assert demo(tmp_path, verbose=False).said() == quoted()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()))
def test_local_links_lead_somewhere(target):
    assert (README.parent / target).exists()
