"""Cost of one training step (forward, loss, backward) against the usual ways to compute a GSNN.

All networks hold the same parameters on the same random graph (`_networks.py` says what they are) and
are timed in one process, turn by turn; the fastest of the repeats counts. Peak memory is the highest sum
of live tensor bytes during a step above what was live before it.

The roofline is the larger of two times: the bytes that the mathematics must read or write (of each block
the state before and after, both gradients of the state, weights and their gradients, once each; captures
and activations can stay in cache) over the copy bandwidth into a buffer that exists, and the
multiplications and additions of the products over the rate of a dense matrix product, both measured in the
same run. The share is that time over the time taken.

With more than one thread, OpenMP's threads are told to sleep while they wait (OMP_WAIT_POLICY): else those of
PyTorch's own operations keep the processors busy between them.

    python benchmarks/step.py --out benchmarks/results/step.csv
    python benchmarks/step.py --against none --threads 2 --out benchmarks/results/step_two_threads.csv
    python benchmarks/step.py --device cuda --dtype bfloat16 --out benchmarks/results/step_cuda_bf16.csv
    python benchmarks/step.py --scaling benchmarks/results/step_scaling.csv   # cost against E, with a figure
"""

import json
import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _networks import baselines, random_model
from _script import parser_for, save
from _stamp import command_line

from gsnn.graph import HeteroGraph
from gsnn.kernels import compiled as native
from gsnn.models.GSNN import GSNN

