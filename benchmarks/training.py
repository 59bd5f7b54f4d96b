"""A whole training run of the tutorials' size against gather / ``index_add_``, optimizer included.

24 function nodes, 30 epochs of 2,000 samples, batches of 64, C=8, L=6, PyTorch's fused AdamW: the
published post hoc setting. The networks (`_networks.py`) start from the same weights and see the same
batches; they are trained in turns, and the fastest of the repeats counts. ``flat`` is the same GSNN with all
its parameters in one tensor, `side_by_side([model])`, so that one update and one gradient take the place of
some forty.

    python benchmarks/training.py --out benchmarks/results/training.csv
"""

import time

import pandas as pd
import torch
from _networks import BatchFirst, Gather
from _script import parser_for, save
from _stamp import command_line

from gsnn.kernels import compiled as native
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import Norm
from gsnn.models.SideBySide import side_by_side
from gsnn.simulate.scenarios import converging_tiers

EPOCHS, BATCH = 30, 64
KINDS = ("gsnn", "flat", "gather", "batch_first")


class Flat(torch.nn.Module):
    """A GSNN with all its parameters in one tensor."""

    def __init__(self, model: GSNN) -> None:
        super().__init__()
        self.one = side_by_side([model])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x).squeeze(1)


def train(kind: str, norm: Norm) -> tuple[float, float]:
    """Seconds of the training loop and the last epoch's mean loss."""
    scenario = converging_tiers(width=12)
    x, _, y, _ = (
        torch.as_tensor(a, dtype=torch.float32)
        for a in scenario.sample(n_train=2000, n_test=500, noise_scale=0.15, seed=0)
    )
    y = (y - y.mean(0)) / y.std(0)
    torch.manual_seed(0)
    graph = scenario.partial
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, 8, 6, share_layers=False, norm=norm)
    makers = {"gsnn": lambda m: m, "flat": Flat, "gather": Gather, "batch_first": BatchFirst}
    network = makers[kind](model)
    parameters = network.parameters() if kind == "flat" else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for _ in range(EPOCHS):
        losses = []
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = torch.nn.functional.mse_loss(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return time.perf_counter() - start, torch.stack(losses).mean().item()


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = command_line(parser)
    torch.set_num_threads(1)
    rows = []
    norms: tuple[Norm, ...] = ("groupbatch", "none", "layer")
    for norm in norms:
        runs = [{kind: train(kind, norm) for kind in KINDS} for _ in range(arguments.repeats)]
        seconds = {kind: min(run[kind][0] for run in runs) for kind in KINDS}
        rows.append(
            {
                "norm": norm,
                **{f"{kind}_s": taken for kind, taken in seconds.items()},
                "speedup": seconds["gather"] / seconds["gsnn"],
                "speedup_flat": seconds["gather"] / seconds["flat"],
                "speedup_batch_first": seconds["batch_first"] / seconds["gsnn"],
                **{f"{kind}_loss": runs[0][kind][1] for kind in KINDS},
            }
        )
    table = pd.DataFrame(rows).round(4)
    print(table.to_string(index=False))
    save(table, arguments.out, native=native.level())


if __name__ == "__main__":
    main()
