"""What a network costs that is trained beside others, against the same networks one after the other.

The tutorials' size: 24 function nodes, 20 epochs of 1,000 samples, batches of 64, C=8, L=6. `fit` one
network at a time and `fit_side_by_side` take turns, on one thread; the fastest of the repeats counts.
``difference`` is the largest relative one between the last training losses of the two ways.

    python benchmarks/side_by_side.py --out benchmarks/results/side_by_side.csv
"""

import time

import pandas as pd
import torch
from _script import parser_for, save
from _stamp import command_line

from gsnn.kernels import compiled as native
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import fit, fit_side_by_side

OPTIONS = {"epochs": 20, "batch_size": 64, "standardize": True, "verbose": False}


def networks(count: int, norm: str) -> list[GSNN]:
    graph = converging_tiers(width=12).partial
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(GSNN(graph.edge_index_dict, graph.node_names_dict, 8, 6, share_layers=False, norm=norm))
    return models


def turn(count: int, norm: str) -> dict[str, float]:
    """Seconds of both ways on the same networks and samples, and how far apart they end."""
    x, _, y, _ = converging_tiers(width=12).sample(n_train=1000, n_test=0, noise_scale=0.15, seed=0)
    alone, together = networks(count, norm), networks(count, norm)
    start = time.perf_counter()
    first = [fit(model, x, y, seed=seed, **OPTIONS) for seed, model in enumerate(alone)]
    middle = time.perf_counter()
    second = fit_side_by_side(together, [(x, y)] * count, seeds=list(range(count)), **OPTIONS)
    end = time.perf_counter()
    apart = max(abs(b.train_loss[-1] / a.train_loss[-1] - 1) for a, b in zip(first, second, strict=True))
    return {"alone_s": middle - start, "together_s": end - middle, "difference": apart}


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = command_line(parser)
    torch.set_num_threads(1)
    rows = []
    for norm in ("groupbatch", "none", "layer"):
        for count in (1, 2, 5, 16):
            turns = pd.DataFrame([turn(count, norm) for _ in range(arguments.repeats)])
            alone, together = turns["alone_s"].min(), turns["together_s"].min()
            rows.append(
                {
                    "norm": norm,
                    "networks": count,
                    "alone_s": alone,
                    "together_s": together,
                    "cost of one, against alone": together / alone,
                    "difference": turns["difference"].max(),
                }
            )
    table = pd.DataFrame(rows)
    print(table.round(4).to_string(index=False))
    save(table.round(6), arguments.out, native=native.level())


if __name__ == "__main__":
    main()
