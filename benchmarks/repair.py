"""Does completion repair a graph?

Edges are held out of a known graph, as many are added, a network is retrained. Repair is
(MSE_partial - MSE_repaired) / (MSE_partial - MSE_full) on 500 test samples: 0 for the graph with edges held
out, 1 for the true graph, all trained alike. Edges are chosen as `complete` does, with the number that was
held out, half of it, and 'auto'; or at random. `precision` is the share of added edges that were held out,
`ancestral` the share whose source is a true ancestor of its target (chance: of all missing pairs).

Several seeds are trained side by side, which changes rounding only; `seconds` is the time of one call of
`complete` by itself, measured for the first seed of each scenario. 'auto' is that call for every seed, so
`--auto` says for how many.

    python benchmarks/repair.py --seeds 20 --together 10
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import networkx as nx
import numpy as np
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval

from gsnn.data.scaling import Scaling
from gsnn.graph import HeteroGraph
from gsnn.optim.complete import complete
from gsnn.optim.search import Search
from gsnn.optim.staging import CompletionSettings, Samples, loss, stage_sizes, train_together
from gsnn.simulate.scenarios import Nonlinearity, Scenario, converging_tiers, cyclic, random_signed_dag

OUT = Path(__file__).parent / "results" / "repair.csv"
LAYERS = {"dag_linear": 8, "dag_tanh": 8, "tiers12": 6, "tiers25": 6, "cyclic20": 8}
TRAINING: dict[str, Any] = {"lr": 1e-3, "epochs": 30}
STAGES = 8


def scenario(name: str, seed: int) -> Scenario:
    if name.startswith("tiers"):
        return converging_tiers(int(name[5:]))
    if name == "cyclic20":
        return cyclic(20, 0.3, "tanh", seed)
    return random_signed_dag(40, 0.3, cast(Nonlinearity, name[4:]), seed)


class World:
    """A scenario's truth and samples, and what an added edge is worth there."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.truth = scenario(name, seed)
        x, x_test, y, y_test = self.truth.sample(2000, 500, 0.15, seed=seed)
        self.settings = CompletionSettings(layers=LAYERS[name], **TRAINING)
        like = self.settings.model(self.truth.partial, seed)
        self.data, self.test = Samples.of(like, x, y), Samples.of(like, x_test, y_test)
        self.true = set(self.truth.held_out)
        functions = self.truth.graph.subgraph(self.truth.function_nodes)
        self.below = {node: nx.descendants(functions, node) for node in functions}
        kept = set(functions.edges) - self.true
        self.pool = [(u, v) for u in functions for v in functions if u != v and (u, v) not in kept]

    def size(self, budget: str) -> int:
        return len(self.true) if budget == "all" else len(self.true) // 2

    def random(self, k: int) -> list[tuple[str, str]]:
        order = np.random.default_rng(self.seed).permutation(len(self.pool))
        return [self.pool[at] for at in order[:k]]

    def row(self, budget: str, by: str, added: Sequence[tuple[str, str]], mse: dict[str, float]) -> dict:
        gap = mse["partial"] - mse["full"]
        row = {"scenario": self.name, "seed": self.seed, "budget": budget, "by": by}
        row |= {"held_out": len(self.true), "added": len(added)}
        row |= {"repair": (mse["partial"] - mse[by]) / gap, "mse": mse[by]}
        row |= {"mse_partial": mse["partial"], "mse_full": mse["full"]}
        if added:
            row["precision"] = np.mean([edge in self.true for edge in added])
            row["ancestral"] = np.mean([v in self.below[u] for u, v in added])
        row["precision_chance"] = len(self.true) / len(self.pool)
        row["ancestral_chance"] = np.mean([v in self.below[u] for u, v in self.pool])
        return row


def searched(worlds: Sequence[World], budgets: Sequence[str]) -> dict[tuple[int, str], list[tuple[str, str]]]:
    """(world, budget) -> the edges that `complete` chooses."""
    settings = worlds[0].settings
    first = [Search(w.truth.partial, w.data, settings, w.seed, "omp", None, None) for w in worlds]
    _train(first, 0, settings.base_steps)
    found = {}
    for k, world in enumerate(worlds):
        for budget in budgets:
            mine = copy.copy(first[k])
            mine.rows, mine.model = [], copy.deepcopy(first[k].model)
            found[k, budget] = mine, stage_sizes(world.size(budget), STAGES)
    for stage in range(1, STAGES + 1):
        going = [(search, sizes) for search, sizes in found.values() if stage <= len(sizes)]
        for search, sizes in going:
            search.extend(sizes[stage - 1], stage)
        _train([search for search, _ in going], stage, settings.stage_steps)
    return {key: search.edges for key, (search, _) in found.items()}


def _train(searches: Sequence[Search], stage: int, steps: int) -> None:
    settings = CompletionSettings()
    train_together(
        [search.model for search in searches],
        [search.data for search in searches],
        [search.seed + stage for search in searches],
        settings,
        [settings.epochs_of(steps, len(search.data)) for search in searches],
        lr=settings.search_lr,
        schedule="constant",
    )


