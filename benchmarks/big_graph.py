"""Time and memory of big graphs: the plan, a fit over 2,000 samples, the best 50 sources of every target.

The graph is random: each function node gets as many kept parents as chance gives it, a tenth of the nodes
an input each and a tenth an output. Weights are as initialised; what a step of the inferer costs does not
depend on them. Peak RSS is the process's highest so far (resource.getrusage), the libraries' own included;
plans are built in a process of their own, so that their peak is theirs.

    python benchmarks/big_graph.py --threads 2 --out benchmarks/results/big_graph.csv
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _stamp import command_line, stamp

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer

GIB = 2**30


def peak() -> float:
    """Highest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def random_graph(functions: int, edges: int, seed: int = 0) -> HeteroGraph:
    """About `edges` different function -> function edges, and functions / 10 inputs and outputs."""
    rng = np.random.default_rng(seed)
    code = np.unique(rng.integers(functions**2, size=edges))
    source, target = np.divmod(code, functions)
    between = np.stack([source, target])[:, source != target]
    ends = functions // 10
    fed, read = (rng.permutation(functions)[:ends] for _ in range(2))
    index = {
        EDGE_TYPES[0]: torch.from_numpy(between),
        EDGE_TYPES[1]: torch.from_numpy(np.stack([np.arange(ends), fed])),
        EDGE_TYPES[2]: torch.from_numpy(np.stack([read, np.arange(ends)])),
    }
    names = {
        "input": [f"in{k}" for k in range(ends)],
        "function": [f"f{k}" for k in range(functions)],
        "output": [f"out{k}" for k in range(ends)],
    }
    return HeteroGraph(index, names, warn=False)


def timed(rows: list[dict], what: str, call, **facts):
    """`call()`; its time and the peak after it go into `rows` and onto the screen."""
    before, start = peak(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    rows.append({"what": what, "seconds": round(seconds, 2), "peak_gib": round(peak(), 2), **facts})
    rows[-1]["added_gib"] = round(peak() - before, 2)
    print(f"{what:<34} {seconds:8.1f} s   peak {peak():5.2f} GiB (+{peak() - before:.2f})", flush=True)
    return result


def plans(rows: list[dict], functions: int, edges: int) -> None:
    from gsnn.graph.flat import flat_edges
    from gsnn.kernels.plan import Plan

    facts = {"functions": functions, "edges": edges}
    graph = timed(rows, "graph, checked", lambda: random_graph(functions, edges), **facts)
    flat = flat_edges(graph, True)
    sizes = [len(graph.node_names_dict[kind]) for kind in ("function", "input", "output")]
    timed(rows, "plan", lambda: Plan(flat, *sizes), **facts)
    timed(
        rows,
        "model, plan included (C=8, L=2)",
        lambda: GSNN(graph.edge_index_dict, graph.node_names_dict, channels=8, layers=2),
        **facts,
    )


def inference(rows: list[dict], args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = {"functions": args.functions, "edges": args.edges, "samples": args.samples, "device": device}
    graph = random_graph(args.functions, args.edges)
    torch.manual_seed(0)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=8, layers=6).to(device)
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(args.samples, args.functions // 10, generator=rng) for _ in range(2))
    batches = list(zip(x.split(args.batch), y.split(args.batch), strict=True))
    inferer = timed(rows, "inferer", lambda: MagnitudeEdgeInferer(model, graph), **facts)
    timed(rows, "fit", lambda: inferer.fit(batches, verbose=False), **facts)
    for score in args.scores:
        table = timed(
            rows,
            f"evaluate(top_k={args.top_k}, score={score!r})",
            lambda score=score: inferer.evaluate(top_k=args.top_k, score=score),
            **facts,
        )
        print(f"  {len(table):,} rows, {table['corr'].notna().mean():.0%} with a correlation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--plan-edges", type=int, default=1_000_000)
    parser.add_argument("--scores", nargs="+", default=["corr"], choices=["corr", "partial"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=["plans", "inference"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = command_line(parser)
    torch.set_num_threads(args.threads)

    rows: list[dict] = []
    if args.part == "plans":
        plans(rows, args.plan_edges // 10, args.plan_edges)
    elif args.part == "inference":
        inference(rows, args)
    else:
        for part in ("plans", "inference"):
            command = [sys.executable, *sys.argv, "--part", part]
            subprocess.run(command, check=True)
        return
    if args.out:
        table = pd.DataFrame(rows).assign(**stamp())
        if args.part == "inference" and args.out.exists():
            table = pd.concat([pd.read_csv(args.out), table])
        table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
