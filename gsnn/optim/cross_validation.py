"""What completion is worth on samples that had no say in it: nested cross-validation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsnn._checks import whole
from gsnn.data.scaling import Scaling
from gsnn.graph.container import HeteroGraph, as_graph
from gsnn.graph.depth import default_layers
from gsnn.optim.candidates import OpenPairs
from gsnn.optim.search import Edge, Search, spend
from gsnn.optim.staging import (
    CompletionSettings,
    Samples,
    Score,
    checked,
    outputs,
    train_together,
)
from gsnn.stats.baselines import BASELINES, Array, Baseline, baseline
from gsnn.train.resume import text_checksum

if TYPE_CHECKING:
    import pandas as pd

Split = tuple[np.ndarray, np.ndarray]

_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class CrossValidation:
    """What `complete_cv` found.

    Attributes:
        table: one row a budget: `budget`, held-out `r2`, `random` (mean over draws of as many random edges),
            `gain` = r2 - random, and each of `others` (`ridge` and `mlp`, which see all inputs and no graph),
            all with `_low` and `_high`, 95% intervals by bootstrap over samples, or groups.
        edges: `src_func, dst_func, folds, share, order`: in how many folds, and which share of them, the edge
            was among the largest budget's, and its mean place in the list where it was.
        by_fold: R2 of each fold: `fold, budget, r2, random`.
        predictions: budget -> (n, N_out) predictions in the units of y, by networks that had not seen the
            sample; NaN where no fold tests it.
        controls: budget -> those of each draw of random edges, (draws, n, N_out).
    """

    table: pd.DataFrame
    edges: pd.DataFrame
    by_fold: pd.DataFrame
    predictions: dict[int, Array]
    controls: dict[int, Array]


def complete_cv(
    graph: Any,
    x: Any,
    y: Any,
    budgets: Iterable[int],
    folds: int | Sequence[Split] = 5,
    groups: Any = None,
    *,
    stages: int = 8,
    score: Score = "omp",
    candidates: Any = None,
    priors: Any = None,
    draws: int = 3,
    others: Mapping[str, Any] | None = None,
    seed: int = 0,
    settings: Any = None,
    epochs: Sequence[int] | None = None,
    verbose: bool = True,
    checkpoint_path: str | os.PathLike[str] | None = None,
) -> CrossValidation:
    """What completion is worth: edges are chosen inside each training fold and judged on its test fold.

    R2 is 1 - sum of squared errors / sum of squared distances from the training fold's means, over all
    test cells of all folds, outputs in units of their training standard deviation. The searches of all folds
    are trained side by side, and so are the networks on their graphs and on those with random edges.

    Args:
        graph, x, y, stages, score, candidates, priors, seed, settings, verbose: as for `complete`.
        budgets: numbers of edges; those of a smaller one are the first of the largest one's.
        folds: number of test folds, drawn by `seed`; or a (training rows, test rows) pair for each.
        groups: one label a sample, in the order of x, or None; samples of one label are never in training and
            test at once.
        draws: how often random edges are drawn for each budget and fold.
        others: name -> (n, N_out) predictions of other models in the units of y, in the order of x and of the
            graph's outputs, by models that had not seen the sample; by default ridge regression and an MLP
            are fitted.
        epochs: of each fold's trainings that are compared, instead of the settings' own.
        checkpoint_path: a file that keeps the finished stages of the searches, with the trainings that follow
            in one beside it, named by `-trainings`. Where they are there already, the same call goes on from
            them.

    Raises:
        TypeError, ValueError: as for `complete`; fewer samples or groups than folds.
        FileNotFoundError: the folder of `checkpoint_path` is not there.
    """
    graph = as_graph(graph, warn=False)
    whole("draws", draws)
    numbers = list(budgets) if isinstance(budgets, Iterable) else [budgets]
    if not numbers:
        raise ValueError("budgets must hold at least one number of edges, got none")
    for number in numbers:
        if isinstance(number, str):
            raise ValueError(f"budgets must hold ints, got {number!r}")
        settings = checked(number, stages, score, seed, settings)
    layers = default_layers(graph) if settings.layers is None else settings.layers
    settings = replace(settings, layers=layers)
    data = Samples.of(settings.model(graph, seed), x, y)
    n = len(x)
    labels = None if groups is None else np.asarray(groups)
    if labels is not None and len(labels) != n:
        raise ValueError(f"groups must have one label a sample, {n}, got {len(labels)}")
    labels = None if labels is None else labels[data.rows.numpy()]
    splits = _splits(data, n, labels, folds, seed)
    lengths = [settings.final_epochs(len(train)) for train, _ in splits] if epochs is None else list(epochs)
    if len(lengths) != len(splits):
        raise ValueError(f"epochs must have one number a fold, {len(splits)}, got {len(lengths)}")
    for number in lengths:
        whole("epochs", number)
    most = max(numbers)
    open_ = OpenPairs.of(graph, candidates, priors) if most else None
    pairs = [] if open_ is None else open_.pairs()
    if most > len(pairs):
        raise ValueError(f"budgets must be at most the number of candidate pairs, {len(pairs)}, got {most}")
    checkpoint = None if checkpoint_path is None else Path(checkpoint_path)
    if checkpoint is not None and not checkpoint.absolute().parent.is_dir():
        raise FileNotFoundError(f"checkpoint_path must be in a folder that exists, got {checkpoint}")

    parts = [data.take(train) for train, _ in splits]
    chosen: list[list[Edge]] = [[] for _ in splits]
    if open_ is not None:
        searches = [
            Search(graph, part, settings, seed + fold, score, candidates, priors)
            for fold, part in enumerate(parts)
        ]
        of = text_checksum(open_.text())
        spend(
            most,
            stages,
            searches,
            settings,
            graph,
            verbose=verbose,
            checkpoint=checkpoint,
            candidates=of,
        )
        chosen = [search.edges for search in searches]
    wanted = [  # fold, budget, draw from 1, or 0 for the chosen edges
        (fold, budget, draw)
        for fold in range(len(splits))
        for budget in numbers
        for draw in (range(draws + 1) if budget else (0,))
    ]
    later = None
    if checkpoint is not None:
        later = checkpoint.with_name(f"{checkpoint.stem}-trainings{checkpoint.suffix}")
    yhat = _trained(
        graph, settings, parts, splits, data, chosen, pairs, wanted, lengths, seed, verbose, later
    )
    judge = _Judge(data, splits, labels, seed)
    tested = {name: np.asarray(values) for name, values in (others or {}).items()}
    if others is None:
        tested = {name: _baseline(name, parts, splits, data, n, seed) for name in BASELINES}
    for name, values in tested.items():
        if values.shape != (n, data.y.shape[1]):
            raise ValueError(
                f"others must hold predictions of shape {(n, data.y.shape[1])}, got {values.shape} for "
                f"{name!r}"
            )
    beside = {name: judge.errors(values[data.rows.numpy()]) for name, values in tested.items()}
    rows, by_fold = [], []
    for budget in numbers:
        mine = judge.errors(yhat[budget, 0])
        drawn = [judge.errors(yhat[budget, draw]) for draw in (range(1, draws + 1) if budget else (0,))]
        other = np.mean(drawn, 0)
        rows.append({"budget": budget, **judge.row({"r2": mine, "random": other, **beside})})
        by_fold += [
            {"fold": k + 1, "budget": budget, "r2": judge.r2(mine, test), "random": judge.r2(other, test)}
            for k, (_, test) in enumerate(splits)
        ]
    import pandas as pd

    predictions, controls = {}, {}
    for budget in numbers:
        every = np.full((1 + draws, n, data.y.shape[1]), np.nan)
        every[:, data.rows.numpy()] = [yhat[budget, draw if budget else 0] for draw in range(1 + draws)]
        predictions[budget], controls[budget] = every[0], every[1:]
    by_fold_table = pd.DataFrame(by_fold)
    return CrossValidation(pd.DataFrame(rows), _stability(chosen), by_fold_table, predictions, controls)


def _trained(
    graph: HeteroGraph,
    settings: CompletionSettings,
    parts: Sequence[Samples],
    splits: Sequence[Split],
    data: Samples,
    chosen: Sequence[Sequence[Edge]],
    pairs: Sequence[Edge],
    wanted: Sequence[tuple[int, int, int]],
    lengths: Sequence[int],
    seed: int,
    verbose: bool,
    checkpoint: Path | None,
) -> dict[tuple[int, int], Array]:
    """(budget, draw) -> predictions for all samples of `data` that are tested, each by its fold's network."""
    models = []
    for fold, budget, draw in wanted:
        edges = list(chosen[fold][:budget])
        if draw:
            order = np.random.default_rng([seed, fold, draw]).permutation(len(pairs))
            edges = [pairs[k] for k in order[:budget]]
        models.append(settings.model(graph.with_edges(edges), seed + fold))
    own = [parts[fold] for fold, _, _ in wanted]
    train_together(
        models,
        own,
        [seed + fold for fold, _, _ in wanted],
        settings,
        [lengths[fold] for fold, _, _ in wanted],
        lr=settings.lr,
        schedule="cosine",
        verbose=verbose and f"{len(models)} networks at once",
        checkpoint=checkpoint,
    )
    yhat: dict[tuple[int, int], Array] = {}
    for (fold, budget, draw), part, model in zip(wanted, own, models, strict=True):
        scaling, test = Scaling.of(part.x, part.y), splits[fold][1]
        found = scaling.unscale_y(outputs(model, data.take(test).scaled(scaling))).numpy()
        yhat.setdefault((budget, draw), np.full(data.y.shape, np.nan))[test] = found
    return yhat


