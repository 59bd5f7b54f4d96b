"""The commands that need no training: ``gsnn predict``, ``explain``, ``check`` and ``simulate``.

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

ModelFile = Annotated[Path, typer.Option(help="A model that gsnn run or gsnn.save wrote.")]
Inputs = Annotated[Path, typer.Option(help="Inputs: samples x input nodes, complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


def predict(
    model: ModelFile,
    x: Inputs,
    out: Annotated[Path, typer.Option(help="Table to write: samples x output nodes; .csv, else tabs.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default cpu.")] = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Predict new samples with a trained model, in the units of the Y that it was trained on.

    Columns are matched by name; rows come out in the order of X.

    Example: gsnn predict --model demo_out/model.safetensors --x demo_out/data/X.tsv --out predicted.csv
    """
    with user_errors():
        from gsnn.data.tables import read_table
        from gsnn.io.model import load
        from gsnn.io.tables import write_table
        from gsnn.train.loop import predict as predicted

        _check_file(out)
        network = load(model, device=device)
        yhat = predicted(network, read_table(x))
        write_table(yhat, out, digits=9, index="sample")
    said = {"samples": len(yhat), "outputs": len(yhat.columns), "out": str(out)}
    _say(said, f"{len(yhat)} samples, {len(yhat.columns)} outputs; wrote {out}", as_json)


