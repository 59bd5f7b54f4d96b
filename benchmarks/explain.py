"""Do explanations say what the network does? Planted paths found, lost when weights are permuted; fidelity.

Planted: one output depends on one of eight inputs, over the only path from it to the output, tanh of it with
noise 0.1; seven decoys reach the output over random wiring that also leads into the path. A trained network
is explained. `input_first` says whether the planted input ranks first, `path_first` whether the path's four
edges are the first four of the table, which is ordered by the spread over samples, `large_first` whether they
are the four of largest magnitude (which edges that carry constants have, too), `path_share` and `large_share`
how many of them are. In `permuted` the entries of
every weight tensor are shuffled, and a good explanation finds nothing (Adebayo et al. 2018, arXiv
1810.03292): chance is 1/8 for the input, about 0 for the path. `completeness` is the relative error of the
sum of the scores.

Fidelity: the subgraph of the planted path's size, and on cno_hepatocyte5 of a tenth of the edges, for three
outputs; beside random sets of as many edges (`random`, mean of 20, and `random_best`), and for permuted
weights.

Speed: integrated gradients of the inputs for 1,000 samples and 15 outputs of a network of 75 functions with
the settings of `gsnn run`, trained for three epochs; `seconds` on one core.

    python benchmarks/explain.py --seeds 20 --jobs 2
"""

import copy
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import means

from gsnn.app.settings import Options, new_model, settle
from gsnn.data.tables import load_data
from gsnn.explain import Subgraph, attribute, subgraph
from gsnn.explain.attribution import Method
from gsnn.graph import EDGE_TYPES, GraphWarning, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.staging import CompletionSettings
from gsnn.simulate.scenarios import random_signed_dag
from gsnn.train import fit

OUT = Path(__file__).parent / "results" / "explain.csv"
WIDTH, TIERS = 8, 3
SAMPLES, NOISE = 500, 0.1
METHODS: tuple[Method, ...] = ("integrated_gradients", "occlusion", "gradient")
OUTPUTS = 3


def planted(seed: int) -> tuple[HeteroGraph, np.ndarray, np.ndarray, str, set[tuple[str, str]]]:
    """A graph, its samples, and the input and the edges of the only path from it to the output."""
    rng = np.random.default_rng(seed)
    names = {
        "input": [f"i{k}" for k in range(WIDTH)],
        "function": [f"{'abc'[tier]}{k}" for tier in range(TIERS) for k in range(WIDTH)],
        "output": ["y"],
    }
    path = rng.integers(WIDTH, size=TIERS)  # its place in each tier
    start = int(rng.integers(WIDTH))
    own = [k + tier * WIDTH for tier, k in enumerate(path)]
    between = list(pairwise(own))
    for tier in range(1, TIERS):
        for k in range(WIDTH):
            # The planted nodes feed the path only; decoys feed anything in the next tier.
            pool = [q for q in range(WIDTH) if q != path[tier - 1]]
            parents = rng.choice(pool, size=int(rng.integers(1, 4)), replace=False)
            between += [(int(q) + (tier - 1) * WIDTH, k + tier * WIDTH) for q in parents]
    others = [k for k in range(WIDTH) if k != path[0]]
    decoys = [k for k in range(WIDTH) if k != start]
    into = [(start, int(path[0]))]
    into += [(i, int(others[n % len(others)])) for n, i in enumerate(decoys)]
    into.append((int(rng.choice(decoys)), int(path[0])))
    last = (TIERS - 1) * WIDTH
    index = {
        EDGE_TYPES[0]: torch.tensor(between).T,
        EDGE_TYPES[1]: torch.tensor(into).T,
        EDGE_TYPES[2]: torch.tensor([[last + k, 0] for k in range(WIDTH)]).T,
    }
    chain = [names["input"][start], *(names["function"][k] for k in own), "y"]
    x = rng.normal(size=(SAMPLES, WIDTH))
    y = np.tanh(x[:, [start]]) + NOISE * rng.normal(size=(SAMPLES, 1))
    return HeteroGraph(index, names, warn=False), x, y, chain[0], set(pairwise(chain))


