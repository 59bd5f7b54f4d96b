"""Methods that infer missing edges, compared on the same trained models: scenarios x seeds x methods.

A cell is one scenario and seed: a GSNN is trained once on the graph without the held-out edges, every method
scores all pairs of function nodes, and the scores are judged on the test edges. The networks of some seeds of
a scenario are trained side by side (`--together`), which changes nothing but rounding. A finished cell is a
small file in the cache, in a folder named by a hash of all settings, and is never run again; a killed run
loses only the cells that were running. Results are written when all cells asked for are there.

Protocol. No score sees a label: test edges stay out of training and scoring, nothing is excluded on account
of being held out, and validation edges do nothing but select the checkpoint of `regressor, best`. `auc` and
`average_precision` are of the test edges against all other pairs that are neither a kept edge nor self, so
validation edges count as negatives. `mrr` and `top@k` are of raw ranks: all sources of a target compete, kept
ones too, so a perfect method stays below 1. For `mrr_filtered` the target's kept sources and other test edges
are left out of the competition. A missing score loses.

    python benchmarks/compare_inference.py --seeds 20 --jobs 2
    python benchmarks/compare_inference.py --scenarios tiers25 --seeds 3 --out try
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import _methods
import _scenarios
import pandas as pd
import torch
from _script import parser_for, seeds_of
from _stamp import command_line, stamp
from _tables import judged, rows_of, summary_of
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from gsnn.io import replacing

HERE = Path(__file__).parent
OUT = HERE / "results"
CACHE = HERE / ".cache" / "compare_inference"
BACKENDS = ("loky", "dask", "ray", "threading")
TOGETHER = 5  # networks that are trained side by side
Cell = tuple[str, int]


def settings_of(scenario: str) -> dict:
    """Everything that a cell's numbers depend on but its seed."""
    return {"scenario": scenario, **_scenarios.RECIPES[scenario], "methods": _methods.SETTINGS}