def explain(
    model: ModelFile,
    x: Inputs,
    output: Annotated[str, typer.Option(help="Name of the output node to explain.")],
    out: Annotated[Path, typer.Option(help="Table to write, strongest first; .csv, else tabs.")],
    of: Annotated[str, typer.Option(help="inputs, nodes or edges.")] = "inputs",
    method: Annotated[
        str, typer.Option(help="integrated_gradients, occlusion or gradient.")
    ] = "integrated_gradients",
    per_sample: Annotated[
        bool, typer.Option("--per-sample", help="A row per sample instead of the average.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of the strongest scores on the graph, such as why.png.")
    ] = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Say which inputs, function nodes or edges a prediction is made of. Needs the extra 'explain'.

    Example: gsnn explain --model demo_out/model.safetensors --x demo_out/data/X.tsv --output o3 --of edges --out why.csv
    """  # noqa: E501 - an example is one line to copy
    with user_errors():
        from gsnn.data.tables import read_table
        from gsnn.explain.attribution import attribute
        from gsnn.io.model import load
        from gsnn.io.tables import write_table

        _check_file(out)
        if figure is not None:
            _check_file(figure)
            if per_sample:
                raise ValueError("--figure shows the average over samples: leave --per-sample out")
        network = load(model)
        options: dict[str, Any] = {"of": of, "method": method, "per_sample": per_sample}
        table = attribute(network, read_table(x), output, **options)
        flat = table
        if per_sample and of == "edges":
            flat = table.set_axis(["->".join(pair) for pair in table.columns], axis=1)
        write_table(flat, out, digits=9, index="sample" if per_sample else None)
        if figure is not None:
            import matplotlib

            matplotlib.use("Agg")
            from gsnn.io.container import replacing
            from gsnn.plot.graphs import explanation

            picture = explanation(network.graph, table).figure
            with replacing(figure) as tmp:
                picture.savefig(tmp, dpi=150, format=figure.suffix[1:] or "png")  # type: ignore[union-attr]
    completeness = table.attrs.get("completeness")
    said = {"output": output, "of": of, "method": method, "completeness": completeness, "out": str(out)}
    lines = [] if per_sample else [_row(row, of) for row in table.head(10).to_dict("records")]
    if completeness is not None:
        lines.append(f"the scores miss the difference of the predictions by {completeness['error']:.2%}")
    _say(said, "\n".join([*lines, f"wrote {out}"]), as_json)


def check(
    edges: Annotated[Path, typer.Option(help="Edge table: source, target[, sign][, etype].")],
    x: Inputs,
    y: Annotated[Path, typer.Option(help="Outputs: samples x output nodes; empty cells were not measured.")],
    nodes: Annotated[Path | None, typer.Option(help="Table node, type.")] = None,
    groups: Annotated[Path | None, typer.Option(help="Table sample, group.")] = None,
    group_column: Annotated[str | None, typer.Option(help="Which column of --groups.")] = None,
    source: Annotated[str | None, typer.Option(help="Column of --edges with the sources.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of --edges with the targets.")] = None,
    sign: Annotated[str | None, typer.Option(help="Column of --edges with the signs.")] = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Check tables as gsnn run would, without training: sizes, gaps, and what the checks have to say.

    Example: gsnn check --edges demo_out/data/edges.tsv --x demo_out/data/X.tsv --y demo_out/data/Y.tsv
    """
    with user_errors():
        from gsnn.app.settings import Options, reasons, settle
        from gsnn.data.tables import load_data
        from gsnn.graph.container import EDGE_TYPES

        data = load_data(
            edges,
            x,
            y,
            nodes=nodes,
            groups=groups,
            group_column=group_column,
            source=source,
            target=target,
            sign=sign,
        )
        settled, why = settle(data, Options(folds=0)), reasons(data, Options(folds=0))
        names, index = data.graph.node_names_dict, data.graph.edge_index_dict
        said: dict[str, Any] = {
            "samples": len(data.x),
            "distinct_inputs": len(data.x.drop_duplicates()),
            **{f"{kind}_nodes": len(names[kind]) for kind in ("input", "function", "output")},
            "edges": {f"{u}->{v}": index[u, to, v].shape[1] for u, to, v in EDGE_TYPES},
            "measured": float(data.y.notna().to_numpy().mean()),
            "groups": None if data.groups is None else int(data.groups.nunique()),
            "layers": settled.layers,
            "epochs": settled.epochs,
            "why": why,
            "warnings": list(data.warnings),
        }
    counts = ", ".join(f"{n} {kind}" for kind, n in said["edges"].items())
    text = (
        f"{said['samples']} samples ({said['distinct_inputs']} distinct inputs), "
        f"{said['input_nodes']} inputs, {said['function_nodes']} function nodes, "
        f"{said['output_nodes']} outputs\nedges: {counts}\n"
        f"{said['measured']:.1%} of Y measured; gsnn run would take\n"
        f"  {why['layers']}\n  {why['epochs']}\n{len(data.warnings) or 'no'} warning(s)"
    )
    _say(said, text, as_json)


def simulate(
    edges: Annotated[
        Path, typer.Option(help="Edge table with etype, or with --nodes; acyclic; sign optional.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for X.tsv and Y.tsv; must be empty or new.")],
    nodes: Annotated[Path | None, typer.Option(help="Table node, type.")] = None,
    samples: Annotated[int, typer.Option(help="How many samples.")] = 1000,
    noise: Annotated[float, typer.Option(help="Standard deviation added at each node.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Fixes the draws.")] = 0,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Draw X and Y of a signed acyclic graph: each node is the signed sum of its parents, plus noise.

    Example: gsnn simulate --edges demo_out/data/edges.tsv --nodes demo_out/data/nodes.tsv --out simulated
    """
    with user_errors(), ExitStack() as stack:
        import pandas as pd

        from gsnn.app.run_folder import alone
        from gsnn.graph.container import HeteroGraph
        from gsnn.io.tables import write_table
        from gsnn.simulate.simulate import simulate as drawn

        if samples < 1:
            raise ValueError(f"--samples must be a positive int, got {samples}")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} is not an empty folder; choose another")
        graph = HeteroGraph.from_tsv(edges, nodes)
        network = graph.to_networkx()
        signs = {(u, v): float(data.get("weight", 1.0)) or 1.0 for u, v, data in network.edges(data=True)}
        names = graph.node_names_dict
        x, _, y, _ = drawn(
            network,
            samples,
            0,
            list(names["input"]),
            list(names["output"]),
            noise_scale=noise,
            signed_edges=signs,
            seed=seed,
        )
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(out))
        rows = pd.Index([f"s{k:0{len(str(samples))}d}" for k in range(samples)])
        for values, kind, name in ((x, "input", "X.tsv"), (y, "output", "Y.tsv")):
            table = pd.DataFrame(values, rows, list(names[kind]))
            write_table(table, out / name, digits=9, index="sample")
    said = {"samples": samples, "inputs": x.shape[1], "outputs": y.shape[1], "out": str(out)}
    _say(said, f"{samples} samples, {x.shape[1]} inputs, {y.shape[1]} outputs; wrote {out}/", as_json)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")


def _row(row: dict[Any, Any], of: str) -> str:
    name = f"{row['source']} -> {row['target']}" if of == "edges" else row["name"]
    return f"{row['score']:>12.4g}  {name}"


def _say(values: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(values) if as_json else text)
