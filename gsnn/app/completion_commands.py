"""The commands ``gsnn complete`` and ``gsnn verify``.

As in :mod:`gsnn.app.cli`, only what typer needs is imported here.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from gsnn.app.config import ConfigFile
from gsnn.app.user_errors import user_errors

Edges = Annotated[Path, typer.Option(help="Edge table of the graph: source, target[, sign][, etype].")]
Inputs = Annotated[Path, typer.Option(help="Inputs: samples x input nodes, complete.")]
Outputs = Annotated[
    Path, typer.Option(help="Outputs: samples x output nodes; empty cells were not measured.")
]
Nodes = Annotated[Path | None, typer.Option(help="Table node, type.")]
Source = Annotated[str | None, typer.Option(help="Column of --edges with the sources.")]
Target = Annotated[str | None, typer.Option(help="Column of --edges with the targets.")]
Sign = Annotated[str | None, typer.Option(help="Column of --edges with the signs.")]
Seed = Annotated[int, typer.Option(help="Fixes weights, batches and what is put aside.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


def complete(
    edges: Edges,
    x: Inputs,
    y: Outputs,
    out: Annotated[Path, typer.Option(help="Folder for the results; must be empty or new.")],
    budget: Annotated[
        str,
        typer.Option(help="Edges to add, or auto: until the loss on a fifth of the samples stops falling."),
    ] = "auto",
    channels: Annotated[int, typer.Option(help="Channels per function node.")] = 8,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the final training; by default about 2,000 steps.")
    ] = None,
    stages: Annotated[int, typer.Option(help="In how many steps the budget is spent.")] = 8,
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="Table source, target[, weight]: pairs to choose from; also from inputs and to outputs."
        ),
    ] = None,
    nodes: Nodes = None,
    source: Source = None,
    target: Target = None,
    sign: Sign = None,
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Add the function -> function edges that the data ask for; writes edges.csv, graph_completed.tsv, model.safetensors.

    After an interruption the same command goes on from the last finished stage. The edges explain these samples;
    gsnn verify says which of them hold on others.

    Example: gsnn complete --edges demo_out/data/edges.tsv --x demo_out/data/X.tsv --y demo_out/data/Y.tsv --out completed --budget 16
    """  # noqa: E501 - an example is one line to copy
    with user_errors(out), ExitStack() as stack:
        from gsnn.app.run_folder import alone
        from gsnn.data.tables import load_data
        from gsnn.io.model import save
        from gsnn.io.tables import write_table
        from gsnn.optim.complete import complete as completed

        if budget != "auto" and not budget.isdigit():
            raise ValueError(f"--budget must be an int of at least 0 or auto, got {budget!r}")
        checkpoint = out / ".checkpoint"
        # With a checkpoint the files are those of this very run, stopped between the first and the last;
        # names with a dot are what a killed process was writing.
        full = out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir())
        if (out.exists() and not out.is_dir()) or (full and not checkpoint.exists()):
            raise FileExistsError(f"{out} is not empty; choose another folder")
        table = None if candidates is None else _pairs(candidates)
        data = load_data(edges, x, y, nodes=nodes, source=source, target=target, sign=sign)
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(out))
        found = completed(
            data.graph,
            data.x,
            data.y,
            budget if budget == "auto" else int(budget),
            stages=stages,
            candidates=table,
            priors=table if table is not None and "weight" in table.columns else None,
            seed=seed,
            settings={"channels": channels, "epochs": epochs},
            verbose=not quiet,
            checkpoint_path=checkpoint,
        )
        write_table(found.edges, out / "edges.csv")
        write_table(found.graph.to_edge_table(), out / "graph_completed.tsv")
        save(found.model, out / "model.safetensors")
        checkpoint.unlink(missing_ok=True)
    added = found.edges[["src_func", "dst_func"]].to_numpy().tolist()
    if as_json:
        path = {str(count): loss for count, loss in found.path.items() if loss == loss}
        typer.echo(json.dumps({"added": added, "validation_loss": path, "out": str(out)}))
        return
    for row in found.edges.itertuples():
        typer.echo(f"{row.order:>4}  {row.src_func} -> {row.dst_func}")
    typer.echo(f"{len(added)} edges added; wrote {out}/")


def verify(
    model: Annotated[
        Path, typer.Option(help="A model trained on the graph, with or without the candidates.")
    ],
    edges: Edges,
    candidates: Annotated[
        Path, typer.Option(help="Table of the edges to test, such as edges.csv of gsnn complete.")
    ],
    x: Inputs,
    y: Outputs,
    out: Annotated[Path, typer.Option(help="Table to write: a row per candidate; .csv, else tabs.")],
    margin: Annotated[float, typer.Option(help="Share of the loss that an edge must take away.")] = 0.005,
    alpha: Annotated[float, typer.Option(help="Largest q-value of a verified edge.")] = 0.05,
    folds: Annotated[int, typer.Option(help="Parts of the samples, each judged by the others.")] = 2,
    nodes: Nodes = None,
    source: Source = None,
    target: Target = None,
    sign: Sign = None,
    seed: Seed = 0,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Test candidate edges on samples that had no part in choosing them or in training the model.

    Example: gsnn verify --model completed/model.safetensors --edges demo_out/data/edges.tsv --candidates completed/edges.csv --x new_X.tsv --y new_Y.tsv --out verified.csv
    """  # noqa: E501 - an example is one line to copy
    with user_errors():
        from gsnn.data.tables import load_data
        from gsnn.io.model import load
        from gsnn.io.tables import write_table
        from gsnn.optim.verify import verify as verified

        if not out.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} to")
        data = load_data(edges, x, y, nodes=nodes, source=source, target=target, sign=sign)
        pairs = _pairs(candidates)
        table = verified(
            load(model), data.graph, pairs, data.x, data.y, margin=margin, alpha=alpha, folds=folds, seed=seed
        )
        flat = table.assign(
            alternatives=["; ".join(f"{s} -> {t}" for s, t in others) for others in table["alternatives"]]
        )
        write_table(flat, out)
    if as_json:
        typer.echo(
            json.dumps({"tested": len(table), "verified": int(table["verified"].sum()), "out": str(out)})
        )
        return
    for row in flat.to_dict("records"):
        mark = "verified" if row["verified"] else "-"
        rest = f"  or {row['alternatives']}" if row["alternatives"] else ""
        edge = f"{row['src_func']} -> {row['dst_func']}"
        typer.echo(f"{mark:>8}  gain {row['gain']:.3f}  q {row['q_value']:.3g}  {edge}{rest}")
    typer.echo(f"{int(table['verified'].sum())} of {len(table)} verified; wrote {out}")


def _pairs(path: Path) -> Any:
    """A table of candidates, its names as they are written (a gene may be called NA), weights as numbers."""
    import pandas as pd

    from gsnn.graph.interactions import read_table

    table, found = read_table(path)
    if "weight" in table.columns:
        weight = pd.to_numeric(table["weight"], errors="coerce")
        if weight.isna().any():
            at = int(weight.isna().argmax())
            raise ValueError(
                f"{path} must have a number in each cell of the column weight, got {table['weight'][at]!r} "
                f"in line {found.lines[at]}"
            )
        table["weight"] = weight
    return table
