"""The main job behind ``gsnn run`` and ``gsnn demo``: tables in; model, comparison and edges out.

A GSNN is judged by cross-validation beside three simple models on the same splits. Another one is trained on
all samples at the same time, and with it the magnitude edge inferer ranks the function -> function edges that
the graph lacks. At the end the graph is completed: edges that would repair the prediction are added, judged
and verified.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsnn import plot
from gsnn.app.attributions import attributions_of
from gsnn.app.attributions import section_of as section_of_attributions
from gsnn.app.candidates import CAUTION, SCORE, n_pairs, rank_edges
from gsnn.app.compare import METHODS, Array, Split, make_splits, scores
from gsnn.app.completion import Completed, budget_of, nested
from gsnn.app.completion import completed as complete
from gsnn.app.intervals import intervals_of
from gsnn.app.intervals import section_of as section_of_intervals
from gsnn.app.report import describe, long_predictions, write
from gsnn.app.run_folder import RunFolder, name_of
from gsnn.app.settings import Options, reasons, settle
from gsnn.app.training import train_folds
from gsnn.data.tables import Data
from gsnn.graph.depth import unreached_outputs
from gsnn.models.GSNN import GSNN
from gsnn.stats.baselines import BASELINES, baseline
from gsnn.train.history import History
from gsnn.train.loop import predict
from gsnn.train.resume import describe_versions, graph_checksum, table_checksum, text_checksum

_SHARED_WORK = 2**19  # edges x channels x samples of a step from which a second thread pays


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        metrics: as in metrics.json.
        ranking: as in ranking.csv.
        predictions: as in predictions.csv.
        model: trained on the given graph with all samples.
        histories: of the folds and of ``model``.
        completed: the edges added, their verification, the completed graph and its model; None where the
            graph was not completed, for which ``metrics["completion"]["skipped"]`` has the reason.
    """

    metrics: dict[str, Any]
    ranking: pd.DataFrame
    predictions: pd.DataFrame
    model: GSNN
    histories: list[History]
    completed: Completed | None


