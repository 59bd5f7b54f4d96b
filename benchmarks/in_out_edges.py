"""Recovery of held-out input -> function and function -> output edges: AUC, precision, rank in the target.

A share of the edges of one type is held out, a network is trained on the graph without them, and
`InputEdgeInferer` or `OutputEdgeInferer` sees the training samples once. Simulated data come from the whole
graph, those of cno_hepatocyte5 from a laboratory. Negatives are all other pairs of the two node types that
are no kept edge; ranks (`mrr`, `top@1`) leave a target's kept sources out. `random` scores pairs at random.
`target only` gives each pair the mean of its target's `omp` scores, so it knows which node is badly
explained, not by what; its ranks are those of chance. No score sees a held-out edge. Edges of an input that
feeds more than a quarter of the functions (a cell line) are never held out.

    python benchmarks/in_out_edges.py --seeds 20 --jobs 2
"""

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import means

from gsnn.data.dataset import RowDataset
from gsnn.data.tables import load_data
from gsnn.graph import EDGE_TYPES, GraphWarning, HeteroGraph
from gsnn.optim.edge_table import judge_scores
from gsnn.optim.InputEdgeInferer import InputEdgeInferer
from gsnn.optim.OutputEdgeInferer import OutputEdgeInferer
from gsnn.optim.staging import CompletionSettings
from gsnn.simulate.scenarios import Nonlinearity, converging_tiers, random_signed_dag
from gsnn.train import fit

OUT = Path(__file__).parent / "results" / "in_out_edges.csv"
KINDS = {"input": (InputEdgeInferer, EDGE_TYPES[1]), "output": (OutputEdgeInferer, EDGE_TYPES[2])}
LAYERS = {"tiers12": 6, "dag_linear": 8, "dag_tanh": 8, "cno_hepatocyte5": 10}
TRAINING: dict[str, Any] = {"epochs": 30, "lr": 1e-3, "schedule": "constant"}
REAL: dict[str, Any] = {"epochs": 60, "lr": 1e-2, "schedule": "cosine"}
SHARE = 0.3
MOST_TARGETS = 0.25  # an input that feeds a larger share of the functions marks the sample, it has no target
METRICS = ("auc", "average_precision", "mrr", "top@1")


def samples(name: str, seed: int) -> tuple[HeteroGraph, Any, Any]:
    """The whole graph, and data that come from it."""
    if name == "cno_hepatocyte5":
        folder = DATA / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
            data = load_data(
                folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv"
            )
        return data.graph, data.x, data.y
    tiers = name.startswith("tiers")
    truth = converging_tiers(12) if tiers else random_signed_dag(40, 0.3, cast(Nonlinearity, name[4:]), seed)
    return truth.full, *truth.sample(2000, 0, 0.15, seed=seed)[::2]


def marks(graph: HeteroGraph, kind: str) -> np.ndarray:
    """For each source of an edge type whether it is an input that feeds too many functions."""
    source = graph.edge_index_dict[KINDS[kind][1]][0]
    degree = np.bincount(source, minlength=len(graph.node_names_dict[KINDS[kind][1][0]]))
    return (kind == "input") & (degree > MOST_TARGETS * len(graph.node_names_dict["function"]))


def held_out(graph: HeteroGraph, kind: str, seed: int) -> tuple[HeteroGraph, list[tuple[str, str]]]:
    """The graph without a share of the edges of one type, at least one, and their names."""
    etype = KINDS[kind][1]
    index = graph.edge_index_dict[etype]
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~marks(graph, kind)[index[0]]))
    away = np.sort(order[: max(1, int(SHARE * len(order)))])
    rest = np.setdiff1d(np.arange(index.shape[1]), away)
    names = graph.node_names_dict[etype[0]], graph.node_names_dict[etype[2]]
    partial = HeteroGraph({**graph.edge_index_dict, etype: index[:, rest]}, graph.node_names_dict, warn=False)
    return partial, [(names[0][i], names[1][j]) for i, j in index[:, away].T.tolist()]


def one(name: str, kind: str, seed: int) -> list[dict]:
    full, x, y = samples(name, seed)
    graph, edges = held_out(full, kind, seed)
    model = CompletionSettings(layers=LAYERS[name]).model(graph, seed)
    training = REAL if name == "cno_hepatocyte5" else TRAINING
    fit(model, x, y, standardize=True, seed=seed, verbose=False, **training)
    rows = RowDataset(model, x, y)
    inferer = KINDS[kind][0](model, graph)
    inferer.fit([rows[k : k + 250] for k in range(0, len(rows), 250)], verbose=False)
    shape = inferer.kept.shape
    found = {"random": np.random.default_rng(seed).random(shape)}
    for score in ("omp", "whitened", "gradient"):
        table = inferer.evaluate(score=score)
        found[score] = np.full(shape, np.nan)
        found[score][table["src_idx"], table["dst_idx"]] = table["score"]
    found["target only"] = np.broadcast_to(np.nanmean(found["omp"], axis=0), shape)
    done = []
    for method, scores in found.items():
        result = judge_scores(scores, inferer.kept, edges, (1,), filtered=True)
        done.append({
            "scenario": name, "edges": kind, "seed": seed, "method": method, "held_out": len(edges),
            "negatives": result["n_negatives"], **{metric: result[metric] for metric in METRICS},
        })  # fmt: skip
    return done


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=20)
    parser.add_argument("--scenarios", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--edges", nargs="+", default=list(KINDS), choices=list(KINDS))
    args = command_line(parser)
    names = at_hand({name: name if name == "cno_hepatocyte5" else None for name in args.scenarios})
    cells = [(name, kind, seed) for name in names for kind in args.edges for seed in seeds_of(args)]
    rows = rows_of(one, cells, args.jobs)
    for key, part in rows.groupby(["scenario", "edges", "method"], sort=False):
        print(*key, means(part, METRICS))
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
