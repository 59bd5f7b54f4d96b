"""The main job behind ``gsnn run`` and ``gsnn demo``: tables in; model, comparison and edges out.

A GSNN is judged by cross-validation beside three simple models on the same splits, then trained on all
samples; the magnitude edge inferer ranks the function -> function edges that the graph lacks.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from gsnn import io, plot
from gsnn.arrays import scaling_of
from gsnn.compare import METHODS, Array, Split, baseline, make_splits, scores
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.report import describe, long_predictions, write
from gsnn.simulate.scenarios import Scenario, converging_tiers
from gsnn.tables import Data, load_data
from gsnn.train import History, fit, predict

SCORE = (
    "partial correlation, over samples, of the source's activation magnitude and the target's gradient "
    "magnitude one layer on, given the target's kept parents; largest over layer pairs"
)
CAUTION = (
    "Rank the edges by score; do not read p_value or q_value as the chance that an edge is real. They ask "
    "whether two magnitudes go together in this network. Nodes that share causes pass that test by the "
    "dozen, even when no edge is missing. Treat the top rows as candidates for an experiment."
)

_SHARED_WORK = 2**19  # edges x channels x samples of a step from which a second thread pays
_MOST_EDGES = 100_000  # rows of edges.csv; the pairs of 2,000 function nodes would be 4 million


@dataclass(frozen=True)
class Options:
    """Settings of a run. ``layers`` and ``epochs`` follow from graph and data where they are None."""

    folds: int = 5
    seed: int = 0
    channels: int = 8
    layers: int | None = None
    norm: str = "groupbatch"
    dropout: float = 0.2
    lr: float = 3e-3
    epochs: int | None = None
    weight_decay: float = 1e-2
    batch_size: int = 64
    top: int = 15
    device: str | None = None

    def __post_init__(self) -> None:
        if self.folds != 0 and self.folds < 2:
            raise ValueError(f"folds must be 0 (one split) or at least 2, got {self.folds}")
        for name in ("batch_size", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive int, got {getattr(self, name)}")


#: Gentler than the default: a network trained for long works around its missing edges. Chosen on seeds 0 and
#: 1 of the demo's scenario by the hidden edges found; on seeds 2 to 9 the first 16 pairs hold 8.8 of the 16
#: hidden edges (8 to 10), with the default settings 5.3 (3 to 7).
DEMO_OPTIONS = Options(dropout=0.1, lr=1e-3, epochs=50)


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
    verbose: bool = True,
    held_out: Sequence[tuple[str, str]] = (),
) -> Result:
    """The whole job; writes ``out`` at the end, file by file, each in one step.

    Files: ``metrics.json`` (last, so that its presence means that all are there), ``edges.csv``,
    ``predictions.csv``, ``model.safetensors``, ``figures/*.png``.

    Args:
        force: write into a folder that is not empty. Files of the same names are replaced, others stay.
        held_out: missing edges that are known to be true, as in a simulation; only the figure shows them.

    Raises:
        FileExistsError: ``out`` is a file, or a folder that is not empty.
        ValueError: options that do not fit the data.
    """
    out = check_out(out, force)
    start = time.perf_counter()
    options = settle(data, options)
    out.mkdir(parents=True, exist_ok=True)
    splits = make_splits(data.y, data.groups, options.folds, options.seed)
    with threads_for(data, options):
        yhat, fold, histories = cross_validate(data, options, splits, verbose=verbose)
        model = new_model(data, options, options.seed)
        everything = np.arange(len(data.x))
        final = train_one(model, data, options, everything, None, options.seed, verbose and "all samples")
        edges = rank_edges(model, data, verbose=verbose)
    metrics = {
        **describe(data),
        "settings": asdict(options),
        **scores(data.y, splits, yhat),
        "edges": {
            "pairs": n_pairs(data.graph),
            "listed": len(edges),
            "how": SCORE,
            "caution": CAUTION,
        },
        "seconds": round(time.perf_counter() - start, 1),
    }
    predictions = long_predictions(data, yhat, fold)
    top = list(edges[["source", "target"]].head(options.top).itertuples(index=False, name=None))
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


def check_out(out: str | os.PathLike[str], force: bool) -> Path:
    """``out`` as a path that may be written to; see :func:`run`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out must be a folder, but {out} is a file")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(f"{out} is not empty; choose another folder or use --force (force=True)")
    return out


def settle(data: Data, options: Options) -> Options:
    """``options`` with ``layers`` and ``epochs`` filled in and checked against the data."""
    n = len(data.x)
    if options.folds > n:
        raise ValueError(f"folds must be at most the number of samples, {n}, got {options.folds}")
    if data.groups is not None:
        n_groups, needed = data.groups.nunique(), max(options.folds, 2)
        if n_groups < needed:
            raise ValueError(f"groups must have at least {needed} labels to split by, got {n_groups}")
    if data.graph.edge_index_dict[EDGE_TYPES[0]].shape[1] == 0:
        raise ValueError("the graph must have at least one function -> function edge, got none")
    layers = default_layers(data.graph) if options.layers is None else options.layers
    if layers < 2:
        raise ValueError(f"layers must be at least 2, as edges are inferred between layers, got {layers}")
    epochs = default_epochs(n, options.batch_size) if options.epochs is None else options.epochs
    options = replace(options, layers=layers, epochs=epochs)
    try:
        new_model(data, options, options.seed).to(options.device)
    except RuntimeError as err:
        raise ValueError(f"device {options.device!r} cannot be used: {err}") from None
    return options


def default_layers(graph: HeteroGraph) -> int:
    """Function nodes on the longest of the shortest paths from an input to an output, within 4 to 12.

    Each layer carries a signal one hop, so that every connected pair can be heard.
    """
    names, index = graph.node_names_dict, graph.edge_index_dict
    n, n_in = len(names["function"]), len(names["input"])
    between, into, out_of = (index[etype].numpy() for etype in EDGE_TYPES)
    rows = np.concatenate([between[0], into[0] + n])
    columns = np.concatenate([between[1], into[1]])
    hops = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n + n_in, n + n_in)).tocsr()
    distance = dijkstra(hops, unweighted=True, indices=np.arange(n, n + n_in))[:, :n]
    to_output = np.full((n_in, len(names["output"])), np.inf)
    np.minimum.at(to_output.T, out_of[1], distance[:, out_of[0]].T)
    reached = to_output[np.isfinite(to_output)]
    return int(np.clip(reached.max(initial=0), 4, 12))


def default_epochs(n_samples: int, batch_size: int) -> int:
    """About 2,000 steps, in 30 to 400 epochs."""
    return int(np.clip(math.ceil(2000 / math.ceil(n_samples / batch_size)), 30, 400))


def cross_validate(
    data: Data, options: Options, splits: Sequence[Split], *, verbose: bool
) -> tuple[dict[str, Array], np.ndarray, list[History]]:
    """Predictions (B, N_out) of each method for the rows it did not see, NaN where no fold tested a row.

    Also the fold (from 1) that tested each row, 0 for none, and the GSNN's histories. Their validation
    loss is that of the test rows: watched, never acted upon.
    """
    x, y = data.x.to_numpy(), data.y.to_numpy()
    yhat = {method: np.full(y.shape, np.nan) for method in METHODS}
    fold, histories = np.zeros(len(x), dtype=int), []
    for number, (train, test) in enumerate(splits, 1):
        fold[test] = number
        yhat["mean"][test] = np.nanmean(y[train], axis=0)
        label = f"fold {number} of {len(splits)}"
        model = new_model(data, options, options.seed + number)
        history = train_one(model, data, options, train, test, options.seed + number, verbose and label)
        histories.append(history)
        yhat["gsnn"][test] = predict(model, x[test])
        for method in ("ridge", "mlp"):
            yhat[method][test] = baseline(method, x[train], y[train], x[test], options.seed)
    return yhat, fold, histories


def new_model(data: Data, options: Options, seed: int) -> GSNN:
    """An untrained GSNN on the graph of ``data``."""
    assert options.layers is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GSNN(
            data.graph.edge_index_dict,
            data.graph.node_names_dict,
            channels=options.channels,
            layers=options.layers,
            dropout=options.dropout,
            norm=options.norm,
            share_layers=False,
        )


def train_one(
    model: GSNN,
    data: Data,
    options: Options,
    train: np.ndarray,
    watch: np.ndarray | None,
    seed: int,
    verbose: bool | str,
) -> History:
    """Fit to the rows ``train``; the loss on the rows ``watch`` is recorded, never acted upon."""
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
    )


def rank_edges(model: GSNN, data: Data, *, verbose: bool) -> pd.DataFrame:
    """The function -> function pairs that are no kept edge, best candidate first."""
    scaling = scaling_of(model)
    assert scaling is not None
    param = next(model.parameters())
    x = scaling.scale_x(torch.as_tensor(data.x.to_numpy(copy=True))).to(param.dtype)
    y = scaling.scale_y(torch.as_tensor(data.y.to_numpy(copy=True))).to(param.dtype)
    batches = list(zip(x.split(256), y.split(256), strict=True))
    inferer = MagnitudeEdgeInferer(model, data.graph)
    inferer.fit(batches, verbose=verbose)
    n = inferer.N
    top_k = None if n * n <= 4 * _MOST_EDGES else max(1, 2 * _MOST_EDGES // n)
    table = inferer.evaluate(layer_agg="max", score="partial", top_k=top_k)
    table = table[~table["has_edge"]].head(_MOST_EDGES)
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(table) + 1),
            "source": table["src_func"].to_numpy(),
            "target": table["dst_func"].to_numpy(),
            "score": table["corr"].to_numpy(),
            "p_value": table["p_value"].to_numpy(),
            "q_value": table["q_value"].to_numpy(),
        }
    )


def n_pairs(graph: HeteroGraph) -> int:
    """Ordered pairs of two function nodes that are no edge of the graph."""
    n = len(graph.node_names_dict["function"])
    source, target = graph.edge_index_dict[EDGE_TYPES[0]]
    return n * (n - 1) - int((source != target).sum())


@dataclass(frozen=True)
class Demo:
    """A run on simulated data whose missing edges are known: how many of them the top rows hold."""

    result: Result
    held_out: int
    found: int
    looked_at: int
    chance: float


def demo(out: str | os.PathLike[str], options: Options | None = None, *, verbose: bool = True) -> Demo:
    """Simulate, hide a third of the true edges, write the tables to ``out/data`` and :func:`run` on them.

    The scenario is :func:`gsnn.simulate.scenarios.converging_tiers` of width 12: 24 function nodes, 16
    of 33 edges hidden, 1,000 samples. The figure of the top edges tells hidden edges from wrong guesses.
    An earlier result in ``out`` is replaced.

    Returns:
        A :class:`Demo`; ``looked_at`` rows of edges.csv, as many as there are hidden edges, hold ``found``
        of them, where a random order would hold ``chance`` on average.
    """
    options = DEMO_OPTIONS if options is None else options
    scenario = converging_tiers(12)
    folder = check_out(out, force=True)
    paths = write_tables(scenario, folder / "data", n=1000, seed=options.seed)
    held_out = list(scenario.held_out)
    options = replace(options, top=len(held_out))
    result = run(
        load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"]),
        folder,
        options,
        force=True,
        verbose=verbose,
        held_out=held_out,
    )
    top = result.edges.head(len(held_out))
    found = len(set(held_out) & set(zip(top["source"], top["target"], strict=True)))
    return Demo(result, len(held_out), found, len(top), len(held_out) * len(top) / len(result.edges))


def write_tables(scenario: Scenario, folder: Path, n: int, seed: int) -> dict[str, Path]:
    """edges.tsv, nodes.tsv, X.tsv and Y.tsv of a scenario: n samples of the truth, the partial graph."""
    folder.mkdir(parents=True, exist_ok=True)
    x, _, y, _ = scenario.sample(n, 1, noise_scale=0.15, seed=seed)
    samples = pd.Index([f"s{i:04d}" for i in range(n)], name="sample")
    kinds = {
        "input": scenario.input_nodes,
        "function": scenario.function_nodes,
        "output": scenario.output_nodes,
    }
    tables = {
        "edges": scenario.partial.to_edge_table().set_index("source"),
        "nodes": pd.DataFrame(
            [(name, kind) for kind, names in kinds.items() for name in names], columns=["node", "type"]
        ).set_index("node"),
        "x": pd.DataFrame(x, samples, scenario.input_nodes),
        "y": pd.DataFrame(y, samples, scenario.output_nodes),
    }
    files = {"edges": "edges.tsv", "nodes": "nodes.tsv", "x": "X.tsv", "y": "Y.tsv"}
    paths = {key: folder / name for key, name in files.items()}
    for key, table in tables.items():
        with io.replacing(paths[key]) as tmp:
            table.to_csv(tmp, sep="\t", float_format="%.6g")
    return paths
