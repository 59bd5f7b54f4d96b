"""What training does to the trace of a missing edge: AUC of five scores by epochs, dropout and weight decay.

While a GSNN trains, the kept parents of a node learn to stand in for the one that is missing, and take its
gradient away. `trace` is how much of the gradient at j goes with the activation of i, mean over the test
edges i -> j: the whitened singular value (see `gsnn.optim.edge_scores`) over the root mean square of ||g_j||,
both means over layer pairs, 0 where no gradient arrives. `background` is the same of all other missing pairs
with these targets. One run of 100 epochs is scored on the way; each other setting is a run of 30 epochs.
Negatives and labels as in `compare_inference.py`.

    python benchmarks/absorption.py --seeds 5 --jobs 2
"""

from pathlib import Path
from typing import Any

import _scenarios
import numpy as np
import pandas as pd
import torch
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from gsnn.models.GSNN import GSNN
from gsnn.optim.edge_scores import edge_scores
from gsnn.optim.edge_table import KeptEdges, judge_scores
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer

OUT = Path(__file__).parent / "results" / "absorption.csv"
SCENARIOS = ("tiers12", "dag_tanh")
CHECKPOINTS = (3, 10, 30, 100)
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 100},
    "dropout 0.2": {"epochs": 30, "dropout": 0.2},
    "dropout 0.5": {"epochs": 30, "dropout": 0.5},
    "weight decay 1": {"epochs": 30, "weight_decay": 1.0},
}


def one(scenario: str, seed: int, setting: str) -> list[dict]:
    recipe = {**_scenarios.RECIPES[scenario], **RUNS[setting]}
    problem, _, test_edges = _scenarios.build(scenario, seed)
    assert problem.y_test is not None
    torch.manual_seed(seed)
    graph = problem.graph
    model = _scenarios.network(graph, recipe)
    data = TensorDataset(problem.x, problem.y)
    loader = DataLoader(data, batch_size=recipe["batch_size"], shuffle=True)
    batches = DataLoader(data, batch_size=256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    rows = []
    for epoch in range(1, recipe["epochs"] + 1):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            optimizer.step()
        if epoch not in (CHECKPOINTS if setting == "plain" else (recipe["epochs"],)):
            continue
        model.eval()
        with torch.no_grad():
            test_mse = float(mse_loss(model(problem.x_test), problem.y_test))
        inferer = MagnitudeEdgeInferer(model, graph)
        inferer.fit(batches, verbose=False)
        found = {}
        for score in ("corr", "partial"):
            found[f"{score}, mean"] = inferer.evaluate_against(test_edges, score=score)
        simple = edge_scores(model, graph, batches, verbose=False)
        for name, column in (("sv of M", "gradient_sv"), ("whitened", "whitened_sv"), ("joint", "joint_sv")):
            found[name] = judge_scores(simple[column], inferer.kept, test_edges)
        row = {"scenario": scenario, "seed": seed, "setting": setting, "epoch": epoch}
        row["test_mse"] = test_mse
        size = gradient_size(model, problem)
        share = np.zeros_like(simple["whitened_sv"])
        np.divide(simple["whitened_sv"], size, out=share, where=size > 0)
        row |= traces(share, inferer.kept, test_edges)
        rows += [{**row, "score": name, "auc": r["auc"], "mrr": r["mrr"]} for name, r in found.items()]
    return rows


def gradient_size(model: GSNN, problem: _scenarios.Problem) -> np.ndarray:
    """(N,) root mean square over samples of ||g_j||, mean over the blocks from the second on."""
    blocks: Any = model.ResBlocks
    for block in blocks:
        block._store_activations = True
    loss = (model(problem.x) - problem.y).square().sum() / problem.y.shape[1]
    z = [block._last_pre_norm_activation for block in blocks[1:]]
    grads = torch.stack(torch.autograd.grad(loss, z)).unflatten(2, (-1, model.channels))  # (P, B, N, C)
    for block in blocks:
        block._store_activations = False
        block._last_pre_norm_activation = block._last_activation = None
    return grads.square().sum(-1).mean(1).sqrt().mean(0).numpy()


def traces(share: np.ndarray, kept: KeptEdges, test_edges: list[_scenarios.Edge]) -> dict[str, float]:
    number = {name: k for k, name in enumerate(kept.names)}
    source, target = np.array([(number[s], number[t]) for s, t in test_edges]).T
    others = ~kept.mask
    np.fill_diagonal(others, False)
    others[source, target] = False
    others[:, np.setdiff1d(np.arange(len(share)), target)] = False
    return {"trace": float(share[source, target].mean()), "background": float(share[others].mean())}


def main() -> None:
    args = command_line(parser_for(__doc__, OUT, seeds=5))
    cells = [(name, seed, setting) for seed in seeds_of(args) for name in SCENARIOS for setting in RUNS]
    rows = rows_of(one, cells, args.jobs)
    rows["setting"] += ", " + rows["epoch"].astype(str) + " epochs"
    lines = []
    for (scenario, setting), part in rows.groupby(["scenario", "setting"], sort=False):
        line: dict[Any, Any] = {"scenario": scenario, "setting": setting}
        line |= {name: f"{part[name].mean():.3f}" for name in ("test_mse", "trace", "background")}
        for score, values in part.groupby("score", sort=False)["auc"]:
            low, high = interval(values.to_numpy())
            line[score] = f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"
        lines.append(line)
    print(pd.DataFrame(lines).to_string(index=False))
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