def _baseline(
    kind: Baseline, parts: Sequence[Samples], splits: Sequence[Split], data: Samples, n: int, seed: int
) -> Array:
    """(n, N_out) predictions of ridge regression or an MLP, NaN where no fold tests a sample."""
    out = np.full((n, data.y.shape[1]), np.nan)
    for part, (_, test) in zip(parts, splits, strict=True):
        scaling = Scaling.of(part.x, part.y)
        inside, aside = part.scaled(scaling), data.take(test).scaled(scaling)
        yhat = baseline(
            kind, inside.x.double().numpy(), inside.y.double().numpy(), aside.x.double().numpy(), seed
        )
        out[aside.rows.numpy()] = yhat * np.array(scaling.y_scale) + np.array(scaling.y_mean)
    return out


class _Judge:
    """R2 of predictions of the tested samples, and its 95% interval by bootstrap over samples or groups."""

    def __init__(self, data: Samples, splits: Sequence[Split], labels: Any, seed: int) -> None:
        self.y = data.y.double().numpy()
        self.scale = np.full(self.y.shape, np.nan)
        mean = np.full(self.y.shape, np.nan)
        for train, test in splits:
            part = data.take(train)
            scaling = Scaling.of(part.x, part.y)
            self.scale[test], mean[test] = scaling.y_scale, scaling.y_mean
        self.tested = np.concatenate([test for _, test in splits])
        self.total = self.errors(mean)
        units = np.arange(len(data)) if labels is None else np.unique(labels, return_inverse=True)[1]
        units = np.unique(units[self.tested], return_inverse=True)[1]
        number, rng = int(units.max()) + 1, np.random.default_rng(seed)
        draws = (rng.integers(number, size=number) for _ in range(_BOOTSTRAPS))
        self.weights = np.array([np.bincount(drawn, minlength=number)[units] for drawn in draws])

    def errors(self, yhat: Array) -> Array:
        """(n,) squared errors of each sample, in units of the training standard deviations."""
        return np.nansum(((self.y - yhat) / self.scale) ** 2, 1)

    def r2(self, errors: Array, rows: Any = slice(None)) -> float:
        """R2 over the samples `rows`."""
        return 1.0 - float(errors[rows].sum() / self.total[rows].sum())

    def row(self, errors: Mapping[str, Array]) -> dict[str, float]:
        """R2 of each, and that of `r2` less that of `random` as `gain`, with their intervals."""
        total = self.weights @ self.total[self.tested]
        found = {
            name: (self.r2(own), 1 - self.weights @ own[self.tested] / total) for name, own in errors.items()
        }
        (own, drawn), (random, drawn_random) = found["r2"], found["random"]
        found = {
            "r2": found.pop("r2"),
            "random": found.pop("random"),
            "gain": (own - random, drawn - drawn_random),
            **found,
        }
        row: dict[str, float] = {}
        for name, (value, resampled) in found.items():
            low, high = np.quantile(resampled, [0.025, 0.975])
            row |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
        return row


