"""Default settings beside suggested ones and a search, by nested validation on public sets of every size.

Every method sees the same outer folds (groups whole), and whatever it chooses it chooses inside the training
fold: `auto` the number of epochs, `nested` the best of some random candidates of `gsnn.suggest`'s grid by
three inner folds. `suggested` looks at the sizes of graph and tables only. Ridge regression, an MLP and the
mean of the training fold see the inputs without the graph. R2 is pooled over outputs and folds, 0 = the mean
of the training fold; `r2_median` is the median over outputs. `chosen` has what was chosen in each fold.

The data are read from the folder GSNN_DATA (default: shared/data beside the repository); sets that are not
there are skipped. DREAM4 has one input a gene: 1 knocked out, .5 knocked down.

    python benchmarks/defaults.py --seeds 3 --jobs 2
    python benchmarks/defaults.py --sets dream4_10 --seeds 1 --candidates 4 --add
"""

import argparse
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from _scenarios import DATA, at_hand
from _stamp import command_line, stamp
from joblib import Parallel, delayed
from sklearn.model_selection import GroupKFold, KFold, RandomizedSearchCV

from gsnn import GSNNRegressor, HeteroGraph, suggest
from gsnn.data.tables import load_data
from gsnn.graph import GraphWarning
from gsnn.io import replacing
from gsnn.stats.baselines import Baseline, baseline, r2

OUT = Path(__file__).parent / "results" / "defaults.csv"
FOLDERS = {
    "toy_mmb": "toy_mmb",
    "dream4_10": "dream4/size10_1",
    "cno_extliver": "cno_extliver",
    "cellbox": "cellbox",
    "lembas_ligand": "lembas_ligand",
    "dream4_100": "dream4/size100_1",
    "cno_hepatocyte5": "cno_hepatocyte5",
}
METHODS = ("mean", "ridge", "mlp", "default", "auto", "suggested", "nested")
SEARCHED = ("channels", "layers", "epochs", "lr", "weight_decay", "dropout")


@dataclass(frozen=True)
class Task:
    """A set: graph, tables, and a label for samples that must stay together, or None."""

    graph: HeteroGraph
    x: pd.DataFrame
    y: pd.DataFrame
    groups: np.ndarray | None


def read(name: str) -> Task:
    folder = DATA / FOLDERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        if name.startswith("dream4"):
            return one_input_a_gene(folder)
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    groups = data.x.index.str.removesuffix("_LPS").to_numpy() if name == "lembas_ligand" else None
    return Task(data.graph, data.x, data.y, groups)


def one_input_a_gene(folder: Path) -> Task:
    x, y, edges, nodes = (
        pd.read_csv(folder / f"{table}.tsv", sep="\t", index_col=0 if table in "XY" else None)
        for table in ("X", "Y", "edges", "nodes")
    )
    out = x.filter(like="IN__ko_").rename(columns=lambda c: c.replace("IN__ko_", "IN__"))
    down = x.filter(like="IN__kd_").rename(columns=lambda c: c.replace("IN__kd_", "IN__"))
    edges = edges[~edges["source"].str.startswith("IN__kd_")]
    edges = edges.assign(source=edges["source"].str.replace("IN__ko_", "IN__"))
    of_type = nodes.set_index("node")["type"]
    graph = HeteroGraph.from_edge_table(
        edges[["source", "target", "sign"]],
        input_nodes=list(out.columns),
        function_nodes=list(of_type.index[of_type == "function"]),
        output_nodes=list(y.columns),
    )
    return Task(graph, out + 0.5 * down[out.columns], y, None)


def folds_of(task: Task, rows: np.ndarray, k: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, test) positions within ``rows``."""
    if task.groups is None:
        return list(KFold(min(k, len(rows)), shuffle=True, random_state=seed).split(rows))
    return list(GroupKFold(k, shuffle=True, random_state=seed).split(rows, groups=task.groups[rows]))


def predicted(method: str, task: Task, train: np.ndarray, test: np.ndarray, seed: int, candidates: int):
    """Predictions for the test rows, and what was chosen."""
    x, y = task.x.iloc[train], task.y.iloc[train]
    x_test = task.x.iloc[test]
    groups = None if task.groups is None else task.groups[train]
    if method == "mean":
        return np.tile(np.nanmean(y.to_numpy(), axis=0), (len(test), 1)), {}
    if method in ("ridge", "mlp"):
        return baseline(cast(Baseline, method), x.to_numpy(), y.to_numpy(), x_test.to_numpy(), seed), {}
    model = GSNNRegressor(task.graph, random_state=seed)
    if method == "default":
        return model.fit(x, y).predict(x_test), {}
    if method == "auto":
        model.set_params(epochs="auto").fit(x, y, groups=groups)
        return model.predict(x_test), {"epochs": model.epochs_}
    suggestion = suggest(task.graph, x, y)
    model.set_params(**suggestion.settings)
    if method == "suggested":
        return model.fit(x, y).predict(x_test), suggestion.settings
    search = RandomizedSearchCV(
        model.set_params(n_members=1),
        {name: suggestion.grid[name] for name in SEARCHED},
        n_iter=candidates,
        cv=folds_of(task, train, 3, seed),
        random_state=seed,
    ).fit(x, y)
    return search.predict(x_test), search.best_params_


def one(name: str, method: str, seed: int, folds: int, candidates: int) -> dict:
    torch.set_num_threads(1)
    task = read(name)
    y, everything = task.y.to_numpy(), np.arange(len(task.y))
    yhat, mean, chosen = np.full(y.shape, np.nan), np.full(y.shape, np.nan), []
    start = time.perf_counter()
    for train, test in folds_of(task, everything, folds, seed):
        yhat[test], found = predicted(method, task, train, test, seed, candidates)
        mean[test] = np.nanmean(y[train], axis=0)
        chosen.append(found)
    each = [r2(y[:, j], yhat[:, j], mean[:, j]) for j in range(y.shape[1])]
    row = {"data": name, "method": method, "seed": seed, "samples": len(y), "inputs": task.x.shape[1]}
    row |= {"folds": folds, "candidates": candidates if method == "nested" else 0}
    scores = {"r2": r2(y, yhat, mean), "r2_median": float(np.nanmedian(each))}
    seconds = round(time.perf_counter() - start, 1)
    return {**row, **scores, "seconds": seconds, "chosen": json.dumps(chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--add", action="store_true", help="keep what --out has of other sets, methods, seeds"
    )
    args = command_line(parser)
    names = at_hand({name: FOLDERS[name] for name in args.sets})
    if not names:
        return
    cells = [(n, m, seed) for n in names for m in args.methods for seed in range(args.seeds)]
    rows = Parallel(n_jobs=args.jobs)(delayed(one)(*cell, args.folds, args.candidates) for cell in cells)
    table = pd.DataFrame(rows)
    shown = table.groupby(["data", "method"], sort=False)[["r2", "r2_median", "seconds"]]
    print(shown.agg(["mean", "min", "max"]).round(3).to_string())
    args.out.parent.mkdir(exist_ok=True)
    table = table.round(5).assign(**{**stamp(), "threads": 1})
    if args.add and args.out.exists():
        cell = ["data", "method", "seed"]
        table = pd.concat([pd.read_csv(args.out), table]).drop_duplicates(cell, keep="last")
        table = table.sort_values(cell, kind="stable")
    with replacing(args.out) as tmp:
        table.to_csv(tmp, index=False)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
