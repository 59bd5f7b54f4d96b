"""The report of a run as one HTML page that needs nothing else: no network, no script, no other file.

Pictures are data URIs, styles are inline, and every name from the data is escaped. A policy in the page's
head keeps a browser from loading or running anything.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from gsnn.app.findings import CAUTION, headline, sufficiency, unreached, verified
from gsnn.app.section import Section

#: What the methods of the comparison are, for readers of the page.
METHODS = {
    "mean": "mean of the training samples",
    "ridge": "ridge regression on all inputs",
    "mlp": "multilayer perceptron on all inputs",
    "gsnn": "GSNN on the given graph",
    "completed": "GSNN on the graph with edges added, chosen without the test fold",
    "random": "GSNN on the graph with as many random edges added",
}
CAPTIONS = {
    "predicted_vs_measured": "Predictions of the GSNN, each by a network that had not seen the sample.",
    "learning_curve": "Loss in standardised units. The test fold is watched, never acted upon.",
    "top_edges": "The top candidates in the graph.",
    "r2_by_edges": "Edges chosen within each training fold, outputs in units of their standard deviation. "
    "Bars: 95% intervals.",
    "added_edges": "The added edges in the graph.",
    "explanation": "Edges that carry the differences between samples to the output, by integrated gradients.",
}
_MOST_OUTPUTS = 300
_EDGES = 30
_LONG = 24  # characters of a cell that would be a tower of words in a narrow column
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; color: #222;
       background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
p { max-width: 46rem; }
.small, figcaption { color: #555; font-size: 0.9rem; }
.note { border-left: 4px solid #e69f00; background: #fdf6e7; padding: 0.6rem 1rem; max-width: 46rem; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.92rem; }
th, td { padding: 0.25rem 0.8rem; border-bottom: 1px solid #e3e3e3; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #999; background: #fff; position: sticky; top: 0; }
td { overflow-wrap: break-word; max-width: 22rem; }
.long { min-width: 14rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.n { white-space: normal; }
.own td { font-weight: 600; }
.wide { max-width: 100%; overflow-x: auto; }
.scroll .wide { max-height: 30rem; overflow: auto; width: fit-content; border: 1px solid #ddd; }
.scroll table { margin: 0; }
.bar { display: inline-block; width: 7rem; height: 0.7rem; background: #eee; }
.bar i { display: block; height: 100%; background: #0072b2; }
.lead { font-size: 1.15rem; }
figure { margin: 1.2rem 0; }
figure img { max-width: 100%; height: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.pair > * { max-width: 100%; }
.pair figure { flex: 1 1 min(20rem, 100%); margin: 0.4rem 0; }
@media print { .wide, .scroll .wide { max-height: none; overflow: visible; } }
"""


def html_report(
    metrics: Mapping[str, Any],
    ranking: pd.DataFrame,
    edges: pd.DataFrame | None,
    pictures: Mapping[str, bytes],
    *,
    warnings: Sequence[str] = (),
    held_out: Iterable[tuple[str, str]] = (),
    first: Sequence[str] = (),
    sections: Sequence[Section] = (),
) -> str:
    """The page as text.

    Args:
        metrics: as in metrics.json; see :func:`gsnn.app.workflow.run`.
        ranking: as in ranking.csv, best candidate first; shown where no edges were added.
        edges: as in edges.csv; None where no edges were added.
        pictures: name -> the bytes of a PNG file.
        warnings: what the checks of the tables had to say.
        held_out: missing edges that are known to be true, as in a simulation; the table of edges says which.
        first: what must be known before anything else is read.
        sections: more of them, shown after the outputs.
    """
    sizes, known = metrics["data"], {tuple(edge) for edge in held_out}
    n_edges = sum(sizes["edges"].values())
    left = {name: _figure(name, data) for name, data in pictures.items()}
    graph = left.pop("added_edges", left.pop("top_edges", ""))
    by_edges = left.pop("r2_by_edges", "")
    more = [_section(section, left) for section in sections]
    last = _ranked(metrics, ranking, known) if edges is None else _added(metrics, edges, known)
    lost = unreached(metrics)
    parts = [
        "<h1>Report of a gsnn run</h1>",
        f'<p class="small">{sizes["samples"]:,} samples, {sizes["input_nodes"]:,} inputs, '
        f"{sizes['function_nodes']:,} function nodes, {sizes['output_nodes']:,} outputs, "
        f"{n_edges:,} edges</p>",
        *(f'<p class="note"><b>{escape(said)}</b></p>' for said in first),
        f'<p class="lead">{escape(headline(metrics))}</p>',
        _warned(warnings),
        "<h2>Does the graph suffice?</h2>",
        f"<p>{escape(sufficiency(metrics))}</p>",
        _comparison(metrics),
        by_edges,
        *last,
        graph,
        "<h2>By output</h2>",
        f'<p class="note">{escape(lost)}</p>' if lost else "",
        _by_output(metrics["r2_by_output"]),
        *more,
        "<h2>How it was trained</h2>",
        *(f"<p>{escape(said[:1].upper() + said[1:])}.</p>" for said in metrics["why"].values()),
        f'<div class="pair">{"".join(left.values())}</div>',
        "<h2>Settings, data and versions</h2>",
        '<div class="pair">',
        _pairs(metrics["settings"]),
        _pairs(
            {
                **{key.replace("_", " "): value for key, value in sizes.items() if key != "edges"},
                **{f"edges {kind.replace('->', ' → ')}": n for kind, n in sizes["edges"].items()},
                **metrics["versions"],
                "seconds": metrics["seconds"],
            }
        ),
        "</div>",
        f'<p class="small">Beside this page: {_FILES if edges is None else _FILES_ADDED + _FILES}. Read '
        "models with <code>gsnn.load</code>. Method: Evans et al. 2024, doi 10.1101/2024.02.28.582164.</p>",
    ]
    return _PAGE.format(style=_STYLE, body="\n".join(part for part in parts if part))


