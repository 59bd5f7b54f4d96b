"""Does completion repair a graph?

Edges are held out of a known graph, as many are added, a network is retrained. Repair is
(MSE_partial - MSE_repaired) / (MSE_partial - MSE_full) on 500 test samples: 0 for the graph with edges held
out, 1 for the true graph, all three trained alike. Edges are chosen by `complete` with the number that was
held out, half of it, and 'auto'; or at random. `precision` is the share of added edges that were held out,
`ancestral` the share whose source is a true ancestor of its target (chance: of all missing pairs).

    python benchmarks/repair.py --seeds 20 --jobs 2
"""

import time
from pathlib import Path

import networkx as nx
import numpy as np
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval

from gsnn.data.scaling import Scaling
from gsnn.optim.complete import complete
from gsnn.optim.staging import CompletionSettings, Samples, loss, trained_anew
from gsnn.simulate.scenarios import Scenario, converging_tiers, cyclic, random_signed_dag

OUT = Path(__file__).parent / "results" / "repair.csv"
LAYERS = {"dag_linear": 8, "dag_tanh": 8, "tiers12": 6, "tiers25": 6, "cyclic20": 8}
TRAINING = {"lr": 1e-3, "epochs": 30}


def scenario(name: str, seed: int) -> Scenario:
    if name.startswith("tiers"):
        return converging_tiers(int(name[5:]))
    if name == "cyclic20":
        return cyclic(20, 0.3, "tanh", seed)
    return random_signed_dag(40, 0.3, name[4:], seed)


def one(name: str, seed: int, budgets: list[str]) -> list[dict]:
    truth = scenario(name, seed)
    x, x_test, y, y_test = truth.sample(2000, 500, 0.15, seed=seed)
    settings = CompletionSettings(layers=LAYERS[name], **TRAINING)
    like = settings.model(truth.partial, seed)
    data, test = Samples.of(like, x, y), Samples.of(like, x_test, y_test)
    scaling = Scaling.of(data.x, data.y)
    scaled = test.scaled(scaling)
    mse = {
        kind: loss(trained_anew(graph, data, scaling, settings, seed), scaled)
        for kind, graph in (("partial", truth.partial), ("full", truth.full))
    }
    true = set(truth.held_out)
    functions = truth.graph.subgraph(truth.function_nodes)
    below = {node: nx.descendants(functions, node) for node in functions}
    kept = set(functions.edges) - true
    pool = [(u, v) for u in functions for v in functions if u != v and (u, v) not in kept]
    chance = {"precision": len(true) / len(pool), "ancestral": np.mean([v in below[u] for u, v in pool])}
    sizes = {"all": len(true), "half": len(true) // 2, "auto": "auto"}
    rows = []
    for budget in budgets:
        start = time.perf_counter()
        found = complete(truth.partial, x, y, sizes[budget], seed=seed, settings=settings, verbose=False)
        seconds = time.perf_counter() - start
        edges = list(zip(found.edges["src_func"], found.edges["dst_func"], strict=True))
        drawn = np.random.default_rng(seed).permutation(len(pool))[: len(edges)]
        for by, added, model in (
            ("complete", edges, found.model),
            ("random", [pool[k] for k in drawn], None),
        ):
            if model is None:
                graph = truth.partial.with_edges(added)
                model = trained_anew(graph, data, scaling, settings, seed)
            after = loss(model, scaled)
            row = {"scenario": name, "seed": seed, "budget": budget, "by": by, "held_out": len(true)}
            row |= {"added": len(added), "repair": (mse["partial"] - after) / (mse["partial"] - mse["full"])}
            row |= {"mse": after, **{f"mse_{kind}": value for kind, value in mse.items()}}
            if added:
                row["precision"] = np.mean([edge in true for edge in added])
                row["ancestral"] = np.mean([v in below[u] for u, v in added])
            rows.append(row | {f"{kind}_chance": value for kind, value in chance.items()})
            rows[-1]["seconds"] = seconds if by == "complete" else np.nan
    return rows


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=20)
    parser.add_argument("--scenarios", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--budgets", nargs="+", default=["all", "half", "auto"])
    args = command_line(parser)
    cells = [(name, seed, args.budgets) for seed in seeds_of(args) for name in args.scenarios]
    rows = rows_of(one, cells, args.jobs)
    for key, part in rows.groupby(["scenario", "budget", "by"], sort=False):
        low, high = interval(part["repair"].to_numpy())
        shares = ", ".join(f"{name} {part[name].mean():.2f}" for name in ("precision", "ancestral"))
        print(*key, f"repair {part['repair'].mean():.3f} [{low:.3f}, {high:.3f}]", shares)
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