def hash_of(scenario: str) -> str:
    """Names the settings of a scenario."""
    text = json.dumps(settings_of(scenario), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def part_of(cell: Cell, cache: Path) -> Path:
    """The file of a cell."""
    scenario, seed = cell
    return cache / f"{scenario}-{hash_of(scenario)}" / f"{seed}.json"


def run_lot(cells: Sequence[Cell], cache: Path) -> int:
    """Train the cells of one scenario side by side; score, judge and write the part of each; how many."""
    torch.set_num_threads(1)
    start = time.process_time()
    (scenario,) = {name for name, _ in cells}
    seeds = [seed for _, seed in cells]
    problems, validation, test = zip(*(_scenarios.build(*cell) for cell in cells), strict=True)
    trained = _methods.train_all(problems, _scenarios.RECIPES[scenario], seeds, validation)
    training = (time.process_time() - start) / len(cells)
    for seed, problem, test_edges, of_cell in zip(seeds, problems, test, trained, strict=True):
        start = time.process_time()
        found, quality = _methods.score_all(problem, *of_cell, seed)
        seconds = training + time.process_time() - start
        part = {
            "scenario": scenario,
            "seed": seed,
            "quality": {**quality, "cpu_seconds": seconds},
            "test_edges": test_edges,
            "methods": {
                method: judged(scores, problem.graph, test_edges) for method, scores in found.items()
            },
            "stamp": {"settings": hash_of(scenario), **stamp()},
        }
        path = part_of((scenario, seed), cache)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as tmp:
            tmp.write_text(json.dumps(part))
    return len(cells)


def lots_of(cells: Sequence[Cell], together: int) -> list[list[Cell]]:
    """Cells of one scenario in lots, the lots in the order of their first cells."""
    open_lots: dict[str, list[Cell]] = {}
    lots: list[list[Cell]] = []
    for cell in cells:
        lot = open_lots.get(cell[0])
        if lot is None or len(lot) == together:
            lot = open_lots[cell[0]] = []
            lots.append(lot)
        lot.append(cell)
    return lots


def run(cells: list[Cell], cache: Path, jobs: int, backend: str, together: int = TOGETHER) -> list[dict]:
    """The parts of all cells, in order; those that are not in the cache are run first."""
    todo = [cell for cell in cells if not part_of(cell, cache).exists()]
    with ready(backend, jobs), tqdm(total=len(cells), initial=len(cells) - len(todo), unit="cell") as bar:
        # Ray's backend cannot hand results over one by one.
        workers = Parallel(return_as="list" if backend == "ray" else "generator_unordered")
        for done in workers(delayed(run_lot)(lot, cache) for lot in lots_of(todo, together)):
            bar.update(done)
    return [json.loads(part_of(cell, cache).read_text()) for cell in cells]


def ready(backend: str, jobs: int) -> parallel_config:
    """joblib set to `backend`; Dask and Ray take their cluster from their own environment variables."""
    if backend == "threading" and jobs != 1:
        raise ValueError("--backend threading needs --jobs 1: cells draw from torch's global generator")
    if backend == "dask":
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ImportError("--backend dask needs: pip install 'dask[distributed]'") from error
        Client(threads_per_worker=1, n_workers=jobs)
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise ImportError("--backend ray needs: pip install ray") from error
        register_ray()
    return parallel_config(backend=backend, n_jobs=jobs)


def main(arguments: list[str] | None = None) -> None:
    parser = parser_for(__doc__, OUT, seeds=20)
    parser.add_argument("--scenarios", nargs="+", choices=list(_scenarios.RECIPES), metavar="NAME")
    parser.add_argument("--backend", choices=BACKENDS, default="loky")
    parser.add_argument(
        "--together", type=int, default=TOGETHER, metavar="K", help="networks trained at once"
    )
    parser.add_argument("--finished", action="store_true", help="run nothing; report the cells in the cache")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = command_line(parser, arguments)
    wanted = args.scenarios or list(_scenarios.RECIPES)
    names = [name for name in wanted if _scenarios.present(name)]
    for name in sorted(set(wanted) - set(names)):
        print(f"skipped {name}: no data in {_scenarios.DATA}; GSNN_DATA says where they are")
    # Seed by seed, so that a run that is stopped early has some of everything.
    cells = [(name, seed) for seed in seeds_of(args) for name in names]
    if args.finished:
        cells = [cell for cell in cells if part_of(cell, args.cache).exists()]
    if not cells:
        return
    names = [name for name in names if name in {scenario for scenario, _ in cells}]
    parts = run(cells, args.cache, args.jobs, args.backend, args.together)

    from _figures import draw

    table = pd.DataFrame([row for part in parts for row in rows_of(part)])
    summary = summary_of(table)
    args.out.mkdir(parents=True, exist_ok=True)
    for content, name in ((table, "compare_inference.csv"), (summary, "compare_inference_summary.csv")):
        with replacing(args.out / name) as tmp:
            content.round(5).to_csv(tmp, index=False)
    with replacing(args.out / "compare_inference_settings.json") as tmp:
        tmp.write_text(json.dumps({hash_of(name): settings_of(name) for name in names}, indent=1) + "\n")
    draw(parts, summary, args.out / "figures")
    shown = summary[summary["metric"].isin(["auc", "mrr"])]
    text = shown["mean"].map("{:.3f}".format) + shown.apply(" [{low:.3f}, {high:.3f}]".format_map, axis=1)
    for metric in ("auc", "mrr"):
        wide = shown.assign(text=text)[shown["metric"] == metric]
        print(f"\n{metric}: mean [95% interval of the mean over seeds]")
        print(wide.pivot(index="method", columns="scenario", values="text")[names].to_string())
    print(f"\nwrote compare_inference*.csv and .json and figures/ in {args.out}")


if __name__ == "__main__":
    main()