_FILES = (
    "<code>metrics.json</code>, <code>predictions.csv</code>, <code>intervals.csv</code>, "
    "<code>attributions.csv</code>, "
    "<code>ranking.csv</code> (all pairs of function nodes that are no edge, ranked by the magnitude "
    "correlation, with its p-values), "
    "<code>model.safetensors</code> and <code>figures/</code>"
)
_FILES_ADDED = (
    "<code>edges.csv</code>, <code>graph_completed.tsv</code>, <code>model_completed.safetensors</code>, "
)


def _added(metrics: Mapping[str, Any], edges: pd.DataFrame, known: set[tuple[str, ...]]) -> list[str]:
    """The section of the edges that were added."""
    found = metrics["completion"]
    return [
        "<h2>Edges that would repair the prediction</h2>",
        f"<p>{escape(verified(metrics))} The first is the one that was chosen first, from "
        f"{found['chosen_from']:,} samples. Gain: the share of the loss that it takes away, with its 95% "
        "interval. Folds: the share of the folds above whose own search chose it too.</p>",
        f'<p class="note">{escape(CAUTION)}</p>',
        _edges(edges, known),
    ]


def _ranked(metrics: Mapping[str, Any], ranking: pd.DataFrame, known: set[tuple[str, ...]]) -> list[str]:
    """The section of the ranked pairs, where no edges were added."""
    rows, facts = max(_EDGES, metrics["settings"]["top"]), metrics["ranking"]
    reasons = facts["not_scored"]
    lost = "; ".join(f"{n:,} {why}" for why, n in reasons.items())
    return [
        "<h2>Pairs that the graph may lack</h2>",
        f"<p>{escape(verified(metrics))}</p>",
        f'<p class="note"><b>Read this first.</b> {escape(facts["caution"])}</p>',
        f'<p class="small">Score: {escape(facts["how"])}. The first {min(rows, len(ranking))} of '
        f"{facts['pairs']:,} pairs of function nodes that are no edge; <code>ranking.csv</code> has "
        f"{len(ranking):,}, of which {facts['scored']:,} could be scored."
        f"{f' Not scored: {escape(lost)}.' if lost else ''}</p>",
        _pairs_ranked(ranking.head(rows), known),
    ]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Report of a gsnn run</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _warned(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<p class="small">The checks of the tables found nothing to warn of.</p>'
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<div class="note"><b>The checks of the tables say:</b><ul>{items}</ul></div>'


def _comparison(metrics: Mapping[str, Any]) -> str:
    folds = len(metrics["r2_by_fold"]["gsnn"])
    rows = []
    for method, value in sorted(metrics["r2"].items(), key=lambda item: -_order(item[1])):
        by_fold = [v for v in metrics["r2_by_fold"][method] if v is not None and math.isfinite(v)]
        ends = [f"{bound(by_fold):.3f}" for bound in (min, max)] if by_fold else ["–"]
        span = " to ".join(dict.fromkeys(ends))
        rows.append(
            [
                method,
                _number(value),
                _number(metrics["r2_standardised"][method]),
                _number(metrics["r2_median"][method]),
                span,
                _number(metrics["mse"][method], ".4g"),
                METHODS.get(method, ""),
            ]
        )
    table = _table(
        [
            *("", "R2", "R2, standardised", "R2, median of outputs"),
            *(f"R2, {folds} test fold{'s' * (folds > 1)}", "mean squared error", ""),
        ],
        rows,
        numbers=(1, 2, 3, 4, 5),
        strong=[row[0] == "gsnn" for row in rows],
    )
    return (
        "<p>On test folds, pooled over samples and outputs. R2 is 1 for perfect predictions, 0 for the mean "
        "of the training samples. Standardised: each output in units of its standard deviation, so that none "
        f"rules the sum.</p>{table}"
    )


def _by_output(by_output: Mapping[str, Mapping[str, float]]) -> str:
    ordered = sorted(by_output.items(), key=lambda item: -_order(item[1]["gsnn"]))
    methods = [m for m in next(iter(by_output.values())) if m != "mean"]
    methods.sort(key=lambda m: m != "gsnn")
    rows = []
    for name, values in ordered[:_MOST_OUTPUTS]:
        share = min(max(_order(values["gsnn"]), 0.0), 1.0)
        bar = f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
        rows.append([escape(name), bar, *(_number(values[m]) for m in methods)])
    table = _table(
        ["output", "", *(f"R2, {m}" for m in methods)], rows, numbers=range(2, 2 + len(methods)), raw=True
    )
    more = len(ordered) - len(rows)
    rest = f" The {more:,} others are in <code>metrics.json</code>." if more > 0 else ""
    return f'<p>Best output first.{rest}</p><div class="scroll">{table}</div>'


def _section(section: Section, pictures: dict[str, str]) -> str:
    """Takes the section's pictures out of ``pictures``."""
    parts = [f"<h2>{escape(section.title)}</h2>", *(f"<p>{escape(said)}</p>" for said in section.text)]
    if section.note:
        parts.append(f'<p class="note">{escape(section.note)}</p>')
    if section.head:
        table = _table(section.head, section.rows, numbers=section.numbers)
        parts.append(f'<div class="scroll">{table}</div>')
    return "".join(parts + [pictures.pop(name, "") for name in section.pictures])


def _edges(edges: pd.DataFrame, known: set[tuple[str, ...]]) -> str:
    head = ["", "source", "target", "gain", "95% interval", "q", "verified", "folds", "alternatives"]
    rows = []
    for row in edges.to_dict("records"):
        low, high, q = (row[name] for name in ("gain_low", "gain_high", "q_value"))
        tested = row["verified"] if isinstance(row["verified"], bool) else None
        cells = [str(row["order"]), str(row["src_func"]), str(row["dst_func"]), _number(row["gain"])]
        cells.append(f"{low:.3f} to {high:.3f}" if tested is not None else "–")
        cells += [_number(q, ".1e"), {True: "✓", False: "", None: "–"}[tested], f"{row['share']:.0%}"]
        cells.append(str(row["alternatives"]))
        rows.append(cells + [_true(row["src_func"], row["dst_func"], known)] * bool(known))
    return _table(
        head + ["known to be true"] * bool(known),
        rows,
        numbers=(0, 3, 4, 5, 7),
        strong=[row[6] == "✓" for row in rows],
    )


def _pairs_ranked(ranking: pd.DataFrame, known: set[tuple[str, ...]]) -> str:
    head = ["rank", "source", "target", "score"] + ["known to be true"] * bool(known)
    rows = []
    columns = (ranking[name].tolist() for name in ("rank", "source", "target", "score"))
    for rank, source, target, score in zip(*columns, strict=True):
        cells = [str(rank), str(source), str(target), _number(score)]
        rows.append(cells + [_true(source, target, known)] * bool(known))
    return _table(head, rows, numbers=(0, 3))


def _true(source: str, target: str, known: set[tuple[str, ...]]) -> str:
    return "✓" if (source, target) in known else ""


def _pairs(values: Mapping[str, Any]) -> str:
    shown = {True: "yes", False: "no", None: "–"}
    rows = [[key, shown[v] if v is None or isinstance(v, bool) else str(v)] for key, v in values.items()]
    return _table(["", ""], rows)


def _figure(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    caption = escape(CAPTIONS.get(name, name.replace("_", " ")))
    alt = escape(name.replace("_", " "), quote=True)
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    strong: Sequence[bool] = (),
    raw: bool = False,
) -> str:
    """A table in a frame that scrolls sideways on a phone.

    Cells are escaped unless ``raw``; columns in ``numbers`` are set right, rows where ``strong`` bold.
    """
    right = set(numbers)

    def kind(k: int, cell: str) -> str:
        if k in right:
            return " class=n"
        return " class=long" if len(cell) > _LONG and not raw else ""

    def line(cells: Sequence[str], tag: str, own: bool = False) -> str:
        inner = "".join(
            f"<{tag}{kind(k, cell)}>{cell if raw else escape(cell)}</{tag}>" for k, cell in enumerate(cells)
        )
        return f"<tr{' class=own' if own else ''}>{inner}</tr>"

    body = "".join(line(row, "td", bool(strong) and strong[k]) for k, row in enumerate(rows))
    top = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def _order(value: float | None) -> float:
    return -math.inf if value is None or not math.isfinite(value) else value
