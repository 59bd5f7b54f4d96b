"""Which edges to add to a graph, from data alone.

A network is trained briefly on the given graph; then, stage by stage, the edges that would lower its loss
by most are added, and the grown network is trained on. What comes out is a graph that explains the data
as well as its edges allow. It is not the true graph: where sources carry the same signal, many graphs do
equally well, and :func:`gsnn.optim.verify.verify` says which edges hold on new samples and what would do in
their place.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn._progress import ProgressBar
from gsnn.data.scaling import Scaling, scaling_of
from gsnn.graph.container import EDGE_TYPES, HeteroGraph, as_graph
from gsnn.graph.depth import default_layers
from gsnn.models.GSNN import GSNN
from gsnn.optim.candidates import OpenPairs
from gsnn.optim.cross_validation import CrossValidation as CrossValidation
from gsnn.optim.cross_validation import complete_cv as complete_cv
from gsnn.optim.edge_table import KeptEdges
from gsnn.optim.search import Search, Stages
from gsnn.optim.staging import (
    Samples,
    Score,
    checked,
    loss,
    squared_errors,
    stage_sizes,
    trained_anew,
)
from gsnn.train.resume import text_checksum

if TYPE_CHECKING:
    import pandas as pd

_IMPATIENCE = 2  # stages in a row without a lower validation loss, after which 'auto' looks no further
_LEAST_GAIN = 0.005  # share of the loss by which a stage must lower it to count


@dataclass(frozen=True)
class Completion:
    """What `complete` found.

    Attributes:
        graph: the given graph and the added edges, which follow its own.
        model: a network trained from the beginning on that graph.
        edges: `order` (from 1), `stage`, `src_func`, `dst_func`, `score`, `gain`; gain is how much the loss
            on the validation samples rises when the edge alone is switched off in `model`, NaN without
            validation.
        path: number of added edges -> validation loss of a network trained from the beginning with the first
            so many, from 0 on, one entry a stage; NaN without validation. Losses are mean squared errors of
            standardised outputs.
    """

    graph: HeteroGraph
    model: GSNN
    edges: pd.DataFrame
    path: dict[int, float]


def complete(
    graph: Any,
    x: Any,
    y: Any,
    budget: int | str,
    *,
    stages: int = 8,
    score: Score = "omp",
    candidates: Any = None,
    priors: Any = None,
    validation: tuple[Any, Any] | None = None,
    seed: int = 0,
    settings: Any = None,
    verbose: bool = True,
    checkpoint_path: str | os.PathLike[str] | None = None,
) -> Completion:
    """Add `budget` edges to `graph` such that a network on it predicts y from x.

    They are function -> function edges; `candidates` may name others.

    Nothing but the given samples is read, and the same call gives the same result (on one kind of machine and
    number of threads).

    Args:
        graph: HeteroGraph, or anything with the same two dictionaries.
        x, y: samples (n, N_in) and (n, N_out), anything that `gsnn.fit` takes: DataFrames are matched by
            name, NaN in y is a missing measurement.
        budget: edges to add, an int of at least 0; or 'auto': stages go on until two in a row do not lower
            the validation loss by half a percent, then the smallest number of edges is taken whose validation
            loss is within one standard error of the best. Without `validation` a fifth of the samples is put
            aside for that, drawn by `seed`, and used again for the final network.
        stages: in how many steps the budget is spent; with 'auto' each adds so many edges that `2 stages` of
            them double the graph's.
        score: 'omp', orthogonal matching pursuit, or 'whitened', pairs one by one and one edge a target and
            stage; both in units of curvature, see
            :class:`gsnn.optim.FirstOrderEdgeInferer.FirstOrderEdgeInferer`.
        candidates, priors: pairs to choose from, by default all missing function -> function pairs, and
            weights of pairs; see its method `greedy`. Candidates may lead from an input to a function node
            (unknown targets of a drug) or from a function node to an output, too; in each stage the best
            of all three types are added. Where a name stands for two nodes, a pair is a function -> function
            edge if it can be one.
        validation: (x, y) that have no part in choosing or training; for `gain` and `path`, which need one
            training for each stage.
        seed: of weights and batches.
        settings: `CompletionSettings` or a dict of some of its fields.
        verbose: show a progress bar.
        checkpoint_path: a file that keeps finished stages. Where it is there already, the same call goes on
            from it, with the result that it would have had. It stays; delete it to begin anew.

    Raises:
        TypeError, ValueError: an argument that is not what is described above, fewer candidates than
            `budget`, data that do not fit the graph, or a checkpoint of another run.
        FileNotFoundError: the folder of `checkpoint_path` is not there.
    """
    graph = as_graph(graph, warn=False)
    settings = checked(budget, stages, score, seed, settings)
    budget = budget if isinstance(budget, str) else int(budget)  # also of numpy: it goes into a checkpoint
    stages, seed = int(stages), int(seed)
    kept = KeptEdges.of(graph)
    if settings.layers is None:  # those of the given graph, also for the grown ones
        settings = replace(settings, layers=default_layers(graph))
    like = settings.model(graph, seed)
    everything = data = Samples.of(like, x, y)
    held = None
    if validation is not None:
        if not isinstance(validation, tuple) or len(validation) != 2:
            raise ValueError(f"validation must be (x, y) or None, got {type(validation).__name__}")
        held = Samples.of(like, *validation, "x of validation", "y of validation")
    open_ = OpenPairs.of(graph, candidates, priors) if budget != 0 else None
    n_open = 0 if open_ is None else open_.number
    if isinstance(budget, int) and budget > n_open:
        raise ValueError(f"budget must be at most the number of candidate pairs, {n_open}, got {budget}")
    if budget == "auto" and held is None:
        order = np.random.default_rng(seed).permutation(len(data))
        if len(order) < 5:
            raise ValueError(f"budget='auto' needs at least 5 samples or validation, got {len(order)}")
        data, held = data.take(order[len(order) // 5 :]), data.take(order[: len(order) // 5])
    aside = None if held is None else held.scaled(Scaling.of(data.x, data.y))

    checkpoint = None if checkpoint_path is None else Path(checkpoint_path)
    if checkpoint is not None and not checkpoint.absolute().parent.is_dir():
        raise FileNotFoundError(f"checkpoint_path must be in a folder that exists, got {checkpoint}")
    of = "none" if open_ is None else open_.text()
    identity = {"stages": stages, "budget": budget, "candidates": text_checksum(of)}
    watched = aside if budget == "auto" else None
    search = Search(graph, data, settings, seed, score, candidates, priors)
    work = Stages([search], settings, graph, watched, checkpoint, identity)
    if isinstance(budget, int):
        sizes = stage_sizes(budget, stages) if budget else []
    else:
        step = -(-max(1, len(kept.edges)) // (2 * stages))
        sizes = [min(step, n_open - done) for done in range(0, min(n_open, len(kept.edges) or 1), step)]
    with closing(ProgressBar(len(sizes), "stages", verbose, leave=False)) as bar:
        for number, size in enumerate(sizes, 1):
            if budget == "auto" and _no_longer_falls(work.losses):
                break
            if number > work.stage:
                work.add(size)
            bar.update()
    counts = [0, *np.cumsum([sum(row[0] == k for row in search.rows) for k in range(1, work.stage + 1)])]
    path: dict[int, float] = {int(count): float("nan") for count in counts}
    model = None
    if aside is not None:
        graphs = [graph.with_edges(search.edges[:count]) for count in path]
        said = verbose and f"{len(graphs)} networks at once"
        models = trained_anew(graphs, data, settings, seed, verbose=said)
        errors = {count: squared_errors(own, aside) for count, own in zip(path, models, strict=True)}
        path = {count: float(values.nanmean()) for count, values in errors.items()}
        if budget == "auto":
            rows = search.rows[: _smallest(errors)]
        else:
            rows, model = search.rows, models[-1]
    else:
        rows = search.rows
    edges = [(source, target) for _, source, target, _ in rows]
    grown = graph.with_edges(edges)
    if model is None:
        final = everything if budget == "auto" and validation is None else data
        (model,) = trained_anew([grown], final, settings, seed)
    return Completion(grown, model, _edge_rows(rows, graph, model, held), path)


def _no_longer_falls(losses: list[float]) -> bool:
    """Whether the last stages have not lowered the least loss before them by enough."""
    since, best = 0, losses[0]
    for now in losses[1:]:
        since = 0 if now < best * (1 - _LEAST_GAIN) else since + 1
        best = min(best, now)
    return since >= _IMPATIENCE


def _smallest(errors: dict[int, torch.Tensor]) -> int:
    """The fewest edges whose loss is within one standard error of the best (Breiman et al. 1984), paired."""
    by_sample = {count: np.nanmean(e.numpy(), 1) for count, e in errors.items()}
    best = min(by_sample, key=lambda count: (float(np.mean(by_sample[count])), count))
    for count, values in sorted(by_sample.items()):
        more = values - by_sample[best]
        if more.mean() <= more.std(ddof=1) / np.sqrt(len(more)):
            return count
    return best


def _edge_rows(
    rows: list[tuple[int, str, str, float]], graph: HeteroGraph, model: GSNN, held: Samples | None
) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows, columns=["stage", "src_func", "dst_func", "score"])
    table.insert(0, "order", np.arange(1, len(rows) + 1))
    table["gain"] = np.nan
    scaling = scaling_of(model)
    if held is not None and scaling is not None and rows:
        aside = held.scaled(scaling)
        total = loss(model, aside)
        place, end = {}, 0  # of each new edge among the flat ones
        for etype in EDGE_TYPES:
            n_old = graph.edge_index_dict[etype].shape[1]
            end += model.graph.edge_index_dict[etype].shape[1]
            for flat in range(end - model.graph.edge_index_dict[etype].shape[1] + n_old, end):
                source, target = (model.homo_names[node] for node in model.edge_index[:, flat].tolist())
                place[source, target] = flat
        gains = []
        for _, source, target, _ in rows:
            mask = torch.ones(model.edge_index.shape[1], device=model.edge_index.device)
            mask[place[source, target]] = 0.0
            gains.append(float(squared_errors(model, aside, mask).nanmean()) - total)
        table["gain"] = gains
    return table
