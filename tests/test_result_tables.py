"""Result tables: nothing in them is a formula to a spreadsheet, and all of it comes back."""

import csv

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn._delimited import read_delimited
from gsnn.data.tables import read_table
from gsnn.io.tables import write_table

FORMULAS = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", '=HYPERLINK("http://x")', "\t=1", "-a", "+-1"]
PLAIN = ["-", "+", "-1.5", "+2e-3", "a=b", "EGFR", "'quoted'", "p53-", "-inf", "1-2", ""]


def cells_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t"))


@pytest.mark.parametrize("name", ["table.csv", "table.tsv"])
def test_formulas_begin_with_an_apostrophe_and_other_text_is_left(tmp_path, name):
    write_table(pd.DataFrame({"=name": [*FORMULAS, *PLAIN], "value": -1.5}), tmp_path / name)
    header, *rows = cells_of(tmp_path / name)
    assert header == ["'=name", "value"]
    assert [row[0] for row in rows] == [*(f"'{text}" for text in FORMULAS), *PLAIN]
    assert {row[1] for row in rows} == {"-1.5"}


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_every_kind_of_text_column_is_looked_at(tmp_path, kind):
    write_table(pd.DataFrame({"name": pd.Series(["=a", None, "b", "=a"], dtype=kind)}), tmp_path / "t.csv")
    assert cells_of(tmp_path / "t.csv")[1:] == [["'=a"], [""], ["b"], ["'=a"]]


def test_the_index_is_the_first_column_and_is_looked_at(tmp_path):
    table = pd.DataFrame(np.array([[1 / 3, 2.0], [3.0, np.nan]]), ["=s", "t"], ["a", "-b"])
    write_table(table, tmp_path / "t.tsv", digits=3, index="sample")
    assert cells_of(tmp_path / "t.tsv") == [["sample", "a", "'-b"], ["'=s", "0.333", "2"], ["t", "3", ""]]
    assert list(table.columns) == ["a", "-b"], "the table given is not changed"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("=+-@ab1.e'\"; é"), min_size=1), min_size=1, unique=True))
def test_names_come_back(tmp_path_factory, names):
    stripped = dict.fromkeys(name.strip() for name in names)
    names = [name for name in stripped if name and not name.startswith("'")]
    path = tmp_path_factory.mktemp("t") / "names.tsv"
    write_table(pd.DataFrame({"node": names, "type": "function"}), path)
    assert read_delimited(path).column("node") == names


def test_a_table_of_samples_comes_back(tmp_path):
    table = pd.DataFrame([[1.0, 2.0]], pd.Index(["=s"], name="sample"), ["@a", "b"])
    write_table(table, tmp_path / "x.tsv", index="sample")
    pd.testing.assert_frame_equal(read_table(tmp_path / "x.tsv"), table)


@pytest.mark.parametrize("digits", [0, -1, 2.5])
def test_digits_out_of_range_are_refused_and_nothing_is_written(tmp_path, digits):
    with pytest.raises(ValueError, match="digits must be a positive int, got"):
        write_table(pd.DataFrame({"a": [1.0]}), tmp_path / "t.csv", digits=digits)
    assert not list(tmp_path.iterdir())