def losses(wanted: Sequence[tuple[World, HeteroGraph]]) -> list[float]:
    """On the test samples, of a network trained on each graph."""
    settings = wanted[0][0].settings
    models = [settings.model(graph, world.seed) for world, graph in wanted]
    train_together(
        models,
        [world.data for world, _ in wanted],
        [world.seed for world, _ in wanted],
        settings,
        [settings.final_epochs(len(world.data)) for world, _ in wanted],
        lr=settings.lr,
        schedule="cosine",
    )
    return [
        loss(model, world.test.scaled(Scaling.of(world.data.x, world.data.y)))
        for model, (world, _) in zip(models, wanted, strict=True)
    ]


def together(name: str, seeds: Sequence[int], budgets: Sequence[str], n_auto: int, timed: bool) -> list[dict]:
    worlds = [World(name, seed) for seed in seeds]
    lists = {}
    for (k, budget), edges in searched(worlds, budgets).items():
        lists[k, budget, "complete"] = edges
        lists[k, budget, "random"] = worlds[k].random(len(edges))
    seconds = {}
    for k, world in enumerate(worlds):
        sizes = ["auto"] * (k < n_auto) + [world.size(budgets[0])] * (timed and k == 0)
        for size in sizes:
            x, y = world.data.x.numpy(), world.data.y.numpy()
            start = time.perf_counter()
            graph = world.truth.partial
            found = complete(graph, x, y, size, seed=world.seed, settings=world.settings, verbose=False)
            budget = "auto" if size == "auto" else budgets[0]
            seconds[k, budget] = time.perf_counter() - start
            if size == "auto":
                edges = list(zip(found.edges["src_func"], found.edges["dst_func"], strict=True))
                lists[k, budget, "complete"] = edges
                lists[k, budget, "random"] = world.random(len(edges))
    wanted = {
        (k, "", kind): (w, getattr(w.truth, kind))
        for k, w in enumerate(worlds)
        for kind in ("partial", "full")
    }
    for (k, budget, by), edges in lists.items():
        wanted[k, budget, by] = worlds[k], worlds[k].truth.partial.with_edges(edges)
    mse = dict(zip(wanted, losses(list(wanted.values())), strict=True))
    return [
        worlds[k].row(
            budget,
            by,
            edges,
            {by: mse[k, budget, by], "partial": mse[k, "", "partial"], "full": mse[k, "", "full"]},
        )
        | {"seconds": seconds.get((k, budget), np.nan) if by == "complete" else np.nan}
        for (k, budget, by), edges in lists.items()
    ]


def bound(name: str, seed: int) -> float:
    """Repair by the half of the edges that does most where an output is regressed on all inputs reaching it.

    The edges are chosen one by one with the true loss at hand, which no method has.
    """
    truth = scenario(name, seed)
    x, _, y, _ = truth.sample(1000, 10, 0.15, seed=seed)
    x, y = x - x.mean(0), (y - y.mean(0)) / y.std(0)

    def least(graph: nx.DiGraph) -> float:
        total = 0.0
        for j, output in enumerate(truth.output_nodes):
            reached = [i for i, node in enumerate(truth.input_nodes) if nx.has_path(graph, node, output)]
            weights = np.linalg.lstsq(x[:, reached], y[:, j])[0]
            total += float(((y[:, j] - x[:, reached] @ weights) ** 2).mean())
        return total

    graph = nx.DiGraph(truth.graph)
    graph.remove_edges_from(truth.held_out)
    partial, full = least(graph), least(truth.graph)
    pool = [(u, v) for u in truth.function_nodes for v in truth.function_nodes if u != v]
    after = partial
    for _ in range(len(truth.held_out) // 2):
        losses = {}
        for edge in pool:
            if not graph.has_edge(*edge):
                graph.add_edge(*edge)
                losses[edge] = least(graph)
                graph.remove_edge(*edge)
        best = min(losses, key=lambda edge: losses[edge])
        graph.add_edge(*best)
        after = losses[best]
    return (partial - after) / (partial - full)


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=20)
    parser.add_argument("--scenarios", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--budgets", nargs="+", default=["all", "half"], choices=["all", "half"])
    parser.add_argument("--auto", type=int, default=5, help="of how many seeds the budget is 'auto' too")
    parser.add_argument("--together", type=int, default=10, help="seeds that are trained side by side")
    parser.add_argument("--bound", action="store_true", help="only print what half the budget can repair")
    args = command_line(parser)
    if args.bound:
        print(f"tiers12, half the budget: repair at most about {bound('tiers12', 0):.3f}")
        return
    seeds = list(seeds_of(args))
    cells = [
        (name, seeds[k : k + args.together], args.budgets, max(0, args.auto - k), k == 0)
        for name in args.scenarios
        for k in range(0, len(seeds), args.together)
    ]
    rows = rows_of(together, cells, args.jobs)
    for key, part in rows.groupby(["scenario", "budget", "by"], sort=False):
        low, high = interval(part["repair"].to_numpy())
        shares = ", ".join(f"{name} {part[name].mean():.2f}" for name in ("precision", "ancestral"))
        least = f"least {part['repair'].min():.3f}, {len(part)} seeds"
        print(*key, f"repair {part['repair'].mean():.3f} [{low:.3f}, {high:.3f}], {least}, {shares}")
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
