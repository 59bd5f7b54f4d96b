"""The page of benchmarks: every script with a result has its table, stamps are said once."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import benchmark_tables

    yield benchmark_tables.page
    sys.modules.pop("benchmark_tables")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "cost.py").write_text(
        '"""How much it costs.\n\nMore.\n\n    python cost.py\n    python b.py\n"""\n'
    )
    (tmp_path / "cost_gpu.py").write_text('"""On a GPU."""\n')
    (tmp_path / "a.py").write_text('"""Rows by seed."""\n')
    (tmp_path / "results" / "a.csv").write_text("seed\n" + "0\n" * 11)
    (tmp_path / "silent.py").write_text('"""No table."""\n')
    stamp = "commit,threads"
    (tmp_path / "results" / "cost.csv").write_text(
        f"N,C,ms,{stamp}\n10,4,1.23456,abc,1\n20,4,0.00001234,abc,1\n30,4,123456.7,abc+,1\n"
    )
    (tmp_path / "results" / "cost_gpu.csv").write_text(f"what|x,{stamp}\na|b,abc,1\n")
    (tmp_path / "results" / "cost_long.csv").write_text("k\n" + "".join(f"{k}\n" for k in range(50)))
    return tmp_path


def test_tables(page, folder):
    text = page(folder)
    cost, rest = text.split("## cost_gpu.py")
    gpu, last = rest.split("## a.py")  # what is not shown comes last
    assert "**Rows by seed.**" in last and "`benchmarks/results/a.csv` has 11 rows" in last
    assert cost.startswith("## cost.py\n\n**How much it costs.**\n\nMore.\n")
    assert "```sh\npython cost.py\npython b.py\n```" in cost
    assert "| N | ms |\n| --- | --- |\n| 10 | 1.235 |\n| 20 | 1.234e-05 |\n| 30 | 123,457 |\n" in cost
    assert "In all rows: C 4. commit abc, threads 1; commit abc+, threads 1." in cost
    assert "`benchmarks/results/cost_long.csv` has 50 rows and is not shown here." in cost
    assert r"| a\|b |" in gpu and "cost_long" not in gpu
    assert "silent" not in text


def test_the_real_results(page):
    text = page(ROOT / "benchmarks")
    for path in (ROOT / "benchmarks" / "results").glob("*.csv"):
        assert f"`benchmarks/results/{path.name}`" in text