SIZES = (
    (50, 87, 8, 64, 6),
    (300, 1500, 8, 64, 6),
    (1000, 8000, 16, 64, 4),
    (1000, 8000, 16, 256, 4),
    (3000, 20000, 16, 64, 4),
    (5000, 50000, 16, 64, 4),
)
SCALING_EDGES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
#: Gathering a million edges needs tens of GiB.
SCALING_LARGEST = {
    "gather": 300_000,
    "batch_first": 300_000,
    "scatter": 300_000,
    "pyg": 100_000,
    "csr": 1_000_000,
}
FOLDER = Path(os.environ.get("GSNN_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


class Clock:
    """Seconds that a call takes; by events on a GPU, where a launch returns before its kernel has run."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __call__(self, run: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        start_event, stop_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        run()
        stop_event.record()
        torch.cuda.synchronize()
        return start_event.elapsed_time(stop_event) / 1e3


def omnipath_model() -> GSNN | None:
    """The OmniPath network of ``lembas_ligand``, where the data folder is."""
    folder = FOLDER / "lembas_ligand"
    if not folder.exists():
        return None
    graph = HeteroGraph.from_tsv(folder / "edges.tsv", folder / "nodes.tsv")
    torch.manual_seed(0)
    return GSNN(graph.edge_index_dict, graph.node_names_dict, channels=16, layers=10, share_layers=False)


def step(
    network: torch.nn.Module, parameters: list[torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor
) -> None:
    for parameter in parameters:
        parameter.grad = None
    torch.nn.functional.mse_loss(network(x), y).backward()


def forward(network: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        network(x)


def peak_bytes(
    network: torch.nn.Module, parameters: list[torch.nn.Parameter], x: torch.Tensor, y: torch.Tensor
) -> int:
    """Highest live tensor memory during a step, above the start."""
    for parameter in parameters:
        parameter.grad = None
    pooled, native._POOLED = native._POOLED, 2**62  # recycled memory would not be seen
    try:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            step(network, parameters, x, y)
    finally:
        native._POOLED = pooled
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


def machine(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes and operations per second: copying into a buffer that exists, and a dense product."""
    clock = Clock(device)
    source = torch.randn(32 << 20, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / min(clock(lambda: target.copy_(source)) for _ in range(10))
    a, b, c = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(3))
    rate = 2 * 2048**3 / min(clock(lambda: torch.mm(a, b, out=c)) for _ in range(10))
    return bandwidth, rate


def necessary(model: GSNN, samples: int, item: int) -> tuple[int, int]:
    """Bytes that a step must move and operations of its products."""
    edges = model.edge_index.shape[1]
    weights = sum(p.numel() for p in model.parameters())  # of all blocks, which do not share them
    blocks: Any = model.ResBlocks
    products = sum(linear.values.numel() for b in blocks for linear in (b.lin_in, b.lin_out))
    # State: read, write; gradient: read, write, and the state once more for the weights' gradients.
    return item * (5 * model.layers * edges * samples + 3 * weights), 3 * 2 * products * samples


def time_turns(
    networks: dict[str, torch.nn.Module],
    run: Callable[[torch.nn.Module], None],
    repeats: int,
    burst: int,
    clock: Clock,
    patience: float = 8.0,
) -> dict[str, float]:
    """Fastest seconds of each, in turns; one that has used up its patience sits the other turns out."""
    best, spent = dict.fromkeys(networks, float("inf")), dict.fromkeys(networks, 0.0)
    for turn in range(repeats + 1):
        for name, network in networks.items():
            for _ in range(burst):
                if turn > 1 and spent[name] > patience:
                    break
                taken = clock(partial(run, network))
                spent[name] += taken
                if turn:
                    best[name] = min(best[name], taken)
    return best


def measure(
    model: GSNN, samples: int, repeats: int, device: torch.device, dtype: torch.dtype, rivals: str
) -> dict[str, float]:
    model = model.to(device)
    networks: dict[str, torch.nn.Module] = {"gsnn": model.to(dtype)}
    if rivals == "compile":
        compiled: Any = torch.compile(model)
        networks["compile"] = compiled
    if rivals == "all" and dtype == torch.float32:
        networks |= {name: network.to(device) for name, network in baselines(model).items()}
    x = torch.randn(samples, int(model.input_node_mask.sum())).to(device, dtype)
    y = torch.randn(samples, int(model.output_node_mask.sum())).to(device, dtype)
    with torch.no_grad():
        for network in networks.values():
            torch.testing.assert_close(model(x), network(x), rtol=1e-3, atol=1e-4)
    parameters = list(model.parameters())  # the same in all
    n = len(model.graph.node_names_dict["function"])
    # Steps of a millisecond come ten in a row, as in training, where one network has the caches.
    burst, clock = (10 if n < 1000 else 1), Clock(device)

    forwards = time_turns(networks, partial(forward, x=x), repeats, burst, clock)
    steps = time_turns(networks, partial(step, parameters=parameters, x=x, y=y), repeats, burst, clock)
    bandwidth, rate = machine(device, dtype)
    moved, operations = necessary(model, samples, x.element_size())
    limit = max(moved / bandwidth, operations / rate)
    others = [seconds for name, seconds in steps.items() if name != "gsnn"]
    row: dict[str, float] = {
        "N": n,
        "E": model.graph.edge_index_dict["function", "to", "function"].shape[1],
        "C": model.channels,
        "B": samples,
        "L": model.layers,
        **{f"{name}_ms": seconds * 1e3 for name, seconds in steps.items()},
        **{f"{name}_forward_ms": seconds * 1e3 for name, seconds in forwards.items()},
        "moved_MB": moved / 1e6,
        "Mflop": operations / 1e6,
        "GB_per_s": bandwidth / 1e9,
        "Gflop_per_s": rate / 1e9,
        "roofline_ms": limit * 1e3,
        "share_of_roofline": limit / steps["gsnn"],
    }
    if others:
        row["speedup_over_best"] = min(others) / steps["gsnn"]
    if "gather" in steps:
        row["speedup"] = steps["gather"] / steps["gsnn"]
    if device.type == "cpu" and "gather" in steps:
        used = {
            name: peak_bytes(network, parameters, x, y)
            for name, network in networks.items()
            if name in ("gsnn", "gather")
        }
        row |= {f"{name}_MiB": size / 2**20 for name, size in used.items()}
        row["memory_ratio"] = used["gather"] / used["gsnn"]
    return row


def scaling(repeats: int) -> pd.DataFrame:
    """Step time of all for 10 edges a function node, C=8, B=32, L=2."""
    rows, clock = [], Clock(torch.device("cpu"))
    for edges in SCALING_EDGES:
        model = random_model(edges // 10, edges, channels=8, layers=2)
        x = torch.randn(32, int(model.input_node_mask.sum()))
        y = torch.randn(32, int(model.output_node_mask.sum()))
        parameters = list(model.parameters())
        networks: dict[str, torch.nn.Module] = {"gsnn": model}
        networks |= {name: n for name, n in baselines(model).items() if edges <= SCALING_LARGEST.get(name, 0)}
        run = partial(step, parameters=parameters, x=x, y=y)
        seconds = time_turns(networks, run, repeats, 1, clock)
        rows.append({"N": edges // 10, "E": edges, **{f"{k}_ms": s * 1e3 for k, s in seconds.items()}})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def draw_scaling(table: pd.DataFrame, path: Path) -> float:
    """Figure of cost against E; the slope of this package's line on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {
        "gsnn": "gsnn",
        "csr": "torch.sparse CSR",
        "scatter": "torch-scatter",
        "pyg": "PyTorch Geometric",
    }
    names |= {"gather": "gather / index_add_", "batch_first": "the same, samples first"}
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ("#000000", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#E69F00")
    for (name, label), colour in zip(names.items(), colours, strict=True):
        if f"{name}_ms" in table:
            axes.loglog(table["E"], table[f"{name}_ms"], marker="o", ms=4, color=colour, label=label)
    axes.set_xlabel("edges between function nodes, E")
    axes.set_ylabel("training step [ms], one thread")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return float(np.polyfit(np.log(table["E"]), np.log(table["gsnn_ms"]), 1)[0])


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sizes", type=int, nargs="*", help="which of the sizes, from 0 on; all by default")
    parser.add_argument(
        "--against",
        choices=("all", "none", "compile"),
        default="all",
        help="compile: torch.compile of the same",
    )
    parser.add_argument("--scaling", type=Path, help="measure cost against E instead: CSV, and PNG beside it")
    arguments = command_line(parser)
    torch.set_num_threads(arguments.threads)
    code: dict[str, Any] = {"native": native.level()}
    if arguments.scaling:
        table = scaling(min(arguments.repeats, 5)).round(3)
        slope = draw_scaling(table, arguments.scaling.with_suffix(".png"))
        print(f"log-log slope of gsnn: {slope:.3f}")
        save(table, arguments.scaling, gsnn_slope=round(slope, 3), **code)
        return
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    rows = []
    for k in arguments.sizes or range(len(SIZES) + 1):
        if k < len(SIZES):
            n, edges, channels, samples, layers = SIZES[k]
            model: GSNN | None = random_model(n, edges, channels, layers)
        else:
            model, samples = omnipath_model(), 64
        if model is None:
            print(f"the OmniPath network is left out: no {FOLDER / 'lembas_ligand'}")
            continue
        rows.append(measure(model, samples, arguments.repeats, device, dtype, arguments.against))
        print(pd.Series(rows[-1]).round(3).to_string(), "\n", flush=True)
    table = pd.DataFrame(rows).round(3)
    save(table, arguments.out, device=str(device), dtype=arguments.dtype, **code)


if __name__ == "__main__":
    main()
