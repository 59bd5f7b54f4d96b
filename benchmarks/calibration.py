"""Does `verify` hold its promise?

Complete graphs, where no edge is missing, and graphs with edges held out. A network is trained on 2,000
samples, and the 20 edges that `FirstOrderEdgeInferer` would add next are verified on fresh ones. Printed per
scenario: on complete graphs how many runs verify any edge (at most 5% are promised); on partial ones

- `power`, the share of the useful candidates that are verified. Useful is what takes away at least 1% of the
  loss, twice the margin, on 1,000 samples more, by `verify` itself.
- `power_true`, the same share of the candidates that are held-out edges
- `coverage`, the share of the credible sets (a verified edge and its alternatives) that hold a held-out edge
  or one whose source is a true ancestor of its target; `coverage_random`, of as many random missing pairs;
  `set_size`, the median of their sizes, `set_most`, of their largest
- `agreement`, for the first `--trained` seeds: the share of candidates that `how='trained'` calls the same,
  and `trained_seconds`, what it took

`uneven` noise grows with the size of the first input. The seeds from 100 on were looked at while `verify` was
written, those below were not.

    python benchmarks/calibration.py --seeds 14
"""

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import means
from repair import LAYERS, scenario

from gsnn.data.dataset import RowDataset
from gsnn.models.GSNN import GSNN
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.staging import CompletionSettings
from gsnn.optim.verify import verify
from gsnn.simulate.scenarios import Scenario
from gsnn.train.side_by_side import fit_side_by_side

OUT = Path(__file__).parent / "results" / "calibration.csv"
NAMES = ("tiers12", "dag_linear", "dag_tanh")
CANDIDATES = 20
USEFUL = 0.01
MORE = 1000


class Case:
    """A scenario with one seed: 2,000 samples to train on, others to verify on, more to know the worth by."""

    def __init__(self, name: str, seed: int, kind: str, samples: int, noise: str) -> None:
        self.name, self.seed, self.kind, self.samples, self.noise = name, seed, kind, samples, noise
        self.truth: Scenario = scenario(name, seed)
        self.graph = self.truth.full if kind == "complete" else self.truth.partial
        x, fresh_x, y, fresh_y = self.truth.sample(2000, samples + MORE, 0.15, seed=seed)
        if noise == "uneven":
            rng = np.random.default_rng(seed)
            for inputs, outputs in ((x, y), (fresh_x, fresh_y)):
                outputs += 0.5 * np.abs(inputs[:, :1]) * rng.normal(size=outputs.shape)
        self.x, self.y = x, y
        self.fresh = fresh_x[:samples], fresh_y[:samples]
        self.more = fresh_x[samples:], fresh_y[samples:]

    def row(self, model: GSNN, really: bool) -> dict:
        rows = RowDataset(model, self.x, self.y)
        inferer = FirstOrderEdgeInferer(model, self.graph)
        inferer.fit([rows[k : k + 250] for k in range(0, len(rows), 250)], verbose=False)
        candidates = inferer.greedy(CANDIDATES)
        start = time.perf_counter()
        table = verify(model, self.graph, candidates, *self.fresh, seed=self.seed)
        verified = table["verified"].to_numpy()
        row = {"scenario": self.name, "seed": self.seed, "graph": self.kind, "samples": self.samples}
        row |= {"noise": self.noise, "seconds": time.perf_counter() - start, "verified": int(verified.sum())}
        row |= {"any": bool(verified.any()), "gain": table["gain"].mean()}
        row |= {"placebo_gain": table["placebo_gain"].mean()}
        if really:
            start = time.perf_counter()
            other = verify(model, self.graph, candidates, *self.fresh, how="trained", seed=self.seed)
            row |= {"agreement": np.mean(other["verified"].to_numpy() == verified)}
            row |= {"verified_trained": int(other["verified"].sum())}
            row |= {"trained_seconds": time.perf_counter() - start}
        return row if self.kind == "complete" else row | self.found(model, candidates, table)

    def found(self, model: GSNN, candidates, table) -> dict:
        """What is right about the verified edges of a partial graph."""
        # alpha=0: alternatives, which take most of the time, are not asked for
        worth = verify(model, self.graph, candidates, *self.more, alpha=0, seed=self.seed)["gain"].to_numpy()
        verified = table["verified"].to_numpy()
        held_out = set(self.truth.held_out)
        true = [edge in held_out for edge in zip(table["src_func"], table["dst_func"], strict=True)]
        functions = self.truth.graph.subgraph(self.truth.function_nodes)
        rng = np.random.default_rng(self.seed)
        kept = set(functions.edges) - held_out
        pool = [(u, v) for u in functions for v in functions if u != v and (u, v) not in kept]
        right = np.array([u in nx.ancestors(functions, v) for u, v in pool])
        said = {edge for edge, yes in zip(pool, right, strict=True) if yes}
        covered, by_chance, sizes = [], [], []
        for row in table[table["verified"]].itertuples():
            edges = {(row.src_func, row.dst_func), *row.alternatives}
            covered.append(bool(edges & said))
            by_chance.append(
                np.mean([rng.choice(right, len(edges), replace=False).any() for _ in range(100)])
            )
            sizes.append(len(edges))
        useful = worth >= USEFUL
        return {
            "useful": int(useful.sum()),
            "power": verified[useful].mean() if useful.any() else np.nan,
            "useless_verified": float(np.mean(worth[verified] < USEFUL)) if verified.any() else np.nan,
            "power_true": verified[true].mean() if any(true) else np.nan,
            "coverage": np.mean(covered) if covered else np.nan,
            "coverage_random": np.mean(by_chance) if covered else np.nan,
            "set_size": np.median(sizes) if sizes else np.nan,
            "set_most": np.max(sizes) if sizes else np.nan,
        }


