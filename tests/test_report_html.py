"""The report of a run: one page that holds everything, shows what it was given, and trusts no name."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from gsnn.app.demo import write_tables
from gsnn.app.findings import headline, sufficiency, verified
from gsnn.app.report_html import html_report
from gsnn.app.workflow import Options, run
from gsnn.data.tables import load_data
from gsnn.graph import GraphWarning
from gsnn.simulate.scenarios import converging_tiers

EVIL = "<script>alert('x')</script>\"&amp;"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, text by tag, tables as lists of rows; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[Any] = []
        self.open: list[str] = []
        self.tables: list[Any] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def metrics(**changes):
    given = {
        "data": {
            "samples": 1234,
            "input_nodes": 2,
            "function_nodes": 3,
            "output_nodes": 2,
            "edges": {"function->function": 3, "input->function": 2, "function->output": 2},
            "measured": 2468,
            "groups": None,
        },
        "versions": {"gsnn": "9.9", "torch": "2.x"},
        "settings": {"channels": 8, "top": 15, "layers": 4, "device": None},
        "r2": {"mean": 0.0, "ridge": 0.71, "mlp": 0.5, "gsnn": 0.61},
        "r2_standardised": {"mean": 0.0, "ridge": 0.41, "mlp": 0.42, "gsnn": 0.43},
        "r2_median": {"mean": 0.0, "ridge": 0.31, "mlp": 0.32, "gsnn": 0.33},
        "mse": {"mean": 4.0, "ridge": 1.2, "mlp": 2.0, "gsnn": 1.61},
        "r2_by_fold": {m: [0.1, 0.9] for m in ("mean", "ridge", "mlp", "gsnn")},
        "r2_by_output": {
            EVIL: {"mean": 0.0, "ridge": 0.2, "mlp": 0.3, "gsnn": 0.4},
            "good": {"mean": 0.0, "ridge": 0.2, "mlp": 0.3, "gsnn": 0.8},
            "flat": {"mean": 0.0, "ridge": 0.2, "mlp": 0.3, "gsnn": float("nan")},
        },
        "why": {"layers": "4 layers, as asked for", "epochs": "40 epochs, by <loss>"},
        "unreached": [],
        "completion": {"skipped": "it was <off>"},
        "ranking": {
            **{"pairs": 5, "listed": 3, "how": "a & b", "caution": "careful < here"},
            **{"scored": 2, "not_scored": {"no <signal>": 1}},
        },
        "seconds": 1.5,
    }
    return given | changes


RANKING = pd.DataFrame(
    {
        "rank": [1, 2, 3],
        "source": ["a", EVIL, "c"],
        "target": ["b", "c", "a"],
        "score": [0.9, 0.5, np.nan],
        "p_value": [1e-200, 0.012, np.nan],
        "q_value": [1e-199, 0.5, np.nan],
    }
)


EDGES = pd.DataFrame(
    {
        "order": [1, 2],
        "src_func": ["a", "c"],
        "dst_func": ["b", EVIL],
        "gain": [0.123, 0.004],
        "gain_low": [0.1, -0.001],
        "gain_high": [0.15, 0.01],
        "p_value": [1e-9, 0.5],
        "q_value": [2e-9, 0.6],
        "verified": [True, False],
        "alternatives": ["c -> b", ""],
        "share": [1.0, 0.4],
    }
)
COMPLETED = {
    **{"added": 2, "verified": 1, "not_verified_because": "", "chosen_from": 200, "verified_on": 1000},
    **{"mean_share": 0.7, "r2": []},
}


def completed(**changes):
    """metrics() of a run that has added two edges."""
    r2 = {"mean": 0.0, "ridge": 0.71, "mlp": 0.5, "gsnn": 0.61, "random": 0.62, "completed": 0.69}
    given = metrics(completion=COMPLETED, r2=r2)
    for name in ("r2_standardised", "r2_median", "mse", "r2_by_fold"):
        given[name] = {method: given[name].get(method, given[name]["gsnn"]) for method in r2}
    return given | changes


def picture():
    buffer = io.BytesIO()
    figure = plt.figure(figsize=(1, 1))
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def page(**changes):
    given = {"metrics": metrics(), "ranking": RANKING, "edges": None}
    given |= {"pictures": {"top_edges": picture(), "other": picture()}} | changes
    first = [given.pop(name) for name in ("metrics", "ranking", "edges", "pictures")]
    return Page(html_report(*first, **given))


def test_nothing_is_fetched_and_nothing_runs():
    found = page()
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "iframe", "object", "base", "form"}
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "img-src data:" in policy
    text = html_report(metrics(), RANKING, None, {})
    found = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert found is not None
    style = found[1]
    assert "url(" not in style and "@import" not in style


def test_pictures_decode_to_what_was_given():
    given = {"top_edges": picture(), "learning_curve": picture()}
    images = [a for t, a in page(pictures=given).tags if t == "img"]
    assert {a["alt"] for a in images} == {"top edges", "learning curve"}
    for image in images:
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True) == given[image["alt"].replace(" ", "_")]


def test_names_from_the_data_stay_text():
    found = page(warnings=[f"warned of {EVIL}"], pictures={EVIL: picture()})
    cells = [cell for table in found.tables for row in table for cell in row]
    assert cells.count(EVIL) == 2  # an output and the source of an edge
    assert f"warned of {EVIL}" in found.text
    assert "careful < here" in found.text and "a & b" in found.text
    assert [a["alt"] for t, a in found.tags if t == "img"] == [EVIL]


def test_tables_say_what_the_metrics_say():
    single = page(metrics=metrics(r2_by_fold={m: [0.5] for m in ("mean", "ridge", "mlp", "gsnn")}))
    assert single.tables[0][0][4] == "R2, 1 test fold" and single.tables[0][1][4] == "0.500"
    comparison, edges, outputs, settings, versions = page(held_out=[("a", "b")]).tables
    assert [row[0] for row in comparison[1:]] == ["ridge", "gsnn", "mlp", "mean"]
    assert comparison[2][1:-1] == ["0.610", "0.430", "0.330", "0.100 to 0.900", "1.61"]
    assert "of which 2 could be scored. Not scored: 1 no <signal>." in page().text
    text = page(first=["read < this"]).text
    assert text.index("read < this") < text.index("Does the graph suffice?")
    assert [(row[0], row[2]) for row in outputs[1:]] == [("good", "0.800"), (EVIL, "0.400"), ("flat", "–")]
    assert outputs[0] == ["output", "", "R2, gsnn", "R2, ridge", "R2, mlp"]
    assert edges[1:] == [
        ["1", "a", "b", "0.900", "✓"],
        ["2", EVIL, "c", "0.500", ""],
        ["3", "c", "a", "–", ""],
    ]
    assert settings == [["channels", "8"], ["top", "15"], ["layers", "4"], ["device", "–"]]
    assert ["gsnn", "9.9"] in versions and ["edges function → function", "3"] in versions
    assert "known to be true" not in page().text
    assert "4 layers, as asked for. 40 epochs, by <loss>." in page().text


def test_bars_stay_inside_their_frame():
    outputs = {"a": {"mean": 0, "gsnn": -3.0}, "b": {"mean": 0, "gsnn": 1.0}, "c": {"mean": 0, "gsnn": 0.5}}
    found = page(metrics=metrics(r2_by_output=outputs))
    assert [a["style"] for t, a in found.tags if t == "i"] == ["width:100%", "width:50%", "width:0%"]


def test_long_tables_are_cut_and_say_so():
    outputs = {f"o{k}": {"mean": 0.0, "gsnn": k / 1000} for k in range(310)}
    ranking = pd.concat([RANKING] * 20, ignore_index=True)
    found = page(metrics=metrics(r2_by_output=outputs), ranking=ranking)
    assert [len(table) - 1 for table in found.tables[1:3]] == [30, 300]
    assert "The 10 others are in metrics.json" in found.text
    assert "The first 30 of 5 pairs" in found.text


def test_edges_that_were_added():
    pictures = {"r2_by_edges": picture(), "added_edges": picture(), "learning_curve": picture()}
    found = page(metrics=completed(), edges=EDGES, pictures=pictures, held_out=[("a", "b")])
    comparison, edges, *_ = found.tables
    assert [row[0] for row in comparison[1:]] == ["ridge", "completed", "random", "gsnn", "mlp", "mean"]
    assert edges == [
        [
            *("", "source", "target", "gain", "95% interval", "q", "verified", "folds"),
            *("alternatives", "known to be true"),
        ],
        ["1", "a", "b", "0.123", "0.100 to 0.150", "2.0e-09", "✓", "100%", "c -> b", "✓"],
        ["2", "c", EVIL, "0.004", "-0.001 to 0.010", "6.0e-01", "", "40%", "", ""],
    ]
    order = [
        *("Report of a gsnn run", "explains 61% of the variance", "Does the graph suffice?"),
        *("predicts better by 0.10", "Bars: 95% intervals", "Edges that would repair the prediction"),
        *("By output", "How it was trained", "Settings, data and versions"),
    ]
    places = [found.text.index(words) for words in order]
    assert places == sorted(places)
    assert "1 holds on 1,000 samples" in found.text and "from 200 samples" in found.text
    for words in ("recovered", "Pairs that the graph may lack", "careful < here"):
        assert words not in found.text
    untested = EDGES.assign(
        gain=np.nan, gain_low=np.nan, q_value=np.nan, verified=pd.array([pd.NA] * 2, dtype="boolean")
    )
    given = completed(completion=COMPLETED | {"verified": None, "not_verified_because": "few <samples>"})
    found = page(metrics=given, edges=untested)
    assert found.tables[1][1][3:7] == ["–", "–", "–", "–"] and "not known: few <samples>." in found.text


def test_outputs_that_nothing_reaches_are_named():
    found = page(metrics=metrics(unreached=["a", EVIL]))
    assert "No input reaches 2 outputs, which" in found.text and repr(EVIL) in found.text
    assert "within its 4 layers" in found.text and "No input reaches" not in page().text


def r2_of(**values):
    return {"mean": 0.0, "ridge": 0.5, "mlp": 0.4, "gsnn": 0.5} | values


@pytest.mark.parametrize(
    ("r2", "said", "not_said"),
    [
        (r2_of(), "As far as these data can tell the graph suffices", "added edges"),
        (
            r2_of(gsnn=0.3),
            "ridge regression, which sees every input, predicts better by 0.20 of R2.",
            "added",
        ),
        (
            r2_of(mlp=0.7),
            "the multilayer perceptron, which sees every input, predicts better by 0.20",
            "With",
        ),
        (r2_of(ridge=float("nan")), "graph suffices", "cannot be told"),
        (r2_of(gsnn=None), "cannot be told", "suffice:"),
        (
            r2_of(completed=0.51, random=0.5),
            "better by more than 0.02, nor does a graph with added edges.",
            "does not suffice",
        ),
        (
            r2_of(completed=0.6, random=0.5),
            "with 2 edges added the same network predicts better by 0.10",
            "As",
        ),
        (
            r2_of(gsnn=0.1, completed=0.4, random=0.2),
            "With 2 edges added, 75% of that gap is closed.",
            "random",
        ),
        (
            r2_of(gsnn=0.1, completed=0.7, random=0.2),
            "With 2 edges added, 100% of that gap is closed.",
            "look",
        ),
        (r2_of(gsnn=0.1, completed=0.4, random=0.39), "As many random edges do as much", "look at"),
        (r2_of(gsnn=0.1, completed=0.11, random=0.1), "Edges between function nodes do not close", "closed"),
    ],
)
def test_whether_the_graph_suffices(r2, said, not_said):
    found = COMPLETED if "completed" in r2 else {"skipped": "it was turned off"}
    text = sufficiency(metrics(r2=r2, completion=found))
    assert said in text and not_said not in text
    if "completed" not in r2:
        assert text in page(metrics=metrics(r2=r2)).text


def test_the_sentence_to_quote():
    text = headline(completed())
    assert (
        "on the given graph explains 61% of the variance of the outputs; ridge regression explains 71%"
        in text
    )
    assert "With 2 edges added the network explains 69%, with as many random edges 62%." in text
    assert text.endswith("Of the added edges, 1 holds on 1,000 samples that had no part in choosing them.")
    assert "none holds on" in verified(completed(completion=COMPLETED | {"verified": 0}))
    assert "2 hold on" in verified(completed(completion=COMPLETED | {"verified": 2}))
    assert headline(metrics(r2=r2_of(gsnn=-0.5, mlp=None))).count("explains 0%") == 1
    assert "perceptron an unknown share" in headline(metrics(r2=r2_of(mlp=None)))
    assert verified(metrics()) == "No edges were added to the graph: it was <off>."


def test_nothing_is_wider_than_a_phone():
    """Tables scroll in their frames, pictures shrink, no width is fixed beyond 20 rem, some 320 pixels."""
    found = page(metrics=completed(), edges=EDGES)
    assert any(a.get("name") == "viewport" and "width=device-width" in a["content"] for _, a in found.tags)
    tags = [(tag, a.get("class")) for tag, a in found.tags]
    frames = [tags[k - 1] for k, (tag, _) in enumerate(tags) if tag == "table"]
    assert frames and set(frames) == {("div", "wide")}
    style = html_report(metrics(), RANKING, None, {}).partition("<style>")[2].partition("</style>")[0]
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", style) and "img { max-width: 100%" in style
    widths = re.findall(r"(?<!max-)width:\s*([\d.]+)(rem|px|em|ch)", style)
    assert all(float(value) * {"px": 1 / 16}.get(unit, 1) <= 20 for value, unit in widths), widths
    assert not [a for _, a in found.tags if "width" in a]


def test_checks_that_found_nothing():
    assert "found nothing to warn of" in page().text


def test_report_of_a_run_with_odd_names(tmp_path):
    """Names that are markup, for a browser or for matplotlib, reach the page as they are."""
    paths = write_tables(converging_tiers(4), tmp_path / "data", n=30, seed=0)
    names = {"f1": r"$\frac$", "o1": EVIL.replace('"', "")}
    for path in paths.values():
        text = path.read_text()
        for old, new in names.items():
            text = re.sub(rf"(?<![^\t\n]){old}(?![^\t\n])", new.replace("\\", r"\\"), text)
        path.write_text(text)
    data = load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])
    out = tmp_path / "out"
    options = Options(folds=2, channels=2, epochs=1, batch_size=16, complete=0)
    run(data, out, options, verbose=False)
    found = Page((out / "report.html").read_text(encoding="utf-8"))
    cells = {cell for table in found.tables for row in table for cell in row}
    assert set(names.values()) <= cells
    listed = json.loads((out / "metrics.json").read_text())
    comparison = {row[0]: row[1] for row in found.tables[0][1:]}
    assert comparison == {method: f"{value:.3f}" for method, value in listed["r2"].items()}
    saved = {path.stem: path.read_bytes() for path in (out / "figures").iterdir()}
    shown = {a["alt"].replace(" ", "_"): a["src"] for t, a in found.tags if t == "img"}
    assert {k: base64.b64decode(v.partition(",")[2]) for k, v in shown.items()} == saved


def test_warnings_of_the_checks_are_given_and_kept(tmp_path):
    paths = write_tables(converging_tiers(4), tmp_path, n=10, seed=0)
    edges = pd.read_csv(paths["edges"], sep="\t")
    edges[edges["target"] != "o2"].to_csv(paths["edges"], sep="\t", index=False)
    with pytest.warns(GraphWarning) as given:
        data = load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])
    assert data.warnings == tuple(str(w.message) for w in given)
    assert "no edge feeds 1 of 4 output nodes: 'o2'" in data.warnings