def permuted(model: GSNN, seed: int) -> GSNN:
    """A copy with the entries of every weight tensor shuffled."""
    other, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in other.parameters():
            flat = param.view(-1)
            flat.copy_(flat[torch.randperm(len(flat), generator=rng)])
    return other


def of_planted(seed: int) -> list[dict]:
    graph, x, y, start, path = planted(seed)
    torch.manual_seed(seed)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=4, layers=5, share_layers=False)
    fit(model, x, y, epochs=40, lr=1e-2, seed=seed, standardize=True, verbose=False)
    rows = []
    for weights, network in (("trained", model), ("permuted", permuted(model, seed))):
        for method in METHODS:
            inputs = attribute(network, x, "y", method=method)
            edges = attribute(network, x, "y", method=method, of="edges")
            edges = edges[edges["source"] != edges["target"]]
            row = {"data": "planted", "seed": seed, "what": method, "weights": weights}
            row["input_first"] = float(inputs["name"][0] == start)
            for by, column in (("path", "spread"), ("large", "magnitude")):
                first = edges.nlargest(len(path), column)
                share = len(set(zip(first["source"], first["target"], strict=True)) & path) / len(path)
                row |= {f"{by}_first": float(share == 1), f"{by}_share": share}
            row["completeness"] = inputs.attrs.get("completeness", {}).get("error", np.nan)
            rows.append(row)
        kept = subgraph(network, x, "y", size=len(path), seed=seed)
        share = len(set(kept.edges) & path) / len(path)
        row = _fidelity("planted", seed, weights, kept)
        rows.append(row | {"path_share": share, "path_first": float(share == 1)})
    return rows


def of_real(name: str, seed: int) -> list[dict]:
    folder = DATA / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    options = settle(data, Options(seed=seed))
    assert isinstance(options.epochs, int)
    model = new_model(data, options, seed)
    fit(
        model, data.x, data.y, epochs=options.epochs, batch_size=options.batch_size, lr=options.lr,
        weight_decay=options.weight_decay, standardize=True, seed=seed, verbose=False,
    )  # fmt: skip
    outputs = np.random.default_rng(seed).permutation(list(data.y.columns))[:OUTPUTS].tolist()
    return [
        _fidelity(name, seed, weights, subgraph(network, data.x, output, share=0.1, seed=seed))
        for output in outputs
        for weights, network in (("trained", model), ("permuted", permuted(model, seed)))
    ]


def _fidelity(data: str, seed: int, weights: str, kept: Subgraph) -> dict:
    return {
        "data": data, "seed": seed, "what": "subgraph", "weights": weights, "edges": len(kept.edges),
        "candidates": kept.candidates, "fidelity": kept.fidelity,
        "random": np.mean(kept.random_fidelity), "random_best": max(kept.random_fidelity),
    }  # fmt: skip


def of_speed(seed: int) -> list[dict]:
    truth = random_signed_dag(75, 0.0, "tanh", seed, n_inputs=15, n_outputs=15)
    x, y = truth.sample(1000, 0, 0.3, seed=seed)[::2]
    model = CompletionSettings(layers=10).model(truth.full, seed)
    fit(model, x, y, epochs=3, standardize=True, seed=seed, verbose=False)
    start = time.perf_counter()
    found = [attribute(model, x, output) for output in truth.output_nodes]
    seconds = time.perf_counter() - start
    worst = max(table.attrs["completeness"]["error"] for table in found)
    row = {"data": "speed", "seed": seed, "what": "integrated_gradients", "weights": "trained"}
    return [row | {"seconds": seconds, "completeness": worst}]


def one(data: str, seed: int) -> list[dict]:
    if data == "speed":
        return of_speed(seed)
    return of_planted(seed) if data == "planted" else of_real(data, seed)


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=20)
    parser.add_argument("--data", nargs="+", default=["planted", "speed", "cno_hepatocyte5"])
    args = command_line(parser)
    names = at_hand({name: None if name in ("planted", "speed") else name for name in args.data})
    table = rows_of(one, [(name, seed) for name in names for seed in seeds_of(args)], args.jobs)
    for key, part in table.groupby(["data", "what", "weights"], sort=False):
        print(*key, means(part, part.columns[4:], ".3g"))
    save(table, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
