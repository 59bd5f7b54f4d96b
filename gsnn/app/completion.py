"""The end of a run: edges that would repair the prediction, what they are worth, and which of them hold.

Three questions, each asked of samples that had no part in the answer: nested cross-validation says what
adding edges is worth; the edges themselves are chosen from two thirds of the samples and verified on the
others; the completed model is trained on all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gsnn.app.candidates import n_pairs
from gsnn.app.compare import Array, Split
from gsnn.app.run_folder import RunFolder
from gsnn.app.settings import Options, new_model
from gsnn.app.training import length, train_side_by_side
from gsnn.data.tables import Data
from gsnn.graph.container import HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.complete import CrossValidation, complete_cv
from gsnn.optim.search import Search, spend
from gsnn.optim.staging import CompletionSettings, Samples
from gsnn.optim.verify import verify

#: How edges are searched for; as in :func:`gsnn.optim.complete.complete`.
STAGES = 8
SEARCH_STEPS = {"base_steps": 640, "stage_steps": 128}

_ASIDE = 1 / 3  # of the samples, for verification
_MOST_ASIDE = 2000  # more make it slower and tell little more
_LEAST_ASIDE = 20  # samples
_LEAST_GROUPS = 10
_LEAST_MEASURED = 10  # values of each output
_MOST_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Completed:
    """What was added to a graph.

    Attributes:
        edges: one row an added edge, in the order in which they were chosen: ``order, stage, src_func,
            dst_func, score``, the columns of :func:`gsnn.optim.verify.verify` from ``gain`` on (empty where
            nothing could be verified), and ``share``, of the folds whose own search chose the edge too.
        graph: the given graph and these edges.
        model: trained on it with all samples.
        nested: R2 by number of edges, each chosen without the samples it is judged on.
        not_verified: why nothing could be verified; empty where it could.
        samples: how many the edges were chosen from and verified on.
    """

    edges: pd.DataFrame
    graph: HeteroGraph
    model: GSNN
    nested: CrossValidation
    not_verified: str
    samples: tuple[int, int]

    def facts(self) -> dict[str, Any]:
        """For metrics.json."""
        chosen, aside = self.samples
        return {
            "added": len(self.edges),
            "verified": None if self.not_verified else int(self.edges["verified"].sum()),
            "not_verified_because": self.not_verified,
            "chosen_from": chosen,
            "verified_on": aside,
            "mean_share": float(self.edges["share"].mean()),
            "r2": self.nested.table.to_dict("records"),
        }


def budget_of(data: Data, options: Options) -> tuple[int, str]:
    """How many edges to add, at most those that there are, and why none where it is 0."""
    if options.complete == 0:
        return 0, "it was turned off"
    open_ = n_pairs(data.graph)
    if open_ == 0:
        return 0, "every pair of function nodes is an edge already, so there is none to add"
    assert options.layers is not None
    width = len(data.graph.node_names_dict["function"]) * options.channels
    needed = 16 * (options.layers - 1) * width**2
    if needed > _MOST_BYTES:
        return 0, (
            f"scoring its pairs would take {needed / 2**30:.0f} GiB of memory, more than the "
            f"{_MOST_BYTES // 2**30} that a run takes; gsnn complete has no such limit"
        )
    return min(options.complete, open_), ""


def budgets_of(budget: int) -> list[int]:
    """Numbers of edges whose R2 is shown: none, a quarter, half and all."""
    return sorted({0, -(-budget // 4), -(-budget // 2), budget})


def settings_of(options: Options) -> CompletionSettings:
    """Networks are built and trained as those of the run; "auto" epochs are for :func:`nested` to say."""
    return CompletionSettings(
        channels=options.channels,
        layers=options.layers,
        norm=options.norm,
        dropout=options.dropout,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        lr=options.lr,
        epochs=None if options.epochs == "auto" else options.epochs,
        device=options.device,
        **SEARCH_STEPS,
    )


def put_aside(data: Data, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """(rows to choose edges from, rows to verify them on, why there are none of the latter).

    A third of the samples is put aside, whole groups, drawn by ``seed``.
    """
    measured = data.y.notna().to_numpy()
    rows = np.flatnonzero(measured.any(1))
    unit = rows if data.groups is None else pd.factorize(data.groups.iloc[rows])[0]
    names = np.random.default_rng(seed).permutation(np.unique(unit))
    wanted = min(len(rows) * _ASIDE, _MOST_ASIDE)
    sizes = np.cumsum([np.count_nonzero(unit == name) for name in names])
    number = int(np.searchsorted(sizes, wanted)) + 1
    taken = np.isin(unit, names[:number])
    rest, aside = rows[~taken], rows[taken]
    why = ""
    if len(aside) < _LEAST_ASIDE:
        why = f"a third of the samples is {len(aside)}, fewer than the {_LEAST_ASIDE} that it takes"
    elif data.groups is not None and number < _LEAST_GROUPS:
        why = f"a third of the samples is of {number} groups, fewer than the {_LEAST_GROUPS} that it takes"
    elif len(rest) < len(rows) / 2:
        why = "its groups are too large to put a third of the samples aside"
    else:
        few = (measured[aside].sum(0) < _LEAST_MEASURED) | ~measured[rest].any(0)
        if few.any():
            name = data.y.columns[np.flatnonzero(few)[0]]
            why = f"output {name!r} has too few measured values to put a third of them aside"
    return (rows, rows[:0], why) if why else (rest, aside, "")


def nested(
    data: Data,
    options: Options,
    splits: Sequence[Split],
    budget: int,
    others: Mapping[str, Array],
    *,
    epochs: Sequence[int],
    verbose: bool,
    unfinished: RunFolder,
) -> CrossValidation:
    """What adding edges is worth, on the splits and with the seeds and epochs of the run's own comparison."""
    return complete_cv(
        data.graph,
        data.x,
        data.y,
        budgets_of(budget),
        splits,
        data.groups,
        stages=STAGES,
        draws=1,
        others=others,
        seed=options.seed + 1,  # the first fold of a run has this seed
        settings=settings_of(options),
        epochs=epochs,
        verbose=verbose,
        checkpoint_path=unfinished.file("nested"),
    )


