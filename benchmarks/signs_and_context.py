"""What `edge_signs='respect'` and `context=` change: R2 on held-out samples, derivatives of the wrong sign.

Simulated: random signed DAGs of 20 functions whose signs are known, few training samples. `wrong` is the
share of derivatives of an output by an input, over test samples and over the pairs whose paths in the graph
all have one sign, that have the other; `swapped` is `respect` with every sign drawn anew, which must cost.
Real: cno_hepatocyte5, folds at random or one cell line held out at a time (`leave`). `line edges` is the
network as given, in which each line is an input with an edge to every function, and `respect` the same with
its signs; `gates` has the lines as a context instead of edges, `both` has both, `none` neither. R2 is pooled,
0 = the mean of the training samples.

    python benchmarks/signs_and_context.py --seeds 10 --jobs 2
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval

from gsnn.app.compare import make_splits
from gsnn.app.settings import Options, settle
from gsnn.data.tables import load_data
from gsnn.graph import EDGE_TYPES, GraphWarning, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import Scenario, random_signed_dag
from gsnn.train import fit, fit_side_by_side, predict

OUT = Path(__file__).parent / "results" / "signs_and_context.csv"
SIZES = (50, 100, 300)
REAL = "cno_hepatocyte5"
LINE = "IN__line_"


def one(data: str, seed: int, epochs: int | None) -> list[dict]:
    return simulated(seed) if data == "dag" else real(data, seed, epochs)


def simulated(seed: int) -> list[dict]:
    truth = random_signed_dag(20, 0.0, "tanh", seed, n_inputs=5, n_outputs=6)
    x, x_test, y, y_test = truth.sample(max(SIZES), 500, 0.3, seed=seed)
    rng = np.random.default_rng(seed)
    signs: dict[str, Mapping[tuple[str, str], int]] = {
        "respect": truth.signed_edges,
        "swapped": {edge: int(rng.choice([-1, 1])) for edge in truth.signed_edges},
    }
    rows = []
    for n in SIZES:
        for setting in ("free", *signs):
            graph = signed(truth, signs.get(setting, truth.signed_edges))
            torch.manual_seed(seed)
            model = GSNN(
                graph.edge_index_dict, graph.node_names_dict, channels=6, layers=8, share_layers=False,
                norm="none", edge_signs="free" if setting == "free" else "respect",
                edge_weight_dict=graph.edge_weight_dict,
            )  # fmt: skip
            epochs = min(200, 60 * 300 // n)
            fit(model, x[:n], y[:n], epochs=epochs, lr=5e-3, standardize=True, seed=seed, verbose=False)
            error = np.square(predict(model, x_test) - y_test).sum()
            r2 = 1 - error / np.square(y_test - y[:n].mean(0)).sum()
            rows.append({
                "data": "dag", "seed": seed, "setting": setting, "samples": n,
                "r2": r2, "wrong": wrong(model, truth, x_test),
            })  # fmt: skip
    return rows


def signed(truth: Scenario, signs: Mapping[tuple[str, str], int]) -> HeteroGraph:
    G = nx.DiGraph(truth.graph)
    nx.set_edge_attributes(G, {edge: {"weight": sign} for edge, sign in signs.items()})
    return HeteroGraph.from_networkx(G)


def wrong(model: GSNN, truth: Scenario, x: np.ndarray) -> float:
    """Share of derivatives against the one sign that all true paths of a pair have."""
    walks = nx.DiGraph()
    for (source, target), sign in truth.signed_edges.items():
        walks.add_edges_from([((source, s), (target, s * sign)) for s in (1, -1)])
    given = torch.tensor(x[:100], dtype=torch.float32, requires_grad=True)
    outputs = model.eval()(given)
    against = []
    for column, target in enumerate(truth.output_nodes):
        (slope,) = torch.autograd.grad(outputs[:, column].sum(), given, retain_graph=True)
        for row, source in enumerate(truth.input_nodes):
            below = nx.descendants(walks, (source, 1))
            signs = [s for s in (1, -1) if (target, s) in below]
            if len(signs) == 1:
                against.append(float((slope[:, row] * signs[0] < 0).float().mean()))
    return float(np.mean(against))


def real(name: str, seed: int, epochs: int | None) -> list[dict]:
    folder = DATA / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    options = settle(data, Options(folds=5, seed=seed, epochs=epochs))
    assert options.layers is not None and isinstance(options.epochs, int)
    lines = [c for c in data.x.columns if c.startswith(LINE)]
    x, y = data.x.to_numpy(), data.y.to_numpy()
    line_of = data.x[lines].to_numpy().argmax(1)
    inputs = data.graph.node_names_dict["input"]
    bare = without_edges_of(data.graph, [inputs.index(line) for line in lines])
    settings: dict[str, tuple[HeteroGraph, dict[str, Any]]] = {
        "line edges": (data.graph, {}),
        "respect": (data.graph, {"edge_signs": "respect", "edge_weight_dict": data.graph.edge_weight_dict}),
        "gates": (bare, {"context": lines}),
        "both": (data.graph, {"context": lines}),
        "none": (bare, {}),
    }
    every = np.arange(len(x))
    splits = {
        "folds": make_splits(data.y, None, options.folds, seed),
        "leave": [(every[line_of != k], every[line_of == k]) for k in range(len(lines))],
    }
    rows = []
    for setting, (graph, more) in settings.items():
        for split, parts in splits.items():
            models = []
            for k in range(len(parts)):
                torch.manual_seed(100 * seed + k)
                models.append(
                    GSNN(
                        graph.edge_index_dict, graph.node_names_dict, channels=options.channels,
                        layers=options.layers, dropout=options.dropout, norm=options.norm, share_layers=False,
                        **more,
                    )
                )  # fmt: skip
            fit_side_by_side(
                models, [(x[train], y[train]) for train, _ in parts], seeds=range(len(parts)),
                epochs=options.epochs, batch_size=options.batch_size, lr=options.lr,
                weight_decay=options.weight_decay, standardize=True, verbose=False,
            )  # fmt: skip
            error = mean = 0.0
            for model, (train, test) in zip(models, parts, strict=True):
                error += np.nansum(np.square(predict(model, x[test]) - y[test]))
                mean += np.nansum(np.square(np.nanmean(y[train], axis=0) - y[test]))
            row = {"data": f"{name}, {split}", "seed": seed, "setting": setting, "samples": len(x)}
            rows.append({**row, "r2": 1 - error / mean, "wrong": np.nan})
    return rows


def without_edges_of(graph: HeteroGraph, inputs: list[int]) -> HeteroGraph:
    """The graph without the edges out of some inputs, by their places."""
    index = dict(graph.edge_index_dict)
    fed = index[EDGE_TYPES[1]]
    index[EDGE_TYPES[1]] = fed[:, ~torch.isin(fed[0], torch.tensor(inputs))]
    return HeteroGraph(index, graph.node_names_dict, warn=False)


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=10)
    parser.add_argument("--data", nargs="+", default=["dag", REAL], choices=["dag", REAL])
    parser.add_argument("--epochs", type=int, help="of the real set; by default those of gsnn run")
    args = command_line(parser)
    names = at_hand({name: None if name == "dag" else name for name in args.data})
    cells = [(name, seed, args.epochs) for name in names for seed in seeds_of(args)]
    table = rows_of(one, cells, args.jobs)
    for key, part in table.groupby(["data", "samples", "setting"], sort=False):
        low, high = interval(part["r2"].to_numpy())
        print(*key, f"R2 {part['r2'].mean():.3f} [{low:.3f}, {high:.3f}], wrong {part['wrong'].mean():.3f}")
    save(table, args.out, 5, threads=1, epochs=args.epochs or "default")


if __name__ == "__main__":
    main()