def run(
    data: Data,
    out: str | os.PathLike[str],
    options: Options,
    *,
    force: bool = False,
    fresh: bool = False,
    verbose: bool = True,
    held_out: Sequence[tuple[str, str]] = (),
    told: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """The whole job; writes ``out`` at the end, file by file, each in one step.

    Files: ``metrics.json`` (last, so that its presence means that all are there), ``report.html``,
    ``ranking.csv``, ``predictions.csv``, ``model.safetensors``, ``figures/*.png``; with two folds or more
    ``intervals.csv``; where an output can be explained ``attributions.csv``; where edges are added also
    ``edges.csv``, ``graph_completed.tsv`` and ``model_completed.safetensors``.

    Until then ``out`` holds a folder ``.checkpoint`` with finished pieces and the state of the networks that
    are being trained. After an interruption the same call goes on from there and gives the result that the
    uninterrupted run would have given, bit for bit on the same machine.

    Args:
        force: write into a folder that is not empty. Files of a run are replaced, others stay.
        fresh: forget what an interrupted run has left in ``out``, and begin anew.
        held_out: missing edges that are known to be true, as in a simulation; figure and report show them.
        told: called with sizes and scores as soon as the networks are judged, before edges are ranked.

    Raises:
        FileExistsError: ``out`` is a file, or a folder that is not empty; as
            :class:`gsnn.app.run_folder.FinishedError` where this very run was stopped when all its files
            were written, so that they can be used as they are.
        ValueError: options that do not fit the data; an interrupted run with other settings, data or
            versions is in ``out``.
    """
    out = check_out(out, force, fresh)
    start = time.perf_counter()
    why, options = reasons(data, options), settle(data, options)
    out.mkdir(parents=True, exist_ok=True)
    unfinished = RunFolder(out)
    made_of = identity(data, options)
    whole = name_of({**made_of, "top": options.top, "held_out": list(map(list, held_out))})
    if not fresh:
        unfinished.check_unfinished(whole)
    splits = make_splits(data.y, data.groups, options.folds, options.seed)
    with unfinished.working(made_of, fresh):
        with threads_for(data, options):
            state = unfinished.file("networks")
            models, histories, chosen = train_folds(data, options, splits, verbose=verbose, state=state)
            (*tested, model) = models
            yhat, fold = cross_validate(data, options, splits, tested, unfinished=unfinished)
            judged = scores(data.y, splits, yhat)
            if told is not None:
                told({**describe(data), **judged})
            of_folds = [len(history.train_loss) for history in histories[:-1]]
            settled = replace(options, epochs=len(histories[-1].train_loss))
            if chosen:
                why["epochs"] = f"{chosen}; in the folds, by their own, {', '.join(map(str, of_folds))}"
            ranking = rank_edges(model, data, verbose=verbose)
            explained = attributions_of(model, data, judged["r2_by_output"])
            budget, skipped = budget_of(data, options)
            completed = None
            if budget:
                worth = nested(
                    data,
                    options,
                    splits,
                    budget,
                    {name: yhat[name] for name in BASELINES},
                    epochs=of_folds,
                    verbose=verbose,
                    unfinished=unfinished,
                )
                yhat["random"], yhat["completed"] = worth.controls[budget][0], worth.predictions[budget]
                judged = scores(data.y, splits, yhat)
                completed = complete(
                    data, options, settled, budget, worth, verbose=verbose, unfinished=unfinished
                )
        intervals = intervals_of(data, yhat, fold)
        metrics = {
            **describe(data),
            "settings": asdict(options),
            "why": why,
            **judged,
            "intervals": intervals.facts,
            "attributions": explained.facts,
            "unreached": unreached_outputs(data.graph, options.layers),
            "completion": {"skipped": skipped} if completed is None else completed.facts(),
            "ranking": {
                "pairs": n_pairs(data.graph),
                "listed": len(ranking),
                "scored": int(ranking["rank"].notna().sum()),
                "not_scored": {said: int(n) for said, n in ranking["reason"].value_counts().items() if said},
                "how": SCORE,
                "caution": CAUTION,
            },
            "run": whole,
            "seconds": round(time.perf_counter() - start, 1),
        }
        predictions = long_predictions(data, yhat, fold)
        write(
            out,
            metrics=metrics,
            ranking=ranking,
            predictions=predictions,
            model=model,
            completed=completed,
            figures={
                **figures_of(data, yhat, ranking, completed, histories[:-1], options.top, held_out),
                **explained.figures,
            },
            warnings=data.warnings,
            held_out=held_out,
            tables={"intervals.csv": intervals.table, "attributions.csv": explained.table},
            sections=[section_of_intervals(intervals.facts), section_of_attributions(explained)],
        )
    return Result(metrics, ranking, predictions, model, histories, completed)


def figures_of(
    data: Data,
    yhat: dict[str, Array],
    ranking: pd.DataFrame,
    completed: Completed | None,
    histories: Sequence[History],
    top: int,
    held_out: Sequence[tuple[str, str]],
) -> dict[str, Callable[[], Any]]:
    """Name -> what draws the figure. The graph shows the edges that were added, or else the best ranked."""
    figures: dict[str, Callable[[], Any]] = {
        "learning_curve": lambda: plot.learning_curve(histories, val_label="test fold"),
        "predicted_vs_measured": lambda: plot.predicted_vs_measured(data.y, yhat["gsnn"]),
    }
    if completed is None:
        best = ranking.loc[ranking["rank"].notna(), ["source", "target"]].head(top)
        edges = list(best.itertuples(index=False, name=None))
        figures["top_edges"] = lambda: plot.layered_graph(data.graph, inferred=edges, held_out=held_out)
        return figures
    added = list(completed.edges[["src_func", "dst_func"]].itertuples(index=False, name=None))
    figures["r2_by_edges"] = lambda: plot.r2_by_edges(completed.nested.table)
    figures["added_edges"] = lambda: plot.layered_graph(data.graph, inferred=added, held_out=held_out)
    return figures


@contextmanager
def threads_for(data: Data, options: Options) -> Iterator[None]:
    """One thread for a network whose steps are too short to share, PyTorch's number for others.

    Two threads gain nothing on a step of a millisecond, and where other processes want the processor,
    waiting for each other makes them hundreds of times slower.
    """
    before = torch.get_num_threads()
    edges = sum(index.shape[1] for index in data.graph.edge_index_dict.values())
    if edges * options.channels * options.batch_size < _SHARED_WORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def identity(data: Data, options: Options) -> dict[str, Any]:
    """What the result of a run depends on: all settings but ``top``, the data, the versions."""
    settings = asdict(options)
    del settings["top"]
    return {
        **describe_versions(),
        "scikit-learn": version("scikit-learn"),
        **settings,
        "graph": graph_checksum(data.graph),
        "x": table_checksum(data.x),
        "y": table_checksum(data.y),
        "order of samples": text_checksum(repr(list(data.order))),
        "groups": None if data.groups is None else table_checksum(data.groups.to_frame()),
    }


def check_out(out: str | os.PathLike[str], force: bool, fresh: bool = False) -> Path:
    """``out`` as a path that may be written to; see :func:`run`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out must be a folder, but {out} is a file")
    unfinished = RunFolder(out)
    going_on = unfinished.exists() and not fresh
    if out.is_dir() and not (force or going_on) and any(p != unfinished.path for p in out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder or use --force (force=True)")
    return out


def cross_validate(
    data: Data,
    options: Options,
    splits: Sequence[Split],
    models: Sequence[GSNN],
    *,
    unfinished: RunFolder | None = None,
) -> tuple[dict[str, Array], np.ndarray]:
    """Predictions (B, N_out) of each method for the rows it did not see, NaN where no fold tested a row.

    Also the fold (from 1) that tested each row, 0 for none. ``models`` are the folds' networks, trained.
    Folds that are finished in ``unfinished`` are taken from there, and new ones are kept there.
    """
    y = data.y.to_numpy()
    yhat = {method: np.full(y.shape, np.nan) for method in METHODS}
    fold = np.zeros(len(y), dtype=int)
    for number, (split, model) in enumerate(zip(splits, models, strict=True), 1):
        name = f"fold{number}"
        found = None if unfinished is None else unfinished.read(name)
        if found is None:
            found = _one_fold(data, options, split, model)
            if unfinished is not None:
                unfinished.keep(name, found)
        fold[split[1]] = number
        for method in METHODS:
            yhat[method][split[1]] = found[method].numpy()
    return yhat, fold


def _one_fold(data: Data, options: Options, split: Split, model: GSNN) -> dict[str, torch.Tensor]:
    """Predictions of each method for the test rows."""
    train, test = split
    x, y = data.x.to_numpy(), data.y.to_numpy()
    found: dict[str, np.ndarray] = {
        "mean": np.tile(np.nanmean(y[train], axis=0), (len(test), 1)),
        "gsnn": predict(model, x[test]),
        **{m: baseline(m, x[train], y[train], x[test], options.seed) for m in BASELINES},
    }
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