def cell(name: str, seeds: Sequence[int], kind: str, samples: int, noise: str, really: int) -> list[dict]:
    """The networks of the seeds are trained side by side, with a constant rate, as those of a search are."""
    cases = [Case(name, seed, kind, samples, noise) for seed in seeds]
    models = [CompletionSettings(layers=LAYERS[name]).model(case.graph, case.seed) for case in cases]
    data = [(case.x, case.y) for case in cases]
    options: dict[str, Any] = {
        "epochs": 30,
        "lr": 1e-3,
        "schedule": "constant",
        "standardize": True,
        "verbose": False,
    }
    fit_side_by_side(models, data, seeds=list(seeds), **options)
    return [
        case.row(model, kind == "partial" and k < really)
        for k, (case, model) in enumerate(zip(cases, models, strict=True))
    ]


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=10)
    parser.add_argument("--scenarios", nargs="+", default=list(NAMES), choices=list(LAYERS))
    parser.add_argument("--samples", nargs="+", type=int, default=[500])
    parser.add_argument("--noise", nargs="+", default=["even", "uneven"])
    parser.add_argument("--graphs", nargs="+", default=["complete", "partial"])
    parser.add_argument(
        "--trained", type=int, default=2, help="of how many seeds edges are really trained too"
    )
    args = command_line(parser)
    ways = product(args.graphs, args.scenarios, args.samples, args.noise)
    seeds = list(seeds_of(args))
    cells = [(name, seeds, kind, n, noise, args.trained) for kind, name, n, noise in ways]
    rows = rows_of(cell, cells, args.jobs)
    runs = rows[rows["graph"] == "complete"]
    if len(runs):
        print(f"complete graphs: any edge verified in {runs['any'].sum()} of {len(runs)} runs")
    for key, part in rows.groupby(["graph", "scenario", "samples", "noise"], sort=False):
        seconds = part["seconds"].mean()
        names = rows.columns[rows.columns.get_loc("gain") :]
        print(*key, f"any in {part['any'].sum()} of {len(part)} runs, {seconds:.0f} s;", means(part, names))
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
