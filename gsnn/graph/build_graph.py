"""A graph from a table of interactions, such as OmniPath's, and lists of what is perturbed and measured."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypeAlias, overload

import pandas as pd
import torch

from gsnn._checks import finite, one_of, whole
from gsnn._text import did_you_mean, some_names
from gsnn.graph.container import GraphWarning, HeteroGraph
from gsnn.graph.database import Edge, Row, read_interactions, read_partners, settle_signs
from gsnn.graph.types import EDGE_TYPES

Table: TypeAlias = pd.DataFrame | str | PathLike[str]
Partners: TypeAlias = Mapping[str, Any] | Iterable[str] | Table

_NO_NODE = "no node of the interactions"


@overload
def build(
    interactions: Table,
    inputs: Partners,
    outputs: Partners,
    *,
    source: str | None = None,
    target: str | None = None,
    sign: str | None = None,
    confidence: str | None = None,
    min_confidence: float | None = None,
    max_hops: int | None = None,
    complexes: Literal["split", "keep"] = "split",
    keep_inputs: bool = False,
    keep_outputs: bool = False,
    return_report: Literal[False] = False,
    warn: bool = True,
) -> HeteroGraph: ...


@overload
def build(
    interactions: Table,
    inputs: Partners,
    outputs: Partners,
    *,
    source: str | None = None,
    target: str | None = None,
    sign: str | None = None,
    confidence: str | None = None,
    min_confidence: float | None = None,
    max_hops: int | None = None,
    complexes: Literal["split", "keep"] = "split",
    keep_inputs: bool = False,
    keep_outputs: bool = False,
    return_report: Literal[True],
    warn: bool = True,
) -> tuple[HeteroGraph, pd.DataFrame]: ...


def build(
    interactions: Table,
    inputs: Partners,
    outputs: Partners,
    *,
    source: str | None = None,
    target: str | None = None,
    sign: str | None = None,
    confidence: str | None = None,
    min_confidence: float | None = None,
    max_hops: int | None = None,
    complexes: Literal["split", "keep"] = "split",
    keep_inputs: bool = False,
    keep_outputs: bool = False,
    return_report: bool = False,
    warn: bool = True,
) -> HeteroGraph | tuple[HeteroGraph, pd.DataFrame]:
    """Build the graph between what is perturbed and what is measured from a database of interactions.

    The names in the interactions are the function nodes. Those are kept that lie on a path from an input to
    an output of at most ``max_hops`` edges, the input's and the output's included, so that drug -> target ->
    gene has two; a path may pass a node twice, as signals in a feedback loop do. All interactions between
    kept nodes are kept. Nodes and edges come out sorted by name, whatever the order of the rows; inputs and
    outputs stand as given.

    Args:
        interactions: a DataFrame, or the path of a delimited file or a SIF file (``.sif``). The columns of
            OmniPath, SIGNOR, CollecTRI, CORNETO and CARNIVAL are found by their names.
        inputs: what is perturbed, and the function nodes that it acts on: ``{drug: [targets]}``, with signs
            ``{drug: {target: -1}}``; a table of drug, target and optionally a sign; or names alone, of
            ligands say, each of which feeds the function node of its own name.
        outputs: what is measured, and the function nodes that it follows: ``{gene: [regulators]}``, with
            signs ``{gene: {regulator: 1}}``; a table of gene, regulator and optionally a sign; or names
            alone, each of which is fed by the function node of its own name.
        source: column of ``interactions`` with the sources. By default ``source_genesymbol``, ``source``,
            ``from``, ``ENTITYA`` or ``tf``.
        target: column with the targets, found likewise.
        sign: column with signs: 1, -1, 0, words such as activation, inhibition, +, -, SIGNOR's
            ``up-regulates activity``, or TRUE and FALSE. By default a pair such as ``is_stimulation`` and
            ``is_inhibition`` (OmniPath's consensus first), else ``sign``, ``EFFECT``, ``interaction``,
            ``mor`` or a ``weight`` of nothing but 1, -1 and 0; none means a graph without weights, unless
            inputs or outputs have signs.
        confidence: column that says how well an interaction is known. By default ``confidence``,
            ``curation_effort``, ``n_references``, ``n_resources`` or SIGNOR's ``SCORE``.
        min_confidence: rows below are dropped, and those without a confidence.
        max_hops: longest path, in edges; None: any length.
        complexes: ``'split'`` gives each member of a complex (``COMPLEX:...`` in OmniPath) the interactions
            of the complex, ``'keep'`` makes the complex a node.
        keep_inputs: keep inputs that are on no such path as nodes without edges, so that every column of X
            has a node.
        keep_outputs: keep such outputs, so that every column of Y has a node.
        return_report: also return the report.
        warn: whether to warn (:class:`gsnn.graph.GraphWarning`) of inputs and outputs that are on no path,
            and of words in the column of signs that are not understood.

    Returns:
        The graph. Its weights are the signs, 0 where not known. With ``return_report`` a pair: the graph and
        a DataFrame with a row for each row of the three tables, so that kept and dropped rows add up to all:
        ``table, row, source, target, sign, kept, reason``. ``row`` is the line of a file or the position in
        a DataFrame or dict. The reason says why a row was dropped: no name, not directed, self interaction,
        too little confidence, a repetition of an earlier row, or not on a path. On a kept row it says how a
        disagreement of signs was decided: by the larger sum of confidences where all rows of the edge have
        one, else by the larger number of rows, and by 0 where both are equal. It is returned, not stored,
        because a graph that was built once stays as it is, whatever it was built from.

    Raises:
        FileNotFoundError: a path without a file.
        TypeError, ValueError: a column is missing, an argument is no table and no names, no path is left.
    """
    one_of("complexes", complexes, ("split", "keep"))
    if min_confidence is not None:
        finite("min_confidence", min_confidence)
    if max_hops is not None:
        max_hops = whole("max_hops", max_hops, 2)
    rows, signed = read_interactions(
        interactions,
        source=source,
        target=target,
        sign=sign,
        confidence=confidence,
        min_confidence=min_confidence,
        split=complexes == "split",
        warn=warn,
    )
    into, input_names, signed_in = read_partners("inputs", inputs, warn)
    out_of, output_names, signed_out = read_partners("outputs", outputs, warn)
    between, feeding, measured = (settle_signs(part) for part in (rows, into, out_of))
    nodes = {name for edge in between for name in edge}
    near, far = _distances(between, feeding, measured, nodes)
    kept = {
        node
        for node in nodes
        if node in near and node in far and (max_hops is None or near[node] + far[node] <= max_hops)
    }
    for row in (*rows, *into, *out_of):
        _judge(row, nodes, kept, near, far, max_hops)
    everything = [*rows, *into, *out_of]
    if not kept:
        raise ValueError(_no_path(everything, max_hops))
    lost = {
        "input": _lost(input_names, into, "source"),
        "output": _lost(output_names, out_of, "target"),
    }
    keep = {"input": keep_inputs, "output": keep_outputs}
    if warn:
        _warn_of({kind: names for kind, names in lost.items() if not keep[kind]}, nodes)
    edges = [
        sorted(edge for edge in between if kept.issuperset(edge)),
        sorted(edge for edge in feeding if edge[1] in kept),
        sorted(edge for edge in measured if edge[0] in kept),
    ]
    names = {
        "function": sorted(kept),
        "input": [name for name in input_names if keep_inputs or name not in lost["input"]],
        "output": [name for name in output_names if keep_outputs or name not in lost["output"]],
    }
    signs = [between, feeding, measured] if signed or signed_in or signed_out else None
    graph = _assembled(names, edges, signs, warn)
    return (graph, _report(everything)) if return_report else graph


def _distances(
    between: Iterable[Edge], feeding: Iterable[Edge], measured: Iterable[Edge], nodes: set[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Fewest edges from an input to each function node, and from each to an output; unreached ones lack."""
    after: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for u, v in between:
        after.setdefault(u, []).append(v)
        before.setdefault(v, []).append(u)
    near = _breadth_first({v for _, v in feeding} & nodes, after)
    return near, _breadth_first({u for u, _ in measured} & nodes, before)


def _breadth_first(starts: set[str], following: Mapping[str, Sequence[str]]) -> dict[str, int]:
    found: dict[str, int] = {}
    wave, hops = starts, 1
    while wave:
        found.update(dict.fromkeys(wave, hops))
        wave, hops = {v for u in wave for v in following.get(u, ()) if v not in found}, hops + 1
    return found


# Which ends of an edge are function nodes, and what they are to the row.
_ENDS = {
    "interactions": ((0, "source"), (1, "target")),
    "inputs": ((1, "target"),),
    "outputs": ((0, "regulator"),),
}


def _judge(
    row: Row,
    nodes: set[str],
    kept: set[str],
    near: Mapping[str, int],
    far: Mapping[str, int],
    max_hops: int | None,
) -> None:
    """Settle whether the graph has an edge of this row, and if not, why."""
    if not row.owned:
        return
    ends = _ENDS[row.table]
    row.kept = any(all(edge[end] in kept for end, _ in ends) for edge in row.owned)
    if row.kept:
        return
    (first, what_first), (last, what_last) = ((row.owned[0][end], what) for end, what in (ends[0], ends[-1]))
    if first not in nodes:
        row.reason = f"the {what_first} is {_NO_NODE}"
    elif first not in near:
        row.reason = f"no input reaches the {what_first}"
    elif last not in far:
        row.reason = f"the {what_last} reaches no output"
    else:
        row.reason = f"only on paths of more than {max_hops} edges"


def _lost(names: Sequence[str], rows: Iterable[Row], side: str) -> dict[str, Row]:
    """The inputs or outputs that are on no path, each with its first row."""
    found = {getattr(row, side) for row in rows if row.kept}
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(getattr(row, side), row)
    return {name: first[name] for name in names if name not in found}


def _warn_of(lost: Mapping[str, Mapping[str, Row]], nodes: set[str]) -> None:
    for kind, names in lost.items():
        if not names:
            continue
        partners = {name: row.target if kind == "input" else row.source for name, row in names.items()}
        said = (
            f"{name!r} ({row.reason}{f': {partners[name]!r}' if partners[name] else ''})"
            for name, row in names.items()
        )
        strange = [partners[name] for name, row in names.items() if row.reason.endswith(_NO_NODE)]
        warnings.warn(
            f"{len(names)} {kind}(s) are on no path and were left out: {some_names(said, str)}"
            f"{did_you_mean(strange, nodes)}",
            GraphWarning,
            stacklevel=3,
        )


def _no_path(rows: Iterable[Row], max_hops: int | None) -> str:
    limit = "" if max_hops is None else f" of at most {max_hops} edges"
    reasons = Counter(f"{row.table}: {row.reason}" for row in rows if row.reason)
    common = [f"{reason} ({count} rows)" for reason, count in reasons.most_common()]
    return f"there is no path{limit} from an input to an output; {some_names(common, str)}"


def _assembled(
    names: Mapping[str, list[str]],
    edges: Sequence[Sequence[Edge]],
    signs: Sequence[Mapping[Edge, int]] | None,
    warn: bool,
) -> HeteroGraph:
    place = {kind: {name: k for k, name in enumerate(found)} for kind, found in names.items()}
    index = {
        etype: torch.tensor(
            [[place[etype[0]][u] for u, _ in pairs], [place[etype[2]][v] for _, v in pairs]],
            dtype=torch.int64,
        )
        for etype, pairs in zip(EDGE_TYPES, edges, strict=True)
    }
    weight = None
    if signs is not None:
        weight = {
            etype: torch.tensor([float(known[edge]) for edge in pairs])
            for etype, pairs, known in zip(EDGE_TYPES, edges, signs, strict=True)
        }
    return HeteroGraph(index, names, weight, warn=warn)


def _report(rows: Iterable[Row]) -> pd.DataFrame:
    columns = ("table", "row", "source", "target", "sign", "kept", "reason")
    cells = [(r.table, r.number, r.source, r.target, r.sign, r.kept, r.reason) for r in rows]
    return pd.DataFrame(cells, columns=list(columns))
