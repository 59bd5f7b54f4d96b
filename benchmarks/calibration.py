"""Does `verify` hold its promise? Complete graphs, where no edge is missing, and graphs with edges held out.

A network is trained on 2,000 samples, the 20 edges that `FirstOrderEdgeInferer` would add next are verified
on fresh ones. Printed per scenario: on complete graphs the share of runs with any verified edge (at most 5%
is promised); on partial ones the share of the held-out edges among the candidates that are verified
(`power_true`), the share of credible sets (verified edge and its alternatives) with a source that is a true
ancestor of the target (`coverage`), and their median size.

    python benchmarks/calibration.py --seeds 10 --jobs 2
"""

import time
from itertools import product
from pathlib import Path

import networkx as nx
import numpy as np
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import means
from repair import LAYERS, scenario

from gsnn.data.dataset import RowDataset
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.staging import CompletionSettings
from gsnn.optim.verify import verify
from gsnn.train import fit

OUT = Path(__file__).parent / "results" / "calibration.csv"
NAMES = ("tiers12", "dag_linear", "dag_tanh")
CANDIDATES = 20


def one(name: str, seed: int, graph_kind: str, samples: int, noise: str) -> dict:
    truth = scenario(name, seed)
    x, fresh_x, y, fresh_y = truth.sample(2000, samples, 0.15, seed=seed)
    if noise == "uneven":  # grows with the size of the first input
        rng = np.random.default_rng(seed)
        for inputs, outputs in ((x, y), (fresh_x, fresh_y)):
            outputs += 0.5 * np.abs(inputs[:, :1]) * rng.normal(size=outputs.shape)
    graph = truth.full if graph_kind == "complete" else truth.partial
    model = CompletionSettings(layers=LAYERS[name]).model(graph, seed)
    fit(
        model, x, y, epochs=30, lr=1e-3, schedule="constant", standardize=True, seed=seed, verbose=False
    )  # fmt: skip
    rows = RowDataset(model, x, y)
    inferer = FirstOrderEdgeInferer(model, graph)
    inferer.fit([rows[k : k + 250] for k in range(0, len(rows), 250)], verbose=False)
    candidates = inferer.greedy(CANDIDATES)
    start = time.perf_counter()
    table = verify(model, graph, candidates, fresh_x, fresh_y, seed=seed)
    seconds = time.perf_counter() - start
    functions = truth.graph.subgraph(truth.function_nodes)
    above = {node: nx.ancestors(functions, node) for node in functions}
    held_out = [
        edge in set(truth.held_out) for edge in zip(table["src_func"], table["dst_func"], strict=True)
    ]
    sets = [
        {row.src_func, *(source for source, _ in row.alternatives)}
        for row in table[table["verified"]].itertuples()
    ]
    covered = [
        bool(found & above[target])
        for found, target in zip(sets, table.loc[table["verified"], "dst_func"], strict=True)
    ]
    true = table["verified"].to_numpy()[held_out]
    return {
        "scenario": name, "seed": seed, "graph": graph_kind, "samples": samples, "noise": noise,
        "verified": int(table["verified"].sum()), "any": bool(table["verified"].any()),
        "power_true": true.mean() if len(true) else np.nan,
        "coverage": np.mean(covered) if covered else np.nan,
        "set_size": np.median([len(found) for found in sets]) if sets else np.nan,
        "gain": table["gain"].mean(), "placebo_gain": table["placebo_gain"].mean(), "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=10)
    parser.add_argument("--scenarios", nargs="+", default=list(NAMES), choices=list(LAYERS))
    parser.add_argument("--samples", nargs="+", type=int, default=[500, 2000])
    parser.add_argument("--noise", nargs="+", default=["even", "uneven"])
    parser.add_argument("--graphs", nargs="+", default=["complete", "partial"])
    args = command_line(parser)
    cells = product(args.scenarios, seeds_of(args), args.graphs, args.samples, args.noise)
    rows = rows_of(one, cells, args.jobs)
    for key, part in rows.groupby(["graph", "scenario", "samples", "noise"], sort=False):
        found = ("verified", "power_true", "coverage", "set_size") if key[0] == "partial" else ()
        print(*key, f"any verified in {part['any'].sum()} of {len(part)} runs;", means(part, found, ".2f"))
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
