"""The example of the README runs as printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(example, str(README), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "src_func" in printed
    assert len(printed.strip().splitlines()) >= 11


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()))
def test_local_links_lead_somewhere(target):
    assert (README.parent / target).exists()
