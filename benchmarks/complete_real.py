"""What is completion worth on measured data, against random edges and two other ways to choose?

Nested cross-validation on two liver signalling sets with the settings of `gsnn run`: edges are chosen inside
each training fold and judged on its test fold. R2 is pooled over outputs and folds in the units of the table,
0 = the means of the training fold. Beside `complete` and as many random edges stand ridge regression and an
MLP, which see all inputs, and for 20 edges:

- `feeder`, links from data as CNORfeeder adds them: each output is regressed on all inputs, and where the
  graph has no path from what an input acts on to what an output reads, an edge between these is a candidate,
  by the size of its t statistic;
- `overcomplete`, prune what is too much: a network with every pair of function nodes is trained, and of the
  added edges the strongest are kept (product of the norms of its weights, summed over layers).

With `--without 0.25` a quarter of the function edges, drawn by the seed, is taken out of the graph first;
`whole` is the graph as it was, and `put_back` says how many of these edges a fold's choice has, at the
largest budget.

`verify_seconds` is the time of one `verify` of 20 candidates, chosen by a network that has seen one half of
the samples and verified on the other (`verified`).

The data are read from the folder GSNN_DATA; sets that are not there are skipped. No setting was chosen by
these results.

    python benchmarks/complete_real.py --seeds 5 --overcomplete 1
"""

import time
import warnings
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval

from gsnn.app.compare import make_splits
from gsnn.app.completion import settings_of
from gsnn.app.settings import Options, settle
from gsnn.data.dataset import RowDataset
from gsnn.data.scaling import Scaling
from gsnn.data.tables import Data, load_data
from gsnn.graph import HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.complete import complete_cv
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.staging import CompletionSettings, Samples, outputs, train_together
from gsnn.optim.verify import verify
from gsnn.stats.baselines import Baseline, baseline
from gsnn.train import fit

OUT = Path(__file__).parent / "results" / "complete_real.csv"
SETS = {"cno_hepatocyte5": (5, [0, 10, 20, 40]), "cno_extliver": (8, [0, 20])}  # folds, budgets
BUDGET = 20

Edge = tuple[str, str]
Split = tuple[np.ndarray, np.ndarray]


def read(name: str) -> Data:
    folder = DATA / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the graph cannot reach is in the data
        return load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")


def pooled(y: np.ndarray, yhat: np.ndarray, splits: list[Split]) -> float:
    left = total = 0.0
    for train, test in splits:
        left += np.nansum((y[test] - yhat[test]) ** 2)
        total += np.nansum((y[test] - np.nanmean(y[train], 0)) ** 2)
    return 1 - left / total


def fed(graph: HeteroGraph, x: np.ndarray, y: np.ndarray) -> list[Edge]:
    """Links from data that the graph has no path for, by the size of t."""
    names = graph.node_names_dict
    into: dict[int, list[str]] = {k: [] for k in range(len(names["input"]))}
    for source, target in graph.edge_index_dict["input", "to", "function"].T.tolist():
        into[source].append(names["function"][target])
    read_by: dict[int, list[str]] = {k: [] for k in range(len(names["output"]))}
    for source, target in graph.edge_index_dict["function", "to", "output"].T.tolist():
        read_by[target].append(names["function"][source])
    between = nx.DiGraph()
    between.add_nodes_from(names["function"])
    ends = graph.edge_index_dict["function", "to", "function"].T.tolist()
    between.add_edges_from((names["function"][s], names["function"][t]) for s, t in ends)
    found: dict[Edge, float] = {}
    for k in range(y.shape[1]):
        there = ~np.isnan(y[:, k])
        design = np.column_stack([np.ones(there.sum()), x[there]])
        inverse = np.linalg.pinv(design.T @ design)
        weights = inverse @ design.T @ y[there, k]
        left = y[there, k] - design @ weights
        freedom = max(1, there.sum() - np.linalg.matrix_rank(design))
        error = np.sqrt(np.diag(inverse).clip(0) * (left @ left) / freedom)
        t = np.abs(weights) / np.maximum(error, 1e-12)
        for i, targets in into.items():
            if len(targets) > 3:  # a context that acts everywhere points at no node
                continue
            for edge in ((u, v) for u in targets for v in read_by[k] if u != v):
                if not nx.has_path(between, *edge):
                    found[edge] = max(found.get(edge, 0.0), float(t[1 + i]))
    return sorted(found, key=lambda edge: (-found[edge], edge))