def _stability(chosen: Sequence[Sequence[Edge]]) -> pd.DataFrame:
    """In how many of the lists each edge is, and its mean place there."""
    import pandas as pd

    places: dict[Edge, list[int]] = {}
    for edges in chosen:
        for place, edge in enumerate(edges, 1):
            places.setdefault(edge, []).append(place)
    return pd.DataFrame(
        [(*edge, len(at), len(at) / len(chosen), float(np.mean(at))) for edge, at in places.items()],
        columns=["src_func", "dst_func", "folds", "share", "order"],
    ).sort_values(["folds", "order"], ascending=[False, True], ignore_index=True)


def _splits(data: Samples, n: int, labels: Any, folds: int | Sequence[Split], seed: int) -> list[Split]:
    """(training rows, test rows) of each fold, as places in `data`, which lacks some of the n samples."""
    from sklearn.model_selection import GroupKFold, KFold

    if not isinstance(folds, (int, np.integer)):
        place = np.full(n, -1)
        place[data.rows.numpy()] = np.arange(len(data))
        given = [tuple(place[np.asarray(rows)] for rows in split) for split in folds]
        if not given:
            raise ValueError(
                "folds must be an int or a list of (training rows, test rows), got an empty list"
            )
        return [(train[train >= 0], test[test >= 0]) for train, test in given]
    whole("folds", folds, at_least=2)
    available = len(data) if labels is None else len(np.unique(labels))
    if available < folds:
        what = "samples" if labels is None else "groups"
        raise ValueError(f"folds must be at most the number of {what}, {available}, got {folds}")
    splitter = KFold(folds, shuffle=True, random_state=seed) if labels is None else GroupKFold(folds)
    return list(splitter.split(np.arange(len(data)), groups=labels))
