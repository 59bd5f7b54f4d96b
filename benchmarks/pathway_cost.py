"""What the pathway regularizer adds to a training step: 1,000 functions, 200 pathways, B = 64.

One step is forward pass, loss, backward pass and Adam, on 8,000 random function edges with C = 16 and L = 4.
The plain step and the regularized ones take turns in one process on one thread; the fastest of the repeats
counts, in CPU seconds of the process, which other processes disturb less than the clock on the wall.
`every_4` is the share added when the loss is taken at every fourth step only.

    python benchmarks/pathway_cost.py
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _networks import random_model
from _script import parser_for, save
from _stamp import command_line

from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer

OUT = Path(__file__).parent / "results" / "pathway_cost.csv"
N, K, B, C, L = 1000, 200, 64, 16, 4


def main() -> None:
    parser = parser_for(__doc__, OUT)
    parser.add_argument("--repeats", type=int, default=100)
    args = command_line(parser)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    variants: dict[tuple[str, int], PathwayLatentRegularizer | None] = {("none", 0): None}
    model = random_model(N, 8000, C, L)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x, y = torch.randn(B, N // 5), torch.randn(B, N // 5)
    for size in (5, 10):
        membership = torch.zeros(K, N)
        order = np.concatenate([rng.permutation(N) for _ in range(K * size // N)])
        membership[torch.arange(K).repeat_interleave(size), torch.tensor(order)] = 1
        for phi in ("mean", "learned", "channel"):
            variants[phi, size] = PathwayLatentRegularizer(model, membership, phi=phi)
    for regularizer in variants.values():
        if regularizer is not None:
            regularizer.disable(model)

    def step(regularizer: PathwayLatentRegularizer | None) -> float:
        if regularizer is not None:
            regularizer.enable(model)
        start = time.process_time()
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        if regularizer is not None:
            loss = loss + sum(regularizer.loss(model))
        loss.backward()
        optimizer.step()
        seconds = time.process_time() - start
        if regularizer is not None:
            regularizer.disable(model)
        return seconds

    seconds = {key: min(step(one) for _ in range(2)) for key, one in variants.items()}
    for _ in range(args.repeats):
        for key, one in variants.items():
            seconds[key] = min(seconds[key], step(one))
    plain = seconds["none", 0]
    rows = [
        {"phi": phi, "pathway_size": size, "memberships": K * size, "ms": 1e3 * s, "overhead": s / plain - 1}
        for (phi, size), s in seconds.items()
    ]
    table = pd.DataFrame(rows).assign(every_4=lambda t: t.overhead / 4)
    print(table.round(3).to_string(index=False))
    save(table, args.out, 4, functions=N, pathways=K, B=B, C=C, L=L)


if __name__ == "__main__":
    main()
