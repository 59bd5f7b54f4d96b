"""Which function -> function edges to add to a graph, from data alone.

A network is trained briefly on the given graph; then, stage by stage, the edges that would lower its loss
most steeply are added, and the grown network is trained on. What comes out is a graph that explains the data
as well as its edges allow. It is not the true graph: where sources carry the same signal, many graphs do
equally well, and :func:`gsnn.optim.verify.verify` says which edges hold on new samples and what would do in
their place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn._progress import ProgressBar, progress
from gsnn.data.scaling import Scaling
from gsnn.graph.container import EDGE_TYPES, HeteroGraph, as_graph
from gsnn.graph.depth import default_layers
from gsnn.models.GSNN import GSNN
from gsnn.optim.candidates import pair_weights
from gsnn.optim.edge_table import KeptEdges
from gsnn.optim.staging import (
    SCORES,
    CompletionSettings,
    Edge,
    Samples,
    Stages,
    check_int,
    loss,
    squared_errors,
    stage_sizes,
    trained_anew,
)
from gsnn.stats.baselines import baseline
from gsnn.train.resume import text_checksum

if TYPE_CHECKING:
    import pandas as pd

_IMPATIENCE = 2  # stages in a row without a lower validation loss, after which 'auto' looks no further
_LEAST_GAIN = 0.005  # share of the loss by which a stage must lower it to count
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Completion:
    """What `complete` found.

    Attributes
    ----------
    graph : the given graph and the added edges, which follow its own
    model : a network trained from the beginning on that graph
    edges : `order` (from 1), `stage`, `src_func`, `dst_func`, `score`, `gain`; gain is how much the loss on
        the validation samples rises when the edge alone is switched off in `model`, NaN without validation
    path : number of added edges -> validation loss of a network trained from the beginning with the first so
        many, from 0 on, one entry a stage; NaN without validation. Losses are mean squared errors of
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
    score: str = "omp",
    candidates: Any = None,
    priors: Any = None,
    validation: tuple[Any, Any] | None = None,
    seed: int = 0,
    settings: Any = None,
    verbose: bool = True,
    checkpoint_path: str | os.PathLike[str] | None = None,
) -> Completion:
    """Add `budget` function -> function edges to `graph` such that a network on it predicts y from x.

    Nothing but the given samples is read, and the same call gives the same result (on one kind of machine and
    number of threads).

    Parameters
    ----------
    graph : HeteroGraph, or anything with the same two dictionaries
    x, y : samples (n, N_in) and (n, N_out), anything that `gsnn.fit` takes: DataFrames are matched by name,
        NaN in y is a missing measurement
    budget : edges to add, an int of at least 0; or 'auto': stages go on until two in a row do not lower the
        validation loss by half a percent, then the smallest number of edges is taken whose validation loss is
        within one standard error of the best. Without `validation` a fifth of the samples is put aside for
        that, drawn by `seed`, and used again for the final network.
    stages : in how many steps the budget is spent; with 'auto' each adds so many edges that `2 stages` of
        them double the graph's
    score : 'omp', orthogonal matching pursuit, or 'whitened', pairs one by one and one edge a target and
        stage; see :class:`gsnn.optim.FirstOrderEdgeInferer.FirstOrderEdgeInferer`
    candidates, priors : pairs to choose from, and weights of pairs; see its method `greedy`
    validation : (x, y) that have no part in choosing or training; for `gain` and `path`, which need one
        training for each stage
    seed : of weights and batches
    settings : `CompletionSettings` or a dict of some of its fields
    verbose : show a progress bar
    checkpoint_path : a file that keeps finished stages. Where it is there already, the same call goes on from
        it, with the result that it would have had. It stays; delete it to begin anew.

    Raises
    ------
    TypeError, ValueError : an argument that is not what is described above, fewer candidates than `budget`,
        data that do not fit the graph, or a checkpoint of another run
    FileNotFoundError : the folder of `checkpoint_path` is not there
    """
    graph = as_graph(graph, warn=False)
    settings = _checked(budget, stages, score, seed, settings)
    kept = KeptEdges.of(graph)
    layers = default_layers(graph) if settings.layers is None else settings.layers
    like = settings.model(graph, seed)
    everything = data = Samples.of(like, x, y)
    held = None
    if validation is not None:
        if not isinstance(validation, tuple) or len(validation) != 2:
            raise ValueError(f"validation must be (x, y) or None, got {type(validation).__name__}")
        held = Samples.of(like, *validation, "x of validation", "y of validation")
    n_open = int((pair_weights(kept, candidates, priors) > 0).sum()) if budget != 0 else 0
    if isinstance(budget, int) and budget > n_open:
        raise ValueError(f"budget must be at most the number of candidate pairs, {n_open}, got {budget}")
    if budget == "auto" and held is None:
        order = np.random.default_rng(seed).permutation(len(data))
        if len(order) < 5:
            raise ValueError(f"budget='auto' needs at least 5 samples or validation, got {len(order)}")
        data, held = data.take(order[len(order) // 5 :]), data.take(order[: len(order) // 5])
    scaling = Scaling.of(data.x, data.y)
    aside = None if held is None else held.scaled(scaling)

    checkpoint = None if checkpoint_path is None else Path(checkpoint_path)
    if checkpoint is not None and not checkpoint.absolute().parent.is_dir():
        raise FileNotFoundError(f"checkpoint_path must be in a folder that exists, got {checkpoint}")
    weights = "none" if n_open == 0 else repr(pair_weights(kept, candidates, priors).tolist())
    identity = {"stages": stages, "budget": budget, "candidates": text_checksum(weights)}
    watched = aside if budget == "auto" else None
    search = Stages(
        graph, data, settings, seed, scaling, score, candidates, priors, watched, checkpoint, identity
    )
    if isinstance(budget, int):
        sizes = stage_sizes(budget, stages) if budget else []
    else:
        step = -(-max(1, len(kept.edges)) // (2 * stages))
        sizes = [min(step, n_open - done) for done in range(0, min(n_open, len(kept.edges) or 1), step)]
    with closing(ProgressBar(len(sizes), "stages", verbose, leave=False)) as bar:
        for number, size in enumerate(sizes, 1):
            if budget == "auto" and _no_longer_falls(search.losses):
                break
            if number > search.stage:
                search.add(size)
            bar.update()
    counts = [0, *np.cumsum([sum(row[0] == k for row in search.rows) for k in range(1, search.stage + 1)])]
    path: dict[int, float] = {int(count): float("nan") for count in counts}
    model = None
    if aside is not None:
        errors = {}
        for count in progress(path, "path", verbose):
            model = trained_anew(
                graph.with_edges(search.edges[:count]), data, scaling, settings, seed, layers
            )
            errors[count] = squared_errors(model, aside)
            path[count] = float(errors[count].nanmean())
        if budget == "auto":
            chosen = _smallest(errors)
            rows, model = search.rows[:chosen], None
        else:
            rows = search.rows
    else:
        rows = search.rows
    edges = [(source, target) for _, source, target, _ in rows]
    grown = graph.with_edges(edges)
    if model is None:
        final = everything if budget == "auto" and validation is None else data
        model = trained_anew(grown, final, scaling, settings, seed, layers)
    return Completion(grown, model, _edge_rows(rows, model, aside), path)


def _checked(budget: Any, stages: Any, score: Any, seed: Any, settings: Any) -> CompletionSettings:
    if isinstance(budget, str):
        if budget != "auto":
            raise ValueError(f"budget must be an int of at least 0 or 'auto', got {budget!r}")
    else:
        check_int("budget", budget, 0)
    check_int("stages", stages, 1)
    check_int("seed", seed, 0)
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    return CompletionSettings.of(settings)


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


def _edge_rows(rows: list[tuple[int, str, str, float]], model: GSNN, aside: Samples | None) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows, columns=["stage", "src_func", "dst_func", "score"])
    table.insert(0, "order", np.arange(1, len(rows) + 1))
    table["gain"] = np.nan
    if aside is not None and rows:
        total = loss(model, aside)
        first = model.graph.edge_index_dict[EDGE_TYPES[0]].shape[1] - len(rows)
        gains = []
        for k in range(len(rows)):
            mask = torch.ones(model.edge_index.shape[1], device=model.edge_index.device)
            mask[first + k] = 0.0
            gains.append(float(squared_errors(model, aside, mask).nanmean()) - total)
        table["gain"] = gains
    return table


@dataclass(frozen=True)
class CrossValidation:
    """What `complete_cv` found.

    Attributes
    ----------
    table : one row a budget: `budget`, held-out `r2`, `random` (mean over draws of as many random edges),
        `gain` = r2 - random, each with `_low` and `_high`, 95% intervals by bootstrap over samples, or
        groups; `ridge` and `mlp`, which see all inputs and no graph
    edges : `src_func, dst_func, folds, share, order`: in how many folds, and which share of them, the edge
        was among the largest budget's, and its mean place in the list where it was
    by_fold : R2 of each fold: `fold, budget, r2, random`
    """

    table: pd.DataFrame
    edges: pd.DataFrame
    by_fold: pd.DataFrame


def complete_cv(
    graph: Any,
    x: Any,
    y: Any,
    budgets: Iterable[int],
    folds: int = 5,
    groups: Any = None,
    *,
    stages: int = 8,
    score: str = "omp",
    candidates: Any = None,
    priors: Any = None,
    draws: int = 3,
    seed: int = 0,
    settings: Any = None,
    verbose: bool = True,
) -> CrossValidation:
    """What completion is worth: edges are chosen inside each training fold and judged on its test fold.

    R2 is 1 - sum of squared errors / sum of squared distances from the training fold's means, over all
    test cells of all folds, outputs in units of their training standard deviation.

    Parameters
    ----------
    graph, x, y, stages, score, candidates, priors, seed, settings, verbose : as for `complete`
    budgets : numbers of edges; those of a smaller one are the first of the largest one's
    folds : test folds, drawn by `seed`
    groups : one label a sample, in the order of x, or None; samples of one label are never in training and
        test at once
    draws : how often random edges are drawn for each budget and fold

    Raises
    ------
    TypeError, ValueError : as for `complete`; fewer samples or groups than folds
    """
    import pandas as pd

    graph = as_graph(graph, warn=False)
    check_int("folds", folds, 2)
    check_int("draws", draws, 1)
    numbers = [budgets] if isinstance(budgets, int) else list(budgets)
    if not numbers:
        raise ValueError("budgets must hold at least one number of edges, got none")
    for number in numbers:
        if isinstance(number, str):
            raise ValueError(f"budgets must hold ints, got {number!r}")
        settings = _checked(number, stages, score, seed, settings)
    kept = KeptEdges.of(graph)
    data = Samples.of(settings.model(graph, seed), x, y)
    labels = None
    if groups is not None:
        labels = np.asarray(groups)
        if len(labels) != len(x):
            raise ValueError(f"groups must have one label a sample, {len(x)}, got {len(labels)}")
        labels = labels[data.rows.numpy()]
    splits = _splits(len(data), labels, folds, seed)
    most = max(numbers)
    open_ = pair_weights(kept, candidates, priors) > 0 if most else np.zeros((1, 1), dtype=bool)
    if most > open_.sum():
        raise ValueError(f"budgets must be at most the number of candidate pairs, {open_.sum()}, got {most}")
    pairs = [(kept.names[i], kept.names[j]) for i, j in np.argwhere(open_)] if most else []
    layers = default_layers(graph) if settings.layers is None else settings.layers
    squares = {name: np.zeros(len(data)) for name in ("total", "ridge", "mlp")}
    of_budget = {(b, d): np.zeros(len(data)) for b in numbers for d in range(draws + 1)}
    places: dict[Edge, list[int]] = {}
    work = ProgressBar(folds * len(numbers) * (1 + draws), "trainings", verbose, leave=False)
    for fold, (train, test) in enumerate(splits):
        part = data.take(train)
        scaling = Scaling.of(part.x, part.y)
        aside = data.take(test).scaled(scaling)
        truth = aside.y.double()
        squares["total"][test] = np.nansum(truth.square().numpy(), 1)
        inside = part.scaled(scaling)
        for name in ("ridge", "mlp"):
            yhat = baseline(
                name, inside.x.double().numpy(), inside.y.double().numpy(), aside.x.double().numpy(), seed
            )
            squares[name][test] = np.nansum((yhat - truth.numpy()) ** 2, 1)
        search = None
        if most:
            search = Stages(graph, part, settings, seed + fold, scaling, score, candidates, priors)
            for size in stage_sizes(most, stages):
                search.add(size)
            for place, edge in enumerate(search.edges, 1):
                places.setdefault(edge, []).append(place)
        for b in numbers:
            for d in range(draws + 1):
                if d == 0:
                    edges = search.edges[:b] if search is not None else []
                else:
                    rng = np.random.default_rng([seed, fold, d])
                    edges = [pairs[k] for k in rng.permutation(len(pairs))[:b]]
                model = trained_anew(graph.with_edges(edges), part, scaling, settings, seed + fold, layers)
                of_budget[b, d][test] = np.nansum(squared_errors(model, aside).numpy(), 1)
                work.update()
    work.close()

    def r2(errors: np.ndarray, rows: Any = slice(None)) -> float:
        return 1.0 - float(errors[rows].sum() / squares["total"][rows].sum())

    units = np.arange(len(data)) if labels is None else np.unique(labels, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    n_units = int(units.max()) + 1
    draws_of = (rng.integers(n_units, size=n_units) for _ in range(_BOOTSTRAPS))
    resampled = [np.bincount(drawn, minlength=n_units)[units] for drawn in draws_of]
    rows, by_fold = [], []
    for b in numbers:
        mine, other = of_budget[b, 0], np.mean([of_budget[b, d] for d in range(1, draws + 1)], 0)
        total = squares["total"]
        boot = np.array([[1 - (w @ e) / (w @ total) for e in (mine, other)] for w in resampled])
        row: dict[str, float] = {"budget": b}
        for name, value, drawn in (
            ("r2", r2(mine), boot[:, 0]),
            ("random", r2(other), boot[:, 1]),
            ("gain", r2(mine) - r2(other), boot[:, 0] - boot[:, 1]),
        ):
            low, high = np.quantile(drawn, [0.025, 0.975])
            row |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row | {name: r2(squares[name]) for name in ("ridge", "mlp")})
        by_fold += [
            {"fold": k + 1, "budget": b, "r2": r2(mine, test), "random": r2(other, test)}
            for k, (_, test) in enumerate(splits)
        ]
    stable = pd.DataFrame(
        [(*edge, len(at), len(at) / folds, float(np.mean(at))) for edge, at in places.items()],
        columns=["src_func", "dst_func", "folds", "share", "order"],
    ).sort_values(["folds", "order"], ascending=[False, True], ignore_index=True)
    return CrossValidation(pd.DataFrame(rows), stable, pd.DataFrame(by_fold))


def _splits(n: int, labels: Any, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, KFold

    available = n if labels is None else len(np.unique(labels))
    if available < folds:
        what = "samples" if labels is None else "groups"
        raise ValueError(f"folds must be at most the number of {what}, {available}, got {folds}")
    splitter = KFold(folds, shuffle=True, random_state=seed) if labels is None else GroupKFold(folds)
    return list(splitter.split(np.arange(n), groups=labels))
