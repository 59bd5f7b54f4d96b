"""The command ``gsnn build``.

As in :mod:`gsnn.app.cli`, only what typer needs is imported here.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from gsnn.app.config import ConfigFile
from gsnn.app.user_errors import user_errors


def build(
    interactions: Annotated[
        Path, typer.Option(help="Interactions of OmniPath, SIGNOR, CollecTRI, CORNETO, ...; or a .sif file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for edges.tsv, nodes.tsv, report.tsv; empty or new.")],
    inputs: Annotated[
        Path | None, typer.Option(help="Table of input, target[, sign], or names alone: what is perturbed.")
    ] = None,
    x: Annotated[
        Path | None,
        typer.Option(
            help="Its columns are the inputs; those that --inputs lacks act on the node of their own name."
        ),
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Table of output, regulator[, sign], or names alone.")
    ] = None,
    y: Annotated[
        Path | None,
        typer.Option(
            help="Its columns are the outputs; those that --outputs lacks follow the node of their own name."
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Column of --interactions with the sources.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of --interactions with the targets.")] = None,
    sign: Annotated[str | None, typer.Option(help="Column of --interactions with the signs.")] = None,
    confidence: Annotated[
        str | None, typer.Option(help="Column that says how well an interaction is known.")
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Interactions that are known less well are dropped.")
    ] = None,
    max_hops: Annotated[
        int | None, typer.Option(help="Longest path from an input to an output, both ends included.")
    ] = None,
    complexes: Annotated[
        str, typer.Option(help="split: members have a complex's interactions; keep: it is a node.")
    ] = "split",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    config: ConfigFile = None,
) -> None:
    """Make the graph for gsnn run from a database: the paths from what is perturbed to what is measured.

    report.tsv says of every row of the tables whether it was kept, and why not. Inputs and outputs that no
    path joins are left out, but for the columns of --x and --y, which stay as nodes without edges.

    Example: gsnn build --interactions omnipath.tsv --inputs targets.tsv --x X.tsv --y Y.tsv --max-hops 8 --out prior
    """  # noqa: E501 - an example is one line to copy
    with user_errors(), ExitStack() as stack:
        import pandas as pd

        from gsnn.app.run_folder import alone
        from gsnn.graph.build_graph import build as built
        from gsnn.graph.types import NODE_TYPES
        from gsnn.io.tables import write_table

        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} is not an empty folder; choose another")
        options: dict[str, Any] = {"complexes": complexes}
        graph, report = built(
            interactions,
            _partners("inputs", inputs, "x", x),
            _partners("outputs", outputs, "y", y),
            source=source,
            target=target,
            sign=sign,
            confidence=confidence,
            min_confidence=min_confidence,
            max_hops=max_hops,
            keep_inputs=x is not None,
            keep_outputs=y is not None,
            return_report=True,
            **options,
        )
        names = graph.node_names_dict
        edges = graph.to_edge_table().rename(columns={"weight": "sign"})
        if "sign" in edges:
            edges["sign"] = edges["sign"].astype(int)
        kinds = sorted(NODE_TYPES, key=("input", "function", "output").index)
        nodes = pd.DataFrame(
            [(name, kind) for kind in kinds for name in names[kind]], columns=["node", "type"]
        )
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(out))
        for table, name in ((report, "report.tsv"), (nodes, "nodes.tsv"), (edges, "edges.tsv")):
            write_table(table, out / name)
    counts = {f"{kind}_nodes": len(names[kind]) for kind in kinds}
    counts["edges"] = len(edges)
    dropped = _dropped(report)
    if as_json:
        typer.echo(json.dumps({**counts, "dropped": dropped, "out": str(out)}))
        return
    typer.echo(", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()))
    for table_name, rows in report.groupby("table", sort=False):
        typer.echo(f"{table_name}: {int(rows['kept'].sum())} of {len(rows)} rows kept")
        for reason, count in dropped.get(str(table_name), {}).items():
            typer.echo(f"  {count:>8}  {reason}")
    typer.echo(f"wrote {out}/; go on with gsnn run --edges {out}/edges.tsv --nodes {out}/nodes.tsv")


def _partners(which: str, table: Path | None, option: str, data: Path | None) -> Any:
    """The table, or the columns of the data with what the table says of them."""
    from gsnn._delimited import read_delimited
    from gsnn.graph.database import read_partners

    if data is None:
        if table is None:
            raise ValueError(f"--{which} or --{option} must say what the {which} are")
        return table
    names = read_delimited(data).header[1:]
    if table is None:
        return names
    rows, _, signed = read_partners(which, table)
    stated: dict[str, dict[str, int]] = {}
    for row in rows:
        name, partner = (row.source, row.target) if which == "inputs" else (row.target, row.source)
        if partner:
            stated.setdefault(name, {})[partner] = row.sign
    found = {name: stated.get(name, {name: 1}) for name in names}
    return found if signed else {name: list(partners) for name, partners in found.items()}


def _dropped(report: Any) -> dict[str, dict[str, int]]:
    """How many rows of each table were dropped for each reason, most first."""
    lost = report[~report["kept"]]
    found: dict[str, dict[str, int]] = {}
    for table, rows in lost.groupby("table", sort=False):
        reasons = rows["reason"].map(lambda reason: re.sub(r" row \d+$", " another row", reason))
        found[str(table)] = {str(reason): int(count) for reason, count in reasons.value_counts().items()}
    return found
