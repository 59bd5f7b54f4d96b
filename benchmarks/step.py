"""Cost of one training step (forward, loss, backward) against gather / index_add_ networks.

All networks hold the same weights on the same random graph and are timed in one process, turn by
turn, on one thread unless told otherwise; the fastest of the repeats counts. ``gather`` keeps samples
innermost, so that whole rows are gathered and added, which makes it the faster of the two;
``batch_first`` is the usual layout, (B, edges). Peak memory is the highest sum of live tensor bytes
during a step above what was live before it.

    python benchmarks/step.py --out benchmarks/results/step.csv
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from _stamp import stamp

from gsnn.models.GSNN import GSNN

SIZES = ((50, 87, 8, 64, 6), (300, 1500, 8, 64, 6), (1000, 8000, 16, 64, 4), (3000, 20000, 16, 64, 4))


class GatherNetwork(torch.nn.Module):
    """The same mathematics with one message per weight: gather, multiply, ``index_add_``."""

    def __init__(self, model: GSNN) -> None:
        super().__init__()
        self.channels, self.layers = model.channels, model.layers
        self.n_function = len(model.graph.node_names_dict["function"])
        self.n_edges, self.norm = model.edge_index.shape[1], model.norm
        self.blocks = torch.nn.ModuleList(model.ResBlocks)
        source, target = model.edge_index
        self.fed = model.input_edge_mask.nonzero().flatten()
        self.fed_by = source[self.fed] - self.n_function
        self.read = model.output_edge_mask.nonzero().flatten()
        self.read_by = target[self.read] - int(model.output_node_mask.nonzero()[0])
        self.n_output = int(model.output_node_mask.sum())
        self.degree = torch.bincount(self.read_by, minlength=self.n_output).clamp(min=1).float()

    def product(self, linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        messages = x.index_select(0, linear.indices[0]) * linear.values.unsqueeze(1)
        result = x.new_zeros(linear.M, x.shape[1]).index_add_(0, linear.indices[1], messages)
        return result + linear.bias.unsqueeze(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(self.n_edges, len(x)).index_copy(0, self.fed, x.t().index_select(0, self.fed_by))
        for block in self.blocks:
            z = self.product(block.lin_in, state).view(self.n_function, self.channels, -1)
            z = z - z.mean(1, keepdim=True)
            z = z * (z.square().mean(1, keepdim=True) + 1e-5).rsqrt()
            z = z * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)
            z = block.nonlin(z).flatten(0, 1)
            state = self.product(block.lin_out, z) + block.residual_weight.relu() * state
        outputs = state.new_zeros(self.n_output, len(x)).index_add_(
            0, self.read_by, state.index_select(0, self.read)
        )
        return outputs.t() / self.degree.sqrt() / self.layers**0.5


class BatchFirstNetwork(GatherNetwork):
    """The same with samples outermost, which lets PyTorch's own layer norm do the norm."""

    def product(self, linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        messages = x.index_select(1, linear.indices[0]) * linear.values
        result = x.new_zeros(len(x), linear.M).index_add_(1, linear.indices[1], messages)
        return result + linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), self.n_edges).index_copy(1, self.fed, x.index_select(1, self.fed_by))
        for block in self.blocks:
            z = self.product(block.lin_in, state).view(len(x), self.n_function, self.channels)
            z = torch.nn.functional.layer_norm(z, (self.channels,))
            z = z * block.norm.weight.view(-1, 1) + block.norm.bias.view(-1, 1)
            z = block.nonlin(z).flatten(1)
            state = self.product(block.lin_out, z) + block.residual_weight.relu() * state
        outputs = state.new_zeros(len(x), self.n_output).index_add_(
            1, self.read_by, state.index_select(1, self.read)
        )
        return outputs / self.degree.sqrt() / self.layers**0.5


def random_model(n: int, edges: int, channels: int, layers: int, seed: int = 0) -> GSNN:
    """N functions, ``edges`` random edges between them, n // 5 inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(n * n, generator=generator)
    pairs = pairs[pairs // n != pairs % n][:edges]
    side = max(n // 5, 1)
    every = torch.arange(side)
    edge_index_dict = {
        ("function", "to", "function"): torch.stack([pairs // n, pairs % n]),
        ("input", "to", "function"): torch.stack([every, torch.randperm(n, generator=generator)[:side]]),
        ("function", "to", "output"): torch.stack([torch.randperm(n, generator=generator)[:side], every]),
    }
    names = {
        kind: [f"{kind}{k}" for k in range(n if kind == "function" else side)]
        for kind in ("input", "function", "output")
    }
    torch.manual_seed(seed)
    return GSNN(edge_index_dict, names, channels, layers, share_layers=False)


def step(
    network: torch.nn.Module, parameters: list[torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor
) -> None:
    for parameter in parameters:
        parameter.grad = None
    torch.nn.functional.mse_loss(network(x), y).backward()


def peak_bytes(
    network: torch.nn.Module, parameters: list[torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor
) -> int:
    """Highest live tensor memory during a step, above the start."""
    for parameter in parameters:
        parameter.grad = None
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step(network, parameters, x, y)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profile.export_chrome_trace(path)
        with open(path) as file:
            events = json.load(file)["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    live = highest = 0
    for _, change in changes:
        live += change
        highest = max(highest, live)
    return highest


def measure(size: tuple[int, int, int, int, int], repeats: int) -> dict[str, float]:
    n, edges, channels, samples, layers = size
    model = random_model(n, edges, channels, layers)
    networks = {
        "gsnn": model,
        "gather": GatherNetwork(model),
        "batch_first": BatchFirstNetwork(model),
    }
    x = torch.randn(samples, int(model.input_node_mask.sum()))
    y = torch.randn(samples, int(model.output_node_mask.sum()))
    with torch.no_grad():
        for network in networks.values():
            torch.testing.assert_close(model(x), network(x), rtol=1e-3, atol=1e-4)
    parameters = list(model.parameters())  # the same in both
    best = dict.fromkeys(networks, float("inf"))
    # Steps of a millisecond come ten in a row, as in training, where one network has the caches.
    burst = 10 if n < 1000 else 1
    for turn in range(repeats + 1):
        for name, network in networks.items():
            for _ in range(burst):
                start = time.perf_counter()
                step(network, parameters, x, y)
                if turn:
                    best[name] = min(best[name], time.perf_counter() - start)
    memory = {name: peak_bytes(network, parameters, x, y) for name, network in networks.items()}
    return {
        "N": n,
        "E": edges,
        "C": channels,
        "B": samples,
        "L": layers,
        **{f"{name}_ms": seconds * 1e3 for name, seconds in best.items()},
        "speedup": best["gather"] / best["gsnn"],
        "speedup_batch_first": best["batch_first"] / best["gsnn"],
        **{f"{name}_MiB": size / 2**20 for name, size in memory.items()},
        "memory_ratio": memory["gather"] / memory["gsnn"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = pd.DataFrame([measure(size, arguments.repeats) for size in SIZES]).round(3)
    print(table.to_string(index=False))
    if arguments.out:
        table.assign(**stamp()).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