def strongest(model: GSNN, n_kept: int) -> np.ndarray:
    """(edges,) of the function edges after the first `n_kept`, descending by what they can carry."""
    channels = model.channels
    edges = model.graph.edge_index_dict["function", "to", "function"].shape[1]
    strength = np.zeros(edges)
    block: Any
    for block in model.ResBlocks:
        into = block.lin_in.values.detach()[: edges * channels].view(edges, channels)
        out = block.lin_out.values.detach()[: edges * channels].view(edges, channels)
        strength += (into.norm(dim=1) * out.norm(dim=1)).numpy()
    return n_kept + np.argsort(-strength[n_kept:], kind="stable")


def pruned(graph: HeteroGraph, part: Samples, settings: CompletionSettings, seed: int) -> list[Edge]:
    """The strongest added edges of a network that has all of them."""
    names = graph.node_names_dict["function"]
    ends = graph.edge_index_dict["function", "to", "function"].T.tolist()
    kept = {(names[s], names[t]) for s, t in ends}
    pool = [(u, v) for u in names for v in names if u != v and (u, v) not in kept]
    model = settings.model(graph.with_edges(pool), seed)
    epochs = settings.epochs_of(settings.base_steps, len(part))
    train_together([model], [part], [seed], settings, [epochs], lr=settings.lr, schedule="cosine")
    return [pool[k - len(ends)] for k in strongest(model, len(ends))[:BUDGET]]


def beside(
    by: Baseline, samples: Samples, parts: list[Samples], splits: list[Split], seed: int
) -> np.ndarray:
    """Held-out predictions of ridge regression or an MLP, in the units of the table."""
    yhat = np.full(samples.y.shape, np.nan)
    for part, (_, test) in zip(parts, splits, strict=True):
        scaling = Scaling.of(part.x, part.y)
        inside, aside = part.scaled(scaling), samples.take(test).scaled(scaling)
        found = baseline(
            by, inside.x.double().numpy(), inside.y.double().numpy(), aside.x.double().numpy(), seed
        )
        yhat[test] = scaling.unscale_y(torch.as_tensor(found)).numpy()
    return yhat


def thinned(graph: HeteroGraph, share: float, seed: int) -> tuple[HeteroGraph, list[Edge]]:
    """The graph without a share of its function edges, and these."""
    names = graph.node_names_dict["function"]
    ends = graph.edge_index_dict["function", "to", "function"].T.tolist()
    drawn = np.random.default_rng(seed).permutation(len(ends))[: round(share * len(ends))]
    out = [(names[ends[k][0]], names[ends[k][1]]) for k in sorted(drawn)]
    return graph.without_edges(out), out


def verified(graph: HeteroGraph, data: Data, settings: CompletionSettings, seed: int) -> dict[str, float]:
    """How long 20 candidates take, and how many hold."""
    x, y = data.x.to_numpy(np.float32), data.y.to_numpy(np.float32)
    first = np.random.default_rng(seed).permutation(len(x)) < len(x) // 2
    model = settings.model(graph, seed)
    epochs = settings.final_epochs(int(first.sum()))
    fit(model, x[first], y[first], epochs=epochs, lr=settings.lr, standardize=True, seed=seed, verbose=False)
    rows = RowDataset(model, x[first], y[first])
    inferer = FirstOrderEdgeInferer(model, graph, curvature=True)
    inferer.fit([rows[k : k + 250] for k in range(0, len(rows), 250)], verbose=False)
    candidates = inferer.greedy(BUDGET)
    start = time.perf_counter()
    table = verify(model, graph, candidates, x[~first], y[~first], seed=seed)
    return {"verify_seconds": time.perf_counter() - start, "verified": int(table["verified"].sum())}


