"""Time and memory of big graphs: the plan, a fit over 2,000 samples, the best 50 sources of every target.

Also the full tables of 2,000 functions, by the inferer and by the regressor, and first-order scores: the best
50 sources of every target by a screen, and at 400 functions how many of the full table's best 50 it finds.

The graph is random: each function node gets as many kept parents as chance gives it, a tenth of the nodes
an input each and a tenth an output. Weights are as initialised; what a step of the inferer costs does not
depend on them. Peak RSS is the process's highest so far (resource.getrusage), the libraries' own included;
each part is a process of its own, so that its peak is its own.

    python benchmarks/big_graph.py --threads 2 --out benchmarks/results/big_graph.csv
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _stamp import command_line, stamp

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor

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


def problem(functions: int, edges: int, samples: int, batch: int, device: str = "cpu"):
    """A random graph, an untrained network on it and batches of noise."""
    graph = random_graph(functions, edges)
    torch.manual_seed(0)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=8, layers=6).to(device)
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(samples, functions // 10, generator=rng) for _ in range(2))
    return graph, model, list(zip(x.split(batch), y.split(batch), strict=True))


def tables(rows: list[dict], args: argparse.Namespace) -> None:
    """All pairs of a graph of 2,000 functions."""
    facts = {"functions": 2_000, "edges": 20_000, "samples": args.samples}
    graph, model, batches = problem(**facts, batch=args.batch)
    inferer = MagnitudeEdgeInferer(model, graph)
    inferer.fit(batches, verbose=False)
    timed(rows, "evaluate, all pairs", inferer.evaluate, **facts)
    regressor = MagnitudeEdgeRegressor(model, graph)
    for x, y in batches:
        regressor.pre_forward()
        loss = torch.nn.functional.mse_loss(model(x), y)
        regressor.arm_retained_grads()
        loss.backward()
        regressor.aux_step()
    timed(rows, "regressor.evaluate, all pairs", regressor.evaluate, **facts)


def first_order(rows: list[dict], args: argparse.Namespace) -> None:
    """A screen of all pairs; what it misses where the full table fits too."""
    top = args.top_k
    facts = {"functions": 400, "edges": 4_000, "samples": args.samples}
    graph, model, batches = problem(**facts, batch=args.batch)
    inferer = FirstOrderEdgeInferer(model, graph)
    found = inferer.best(batches, top, verbose=False)
    inferer.fit(batches, verbose=False)
    full = inferer.evaluate()
    strong = full[full["score"] > 1e-6 * full["score"].max()]  # others have no signal or no gradient
    wanted = strong.groupby("dst_idx").head(top)[["src_idx", "dst_idx"]]
    share = len(wanted.merge(found, on=["src_idx", "dst_idx"])) / len(wanted)
    print(f"of the full table's best {top} a target the screen finds {share:.1%}")
    del inferer, full, strong
    facts = {"functions": args.functions, "edges": args.edges, "samples": args.samples}
    graph, model, batches = problem(**facts, batch=args.batch)
    inferer = FirstOrderEdgeInferer(model, graph)
    call = partial(inferer.best, batches, top, verbose=False)
    timed(rows, f"first order, best({top})", call, **facts)
    rows[-1]["found_of_400"] = round(share, 4)


def inference(rows: list[dict], args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = {"functions": args.functions, "edges": args.edges, "samples": args.samples, "device": device}
    graph, model, batches = problem(args.functions, args.edges, args.samples, args.batch, device)
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


PARTS: dict[str, Callable[..., None]] = {
    "plans": plans,
    "inference": inference,
    "tables": tables,
    "first_order": first_order,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--plan-edges", type=int, default=1_000_000)
    parser.add_argument("--scores", nargs="+", default=["corr", "partial"], choices=["corr", "partial"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--out", type=Path)
    args = command_line(parser)
    torch.set_num_threads(args.threads)

    if len(args.parts) > 1:
        for part in args.parts:
            subprocess.run([sys.executable, *sys.argv, "--parts", part], check=True)
        return
    rows: list[dict] = []
    (part,) = args.parts
    if part == "plans":
        plans(rows, args.plan_edges // 10, args.plan_edges)
    else:
        PARTS[part](rows, args)
    if args.out:
        table = pd.DataFrame(rows).assign(**stamp())
        if args.out.exists():  # of the parts before, or of earlier times: the newest row of each counts
            table = pd.concat([pd.read_csv(args.out), table])
            table = table.drop_duplicates(["what", "functions", "threads"], keep="last")
        table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
