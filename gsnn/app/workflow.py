"""The main job behind ``gsnn run`` and ``gsnn demo``: tables in; model, comparison and edges out.

A GSNN is judged by cross-validation beside three simple models on the same splits, then trained on all
samples; the magnitude edge inferer ranks the function -> function edges that the graph lacks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gsnn import plot
from gsnn.app.candidates import CAUTION, SCORE, n_pairs, rank_edges
from gsnn.app.compare import METHODS, Array, Split, make_splits, scores
from gsnn.app.report import describe, long_predictions, write
from gsnn.app.run_folder import RunFolder, name_of
from gsnn.app.settings import Options, new_model, settle
from gsnn.data.tables import Data
from gsnn.models.GSNN import GSNN
from gsnn.stats.baselines import baseline
from gsnn.train.history import History
from gsnn.train.loop import fit, predict
from gsnn.train.resume import describe_versions, graph_checksum, table_checksum, text_checksum

_SHARED_WORK = 2**19  # edges x channels x samples of a step from which a second thread pays


@dataclass(frozen=True)
class Result:
    """What a run found: ``metrics`` as in metrics.json, ``edges`` as in edges.csv, the final model."""

    metrics: dict[str, Any]
    edges: pd.DataFrame
    predictions: pd.DataFrame
    model: GSNN
    histories: list[History]


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
    ``edges.csv``, ``predictions.csv``, ``model.safetensors``, ``figures/*.png``.

    Until then ``out`` holds a folder ``.checkpoint`` with finished folds and the state of the fit that is
    running. After an interruption the same call goes on from there and gives the result that the
    uninterrupted run would have given, bit for bit on the same machine.

    Args:
        force: write into a folder that is not empty. Files of the same names are replaced, others stay.
        fresh: forget what an interrupted run has left in ``out``, and begin anew.
        held_out: missing edges that are known to be true, as in a simulation; figure and report show them.
        told: called with sizes and scores as soon as the cross-validation is over, before the final fit.

    Raises:
        FileExistsError: ``out`` is a file, or a folder that is not empty; as
            :class:`gsnn.app.run_folder.FinishedError` where this very run was stopped when all its files
            were written, so that they can be used as they are.
        ValueError: options that do not fit the data; an interrupted run with other settings, data or
            versions is in ``out``.
    """
    out = check_out(out, force, fresh)
    start = time.perf_counter()
    options = settle(data, options)
    out.mkdir(parents=True, exist_ok=True)
    unfinished = RunFolder(out)
    whole = name_of({**identity(data, options), "top": options.top, "held_out": list(map(list, held_out))})
    if not fresh:
        unfinished.check_unfinished(whole)
    splits = make_splits(data.y, data.groups, options.folds, options.seed)
    with unfinished.working(identity(data, options), fresh):
        with threads_for(data, options):
            yhat, fold, histories = cross_validate(
                data, options, splits, verbose=verbose, unfinished=unfinished
            )
            judged = scores(data.y, splits, yhat)
            if told is not None:
                told({**describe(data), **judged})
            model = new_model(data, options, options.seed)
            everything = np.arange(len(data.x))
            label = verbose and "all samples"
            state = unfinished.file("all")
            final = train_one(model, data, options, everything, None, options.seed, label, state)
            edges = rank_edges(model, data, verbose=verbose)
        metrics = {
            **describe(data),
            "settings": asdict(options),
            **judged,
            "edges": {
                "pairs": n_pairs(data.graph),
                "listed": len(edges),
                "scored": int(edges["rank"].notna().sum()),
                "not_scored": {why: int(n) for why, n in edges["reason"].value_counts().items() if why},
                "how": SCORE,
                "caution": CAUTION,
            },
            "run": whole,
            "seconds": round(time.perf_counter() - start, 1),
        }
        predictions = long_predictions(data, yhat, fold)
        top = list(
            edges.loc[edges["rank"].notna(), ["source", "target"]]
            .head(options.top)
            .itertuples(index=False, name=None)
        )
        write(
            out,
            metrics=metrics,
            edges=edges,
            predictions=predictions,
            model=model,
            figures={
                "learning_curve": lambda: plot.learning_curve(histories, val_label="test fold"),
                "predicted_vs_measured": lambda: plot.predicted_vs_measured(data.y, yhat["gsnn"]),
                "top_edges": lambda: plot.layered_graph(data.graph, inferred=top, held_out=held_out),
            },
            warnings=data.warnings,
            held_out=held_out,
        )
    return Result(metrics, edges, predictions, model, [*histories, final])


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
    *,
    verbose: bool,
    unfinished: RunFolder | None = None,
) -> tuple[dict[str, Array], np.ndarray, list[History]]:
    """Predictions (B, N_out) of each method for the rows it did not see, NaN where no fold tested a row.

    Also the fold (from 1) that tested each row, 0 for none, and the GSNN's histories. Their validation
    loss is that of the test rows: watched, never acted upon. Folds that are finished in ``unfinished`` are
    taken from there, and new ones are kept there.
    """
    y = data.y.to_numpy()
    yhat = {method: np.full(y.shape, np.nan) for method in METHODS}
    fold, histories = np.zeros(len(y), dtype=int), []
    for number, split in enumerate(splits, 1):
        name = f"fold{number}"
        found = None if unfinished is None else unfinished.read(name)
        if found is None:
            label = verbose and f"fold {number} of {len(splits)}"
            state = None if unfinished is None else unfinished.file(f"{name}-fit")
            found = _one_fold(data, options, split, options.seed + number, label, state)
            if unfinished is not None and state is not None:
                unfinished.keep(name, found)
                state.unlink()
        train_loss, val_loss, lr = (tuple(values) for values in found["history"].tolist())
        histories.append(History(train_loss, val_loss, lr, len(train_loss), False))
        fold[split[1]] = number
        for method in METHODS:
            yhat[method][split[1]] = found[method].numpy()
    return yhat, fold, histories


def _one_fold(
    data: Data, options: Options, split: Split, seed: int, label: bool | str, state: Path | None
) -> dict[str, torch.Tensor]:
    """Predictions of each method for the test rows, and the GSNN's losses and learning rates (3, epochs)."""
    train, test = split
    x, y = data.x.to_numpy(), data.y.to_numpy()
    model = new_model(data, options, seed)
    history = train_one(model, data, options, train, test, seed, label, state)
    found = {
        "mean": np.tile(np.nanmean(y[train], axis=0), (len(test), 1)),
        "gsnn": predict(model, x[test]),
        **{m: baseline(m, x[train], y[train], x[test], options.seed) for m in ("ridge", "mlp")},
        "history": np.array([history.train_loss, history.val_loss, history.lr]),
    }
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def train_one(
    model: GSNN,
    data: Data,
    options: Options,
    train: np.ndarray,
    watch: np.ndarray | None,
    seed: int,
    verbose: bool | str,
    state: Path | None = None,
) -> History:
    """Fit to the rows ``train``; the loss on the rows ``watch`` is recorded, never acted upon.

    ``state`` is the file that an interrupted fit goes on from, written every twentieth of the epochs.
    """
    assert options.epochs is not None
    x, y = data.x.to_numpy(), data.y.to_numpy()
    if watch is not None and np.isnan(y[watch]).all():
        watch = None
    return fit(
        model,
        x[train],
        y[train],
        validation=None if watch is None else (x[watch], y[watch]),
        restore_best=False,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        standardize=True,
        seed=seed,
        device=options.device,
        verbose=verbose,
        checkpoint_path=state,
        checkpoint_every=max(1, options.epochs // 20),
    )