def one(name: str, seed: int, overcomplete: bool, share: float) -> list[dict]:
    start = time.perf_counter()
    data = read(name)
    whole = data.graph
    graph, removed = thinned(whole, share, seed) if share else (whole, [])
    folds, budgets = SETS[name]
    options = settle(data, Options(folds=folds, seed=seed))
    splits = make_splits(data.y, data.groups, folds, seed)
    settings = settings_of(options)
    samples = Samples.of(settings.model(graph, seed), data.x, data.y)
    parts = [samples.take(train) for train, _ in splits]
    y = data.y.to_numpy(float)
    baselines: tuple[Baseline, ...] = ("ridge", "mlp")
    others = {by: beside(by, samples, parts, splits, seed) for by in baselines}
    options_of_search: dict[str, Any] = {
        "draws": 1,
        "others": others,
        "seed": seed,
        "settings": settings,
        "verbose": False,
    }
    found = complete_cv(graph, data.x, data.y, budgets, splits, **options_of_search)
    cell = {"data": name, "seed": seed, "without": len(removed)}
    rows: list[dict] = []
    for budget in budgets:
        rows.append(
            {**cell, "budget": budget, "by": "complete", "r2": pooled(y, found.predictions[budget], splits)}
        )
        if budget:
            drawn = [pooled(y, yhat, splits) for yhat in found.controls[budget]]
            rows.append({**cell, "budget": budget, "by": "random", "r2": float(np.mean(drawn))})
    chosen = found.edges["share"]
    rows[0] |= {"chosen": len(chosen), "chosen_in_most_folds": int((chosen >= 0.8).sum())}

    if removed:
        pairs = zip(found.edges["src_func"], found.edges["dst_func"], found.edges["folds"], strict=True)
        rows[0] |= {"put_back": sum(n for s, t, n in pairs if (s, t) in set(removed)) / folds}
    ways = {"feeder": [fed(graph, p.x.numpy(), p.y.numpy())[:BUDGET] for p in parts]}
    if overcomplete:
        ways["overcomplete"] = [pruned(graph, p, settings, seed + k) for k, p in enumerate(parts)]
    if removed:
        ways["whole"] = [removed for _ in parts]
    for by, lists in ways.items():
        yhat = np.full(y.shape, np.nan)
        models = [settings.model(graph.with_edges(edges), seed + k) for k, edges in enumerate(lists)]
        epochs = [settings.final_epochs(len(part)) for part in parts]
        seeds = [seed + k for k in range(len(parts))]
        train_together(models, parts, seeds, settings, epochs, lr=settings.lr, schedule="cosine")
        for model, part, (_, test) in zip(models, parts, splits, strict=True):
            scaling = Scaling.of(part.x, part.y)
            yhat[test] = scaling.unscale_y(outputs(model, samples.take(test).scaled(scaling))).numpy()
        added = float(np.mean([len(edges) for edges in lists]))
        rows.append({**cell, "budget": BUDGET, "by": by, "r2": pooled(y, yhat, splits), "added": added})
    for by, yhat in others.items():
        rows.append({**cell, "budget": 0, "by": by, "r2": pooled(y, yhat, splits)})
    table = found.table.set_index("budget")
    for row in rows:
        if row["by"] in ("complete", "random"):
            row["r2_scaled"] = table.loc[row["budget"], "r2" if row["by"] == "complete" else "random"]
    rows[0] |= {"seconds": time.perf_counter() - start, **verified(graph, data, settings, seed)}
    return rows


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=5)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument(
        "--overcomplete", type=int, default=1, help="for how many seeds every pair is trained"
    )
    parser.add_argument("--without", type=float, default=0.0, help="share of function edges taken out first")
    args = command_line(parser)
    names = at_hand({name: name for name in args.sets})
    if not names:
        return
    cells = [
        (name, seed, k < args.overcomplete, args.without)
        for name in names
        for k, seed in enumerate(seeds_of(args))
    ]
    table = rows_of(one, cells, args.jobs)
    wide = table.pivot_table(index=["data", "seed"], columns=["by", "budget"], values="r2")
    name: Any
    for name, part in wide.groupby(level="data"):
        print(name, "R2 pooled, mean over seeds")
        print(part.mean().round(3).to_string())
        for budget in SETS[name][1][1:]:
            gain = (part["complete", budget] - part["random", budget]).to_numpy()
            print(f"complete - random, {budget} edges: {gain.mean():.3f}", np.round(interval(gain), 3))
    save(pd.DataFrame(table), args.out, 5, threads=1)


if __name__ == "__main__":
    main()
