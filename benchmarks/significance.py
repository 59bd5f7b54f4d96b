"""Do the inferer's p-values say that an edge is missing? GSNNs given the complete graph, where none is.

Each seed trains a GSNN on all true edges, and lets the inferer see 2,000 samples that nobody trained on.
Printed is the share of the pairs that are no edge with p <= 0.05, and with q <= 0.05: 0.05 and about 0 if the
p-values were about missing edges. `permuted` shuffles the outputs of those samples, each by itself, so that
nothing is left to explain: but gradients still depend on the inputs, by what the model predicts.

    python benchmarks/significance.py --seeds 10 --jobs 2
"""

from itertools import product
from pathlib import Path

import _scenarios
import numpy as np
import torch
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.magnitudes import MagnitudeScore
from gsnn.simulate.scenarios import converging_tiers, random_signed_dag
from gsnn.stats.moments import LayerAgg

OUT = Path(__file__).parent / "results" / "significance.csv"
SCORES: tuple[MagnitudeScore, ...] = ("corr", "partial")
LAYER_AGGS: tuple[LayerAgg, ...] = ("mean", "max")
SCENARIOS = ("tiers12", "dag_linear")


def one(name: str, seed: int) -> list[dict]:
    recipe = _scenarios.RECIPES[name]
    if name == "tiers12":
        scenario = converging_tiers(recipe["width"])
    else:
        scenario = random_signed_dag(recipe["n_functions"], recipe["share"], recipe["nonlinearity"], seed)
    sample = scenario.sample(2000, 2000, recipe["noise"], seed=seed)
    mean, sd = sample[2].mean(0), sample[2].std(0)
    scaled = (*sample[:2], *((part - mean) / sd for part in sample[2:]))
    x, fresh_x, y, fresh_y = (torch.tensor(part, dtype=torch.float32) for part in scaled)
    torch.manual_seed(seed)
    graph = scenario.full
    model = _scenarios.network(graph, recipe)
    loader = DataLoader(TensorDataset(x, y), batch_size=recipe["batch_size"], shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    for _ in range(recipe["epochs"]):
        for xb, yb in loader:
            optimizer.zero_grad()
            mse_loss(model(xb), yb).backward()
            optimizer.step()
    shuffled = torch.stack([column[torch.randperm(len(column))] for column in fresh_y.T], 1)
    rows = []
    for targets, outputs in (("measured", fresh_y), ("permuted", shuffled)):
        inferer = MagnitudeEdgeInferer(model, graph)
        inferer.fit(list(zip(fresh_x.split(250), outputs.split(250), strict=True)), verbose=False)
        for score, layer_agg in product(SCORES, LAYER_AGGS):
            table = inferer.evaluate(score=score, layer_agg=layer_agg)
            missing = table[~table["has_edge"] & table["p_value"].notna()]
            row = {"scenario": name, "seed": seed, "outputs": targets, "score": score, "layer_agg": layer_agg}
            row |= {f"{kind}05": float(np.mean(missing[f"{kind}_value"] <= 0.05)) for kind in ("p", "q")}
            rows.append(row)
    return rows


def main() -> None:
    args = command_line(parser_for(__doc__, OUT, seeds=10))
    cells = [(name, seed) for seed in seeds_of(args) for name in SCENARIOS]
    rows = rows_of(one, cells, args.jobs)
    for key, part in rows.groupby(["scenario", "outputs", "score", "layer_agg"], sort=False):
        shares = "; ".join(
            "{}: {:.3f} [{:.3f}, {:.3f}]".format(name, part[name].mean(), *interval(part[name].to_numpy()))
            for name in ("p05", "q05")
        )
        print(*key, shares)
    save(rows, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
