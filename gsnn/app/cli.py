"""The commands; ``gsnn run`` and ``gsnn demo`` are here.

Only what typer needs is imported here; the commands import the rest, so that ``gsnn --help`` is quick.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import gsnn
from gsnn.app import build_command, completion_commands, model_commands
from gsnn.app.config import Command, ConfigFile
from gsnn.app.options import from_command_line
from gsnn.app.user_errors import user_errors

if TYPE_CHECKING:
    from gsnn.app.completion import Completed
    from gsnn.app.workflow import Result

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print metrics.json as one line instead of a summary.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gsnn {gsnn.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Graph Structured Neural Networks: train on a graph and two tables, and complete the graph."""
    # numpy reads this when it is first imported. The MLP of the comparison is small: with several BLAS
    # threads it gains nothing, and beside other processes their waiting makes it ten times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@app.command(cls=Command)
@from_command_line
def run(
    edges: Annotated[Path, typer.Option(help="Edge table: source, target[, sign][, etype]; tab-separated.")],
    x: Annotated[Path, typer.Option(help="Inputs: samples x input nodes, complete.")],
    y: Annotated[Path, typer.Option(help="Outputs: samples x output nodes; empty cells were not measured.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; must be empty or new.")],
    nodes: Annotated[
        Path | None, typer.Option(help="Table node, type; needed only to fix the order of the nodes.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="Table sample, group: samples of one group are never split between folds."),
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Which column of --groups, where it has several.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Column of --edges with the sources.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of --edges with the targets.")] = None,
    sign: Annotated[str | None, typer.Option(help="Column of --edges with the signs.")] = None,
    *,
    options: dict[str, Any],
    force: Annotated[
        bool, typer.Option("--force", help="Replace results in a folder that is not empty.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget an interrupted run in --out instead of going on with it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no summary.")] = False,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Train, compare with simple models by cross-validation, add the edges that would repair the prediction, and verify them.

    Columns of X and Y are matched with the graph's nodes by name. Writes report.html, metrics.json, edges.csv,
    graph_completed.tsv, model_completed.safetensors, model.safetensors, predictions.csv, intervals.csv,
    ranking.csv and figures/ to the folder --out. After an interruption the same command goes on from the last checkpoint.

    Example: gsnn run --edges demo_out/data/edges.tsv --x demo_out/data/X.tsv --y demo_out/data/Y.tsv --out results
    Example: gsnn run --config results/config.toml --seed 1 --out again
    """  # noqa: E501 - its first line stands in the list of commands
    with user_errors(out):
        from gsnn.app import workflow
        from gsnn.app.run_folder import FinishedError
        from gsnn.data.tables import load_data

        going_on = workflow.check_out(out, force, fresh) / ".checkpoint"
        if going_on.exists() and not (fresh or quiet):
            typer.echo(f"going on with the interrupted run in {out}", err=True)
        chosen = workflow.Options(**options)
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
        told = None if quiet or as_json else _comparison
        try:
            result = workflow.run(data, out, chosen, force=force, fresh=fresh, verbose=not quiet, told=told)
        except FinishedError as done:
            typer.echo(str(done), err=True)
            if as_json:
                _print_metrics(out)
            return
    if as_json:
        _print_metrics(out)
    elif not quiet:
        _summary(result, out, chosen.top)


@app.command(cls=Command)
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the results; an earlier demo there is replaced.")
    ] = Path("demo_out"),
    seed: Annotated[int, typer.Option(help="Fixes the simulated data and the run.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """The same job on simulated data whose missing edges are known.

    Example: gsnn demo --out demo_out
    """
    with user_errors():
        from dataclasses import replace

        from gsnn.app import demo as simulated

        options = replace(simulated.DEMO_OPTIONS, seed=seed)
        found = simulated.demo(out, options, verbose=not quiet, told=None if as_json else _comparison)
    if as_json:
        _print_metrics(out, demo=found.counts())
        return
    _summary(found.result, out, 5)
    typer.echo(f"\n{found.said()}")


def _print_metrics(out: Path, **more: Any) -> None:
    """The numbers of a run as one line of JSON, which has null where a number is not known."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    typer.echo(json.dumps({"out": str(out), **more, **metrics}))


def _comparison(metrics: dict[str, Any]) -> None:
    from gsnn.app.report import before_reading

    sizes = metrics["data"]
    typer.echo(
        f"{sizes['samples']} samples, {sizes['input_nodes']} inputs, {sizes['function_nodes']} function "
        f"nodes, {sizes['output_nodes']} outputs; {len(metrics['r2_by_fold']['gsnn'])} test fold(s)"
    )
    typer.echo("\n  model   R2 on test folds   standardised   median of outputs   mean squared error")
    for method, value in metrics["r2"].items():
        typer.echo(
            f"  {method:<7} {value:>16.3f}   {metrics['r2_standardised'][method]:>12.3f}   "
            f"{metrics['r2_median'][method]:>17.3f}   {metrics['mse'][method]:>18.4g}"
        )
    for said in before_reading(metrics):
        typer.echo(f"\nNOTE: {said}")


def _summary(result: Result, out: Path, top: int) -> None:
    from gsnn.app.findings import CAUTION, headline, sufficiency, unreached, verified

    metrics = result.metrics
    typer.echo(f"\n{headline(metrics)}\n\n{sufficiency(metrics)}")
    if lost := unreached(metrics):
        typer.echo(lost)
    if result.completed is None:
        typer.echo(f"\n{verified(metrics)}")
        ranked = metrics["ranking"]
        lost = "; ".join(f"{n:,} {why}" for why, n in ranked["not_scored"].items())
        typer.echo(
            f"Pairs that the graph may lack, of {ranked['pairs']:,} (ranking.csv; {ranked['scored']:,} "
            f"scored{'; ' + lost if lost else ''}):"
        )
        for row in result.ranking[result.ranking["rank"].notna()].head(top).itertuples():
            typer.echo(f"  {row.rank:>3}  {row.source} -> {row.target}  score {row.score:.3f}")
        typer.echo(f"\n{ranked['caution']}")
    else:
        _added(result.completed, top)
        typer.echo(f"\n{CAUTION}")
    typer.echo(f"\nWrote {out}/ in {metrics['seconds']} s; begin with {out}/report.html")


def _added(completed: Completed, top: int) -> None:
    """The edges that were added, those that hold first."""
    from gsnn.app.completion import as_text

    edges = as_text(completed.edges)
    typer.echo(f"\nEdges that would repair the prediction, of {len(edges)} added (edges.csv):")
    verified = edges["verified"].fillna(False).astype(bool)
    for row in edges.loc[(~verified).sort_values(kind="stable").index].head(top).to_dict("records"):
        tested = f"gain {row['gain']:.3f}  q {row['q_value']:.1e}  " if row["gain"] == row["gain"] else ""
        mark = "verified" if tested and row["verified"] else ""
        rest = f"  or {row['alternatives']}" if row["alternatives"] else ""
        typer.echo(f"  {row['order']:>3}  {mark:<8}  {tested}{row['src_func']} -> {row['dst_func']}{rest}")


for command in (
    build_command.build,
    completion_commands.complete,
    completion_commands.verify,
    model_commands.predict,
    model_commands.explain,
    model_commands.check,
    model_commands.simulate,
):
    app.command(cls=Command)(command)

if __name__ == "__main__":
    app()
