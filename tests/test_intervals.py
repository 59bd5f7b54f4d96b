"""Intervals of a run: against loops over samples, where the truth is known, and as the report tells them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_report_html import RANKING, Page, metrics

from gsnn.app.intervals import intervals_of, section_of
from gsnn.app.report_html import html_report
from gsnn.app.section import Section
from gsnn.data.tables import Data
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.stats.conformal import held_out_widths, residual_quantile

EVIL = "<script>alert('x')</script>"


@pytest.mark.parametrize("level, n", [(0.9, 40), (0.8, 9), (0.9, 9), (0.9, 8), (0.5, 3)])
def test_the_quantile_is_the_rank_of_split_conformal(level, n):
    residuals = np.abs(np.random.default_rng(0).normal(size=(n, 3)))
    residuals[::3, 1] = np.nan
    residuals[:, 2] = np.nan
    found = residual_quantile(residuals, level)
    for output in range(3):
        values = sorted(v for v in residuals[:, output] if not np.isnan(v))
        rank = int(np.ceil(round(level * (len(values) + 1), 9)))
        assert found[output] == (values[rank - 1] if rank <= len(values) else np.inf)


def test_no_error_has_a_part_in_its_own_interval():
    rng = np.random.default_rng(0)
    residuals, fold = np.abs(rng.normal(size=(60, 2))), rng.integers(1, 4, size=60)
    before = held_out_widths(residuals, fold, 0.8)
    for number in (1, 2, 3):
        own = fold == number
        others = [sorted(residuals[~own, k])[int(np.ceil(0.8 * ((~own).sum() + 1))) - 1] for k in (0, 1)]
        np.testing.assert_array_equal(before[own], np.tile(others, (own.sum(), 1)))
    residuals[fold == 2] *= 100  # a fold that is worse widens the others' intervals, not its own
    after = held_out_widths(residuals, fold, 0.8)
    np.testing.assert_array_equal(after[fold == 2], before[fold == 2])
    assert (after[fold == 1] > before[fold == 1]).all()


def world(n=1200, folds=4, groups=None):
    """Data whose held-out predictions are off by a known error."""
    rng = np.random.default_rng(0)
    names = [f"s{k}" for k in range(n)]
    graph = HeteroGraph(
        {
            EDGE_TYPES[0]: torch.empty(2, 0, dtype=torch.long),
            EDGE_TYPES[1]: torch.tensor([[0], [0]]),
            EDGE_TYPES[2]: torch.tensor([[0, 0], [0, 1]]),
        },
        {"input": ["i"], "function": ["f"], "output": ["o", "p"]},
    )
    x = pd.DataFrame({"i": rng.normal(size=n)}, index=names)
    y = pd.DataFrame({"o": rng.normal(size=n), "p": 10 * rng.exponential(size=n)}, index=names)
    y.iloc[::7, 0] = np.nan
    data = Data(graph, x, y, x.index[::-1], groups)
    return data, {"gsnn": np.zeros((n, 2)), "ridge": np.ones((n, 2))}, np.arange(n) % folds + 1


def test_they_hold_what_they_should_and_the_table_says_where():
    data, yhat, fold = world()
    fold[:50] = 0  # not tested
    found = intervals_of(data, yhat, fold)
    own = found.facts["gsnn"]
    assert found.facts["level"] == 0.9 and set(found.facts) == {"level", "grouped", "gsnn"}
    assert abs(own["coverage"] - 0.9) < 0.01
    table = found.table
    assert table is not None
    assert list(table.columns) == [
        *("method", "sample", "output", "fold", "predicted", "low", "high", "measured", "inside")
    ]
    assert len(table) == 2 * 1150 and table["sample"].iloc[0] == "s1199"  # in the order of the file
    assert (table["inside"].isna() == table["measured"].isna()).all()
    known = table[table["measured"].notna()]
    inside = (known["low"] <= known["measured"]) & (known["measured"] <= known["high"])
    assert (inside == known["inside"].astype(bool)).all()
    assert own["values"] == len(known) and own["coverage"] == pytest.approx(inside.mean())
    for name, values in own["by_output"].items():
        part = known[known["output"] == name]
        assert values["coverage"] == pytest.approx(part["inside"].astype(float).mean())
        assert values["half_width"] == pytest.approx(part["measured"].abs().quantile(0.9), rel=0.02)
        assert data.y.loc[part["sample"], name].to_numpy() == pytest.approx(part["measured"].to_numpy())
    widths = (known["high"] - known["low"]) / known["output"].map(data.y.iloc[50:].std(ddof=0))
    assert own["width"] == pytest.approx(widths.median())


def test_folds_that_differ_are_said_to_be_covered_badly():
    data, yhat, fold = world()
    shifted = replace(data, y=data.y + 30.0 * (fold == 2)[:, None])
    facts = intervals_of(shifted, {**yhat, "completed": yhat["gsnn"]}, fold).facts
    assert facts["completed"]["coverage"] == facts["gsnn"]["coverage"] < 0.8
    section = section_of(facts)
    assert "too narrow" in section.note and "on the completed graph" in section.text[0]
    facts = intervals_of(data, yhat, fold).facts
    good = section_of(facts)
    assert good.note == ""
    assert f"holds {facts['gsnn']['coverage']:.1%} of 2,228 (network on the given graph)" in good.text[0]
    assert "unless whole ones are held out" in good.text[1]
    wide = {"level": 0.9, "grouped": True, "gsnn": facts["gsnn"] | {"coverage": 0.99}}
    assert "too wide" in section_of(wide).note and "new groups" in section_of(wide).text[1]
    held = [facts["gsnn"]["by_output"][row[0]]["coverage"] for row in good.rows]
    assert held == sorted(held) and {row[0] for row in good.rows} == {"o", "p"}


def test_where_there_is_nothing_to_calibrate_by():
    data, yhat, fold = world()
    found = intervals_of(data, yhat, np.where(fold == 1, 1, 0))
    assert found.table is None and "one test fold" in section_of(found.facts).text[0]
    small, yhat, fold = world(n=16, folds=4)  # eight of the other folds' are measured, nine are needed
    small = replace(small, y=small.y.mask(np.tile(np.arange(16)[:, None] > 10, 2)))
    found = intervals_of(small, yhat, fold)
    table = found.table
    assert table is not None
    assert table["low"].isna().any() and table.loc[table["low"].isna(), "inside"].isna().all()
    nothing = intervals_of(replace(small, y=small.y * np.nan), yhat, fold)
    assert nothing.facts["gsnn"]["values"] == 0
    assert "too small" in section_of(nothing.facts).note


def test_a_section_is_text_and_takes_its_pictures():
    section = Section(EVIL, [EVIL], EVIL, ["a", EVIL], [["1", EVIL]], (0,), ["mine", "absent"])
    text = html_report(metrics(), RANKING, None, {"mine": b"x", "other": b"y"}, sections=[section])
    found = Page(text)
    assert not any(tag == "script" for tag, _ in found.tags) and found.text.count(EVIL) >= 5
    assert [a["alt"] for t, a in found.tags if t == "img"] == ["mine", "other"]
    assert [["a", EVIL], ["1", EVIL]] in found.tables
    assert found.text.index(EVIL) < found.text.index("How it was trained")