def completed(
    data: Data,
    options: Options,
    settled: Options,
    budget: int,
    worth: CrossValidation,
    *,
    verbose: bool,
    unfinished: RunFolder,
) -> Completed:
    """Choose ``budget`` edges, verify them on samples put aside for it, train on the completed graph.

    ``settled`` has the epochs for all samples; "auto" ones of ``options`` are chosen anew from the samples
    that are not put aside.
    """
    seed, settings = options.seed, settings_of(options)
    rest, aside, not_verified = put_aside(data, seed)
    samples = Samples.of(new_model(data, options, seed), data.x.iloc[rest], data.y.iloc[rest])
    search = Search(data.graph, samples, settings, seed, "omp", None, None)
    spend(
        budget,
        STAGES,
        [search],
        settings,
        data.graph,
        verbose=verbose,
        checkpoint=unfinished.file("search"),
    )
    edges = pd.DataFrame(search.rows, columns=["stage", "src_func", "dst_func", "score"])
    edges.insert(0, "order", np.arange(1, len(edges) + 1))
    if not not_verified:
        not_verified = too_large(data, options, edges, len(aside))
    key = ["src_func", "dst_func"]
    graph = data.graph.with_edges(list(edges[key].itertuples(index=False, name=None)))
    model, base = new_model(data, options, seed, graph), new_model(data, options, seed)
    training, own = [(model, np.arange(len(data.x)))], [settled]
    if not not_verified:
        training.append((base, rest))
        own.append(length(data, options, rest, seed, verbose and "for verification")[0])
    networks, rows = zip(*training, strict=True)
    train_side_by_side(
        networks,
        data,
        own,
        rows,
        [seed] * len(networks),
        verbose=verbose and "completed graph",
        state=unfinished.file("completed"),
    )
    if not not_verified:
        groups = None if data.groups is None else data.groups.iloc[aside]
        found = verify(
            base, data.graph, edges, data.x.iloc[aside], data.y.iloc[aside], groups=groups, seed=seed
        )
        edges = edges.join(found.drop(columns=["src_func", "dst_func"]))
    else:
        for name in ("gain", "gain_low", "gain_high", "p_value", "q_value"):
            edges[name] = np.nan
        edges["verified"] = pd.array([pd.NA] * len(edges), dtype="boolean")
        edges["placebo_gain"] = np.nan
        edges["alternatives"] = [()] * len(edges)
    edges["share"] = edges[key].merge(worth.edges, how="left", on=key)["share"].fillna(0.0).to_numpy()
    return Completed(edges, graph, model, worth, not_verified, (len(rest), len(aside)))


def too_large(data: Data, options: Options, edges: pd.DataFrame, n: int) -> str:
    """Why the edges cannot be verified on ``n`` samples within the memory of a run; empty where they can."""
    assert options.layers is not None
    slopes = edges["dst_func"].nunique() * data.y.shape[1]
    signals = 2 * len(data.graph.node_names_dict["function"])
    needed = 16 * n * (options.layers - 1) * options.channels * (slopes + signals)
    if needed <= _MOST_BYTES:
        return ""
    return (
        f"it would take {needed / 2**30:.0f} GiB of memory, more than the {_MOST_BYTES // 2**30} that a run "
        "takes; gsnn verify has no such limit"
    )


def as_text(edges: pd.DataFrame) -> pd.DataFrame:
    """The table of edges as it is written: alternatives as 'a -> b; c -> b'."""
    texts = ["; ".join(f"{s} -> {t}" for s, t in others) for others in edges["alternatives"]]
    return edges.assign(alternatives=texts)
