"""Time of weighted random walks against PecanPy and against a Python loop over `rng.choice`.

17,000 nodes, 500,000 edges with uniform weights, 10 walks of 80 steps from each node, one thread, in one run,
turn by turn; the fastest of the repeats counts, and building the tables is timed apart. PecanPy draws by
alias tables too (its PreCompFirstOrder). What is compared with is its compiled loop alone: a call of its
`simulate_walks` compiles that loop anew and turns every node of every walk into a Python object, which the
row "simulate_walks" has in it, as "pecanpy, tables" has its own compilation. The Python loop is timed on a
share of the walks.

PecanPy needs numpy below 2, so it is looked for in the Python given by --pecanpy:

    python -m venv pecan && pecan/bin/pip install pecanpy
    python benchmarks/walks.py --pecanpy pecan/bin/python
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent / "results" / "walks.csv"
NODES, EDGES, WALKS, STEPS = 17_000, 500_000, 10, 80
LOOP_SHARE = 1000  # the Python loop makes every thousandth walk

# Runs in PecanPy's own Python, kept open so that both sides are timed turn by turn.
PECANPY = """
import json, sys, time
import numba
import numpy as np
from pecanpy import pecanpy
from numba_progress import ProgressBar
start, node, weight = (np.load(sys.argv[1])[name] for name in ("start", "node", "weight"))
walks, steps = int(sys.argv[2]), int(sys.argv[3])
graph = pecanpy.PreCompFirstOrder(p=1, q=1, workers=1, random_state=0)
graph.set_node_ids([str(k) for k in range(len(start) - 1)])
graph.indptr, graph.indices, graph.data = (
    start.astype(np.uint32), node.astype(np.uint32), weight.astype(np.float32)
)
numba.set_num_threads(1)
begin = time.perf_counter()
graph.preprocess_transition_probs()
build = time.perf_counter() - begin
starts = np.tile(np.arange(len(start) - 1, dtype=np.uint32), walks)
move, has = graph.get_move_forward(), graph.get_has_nbrs()
def loop(begins):
    with ProgressBar(total=len(begins), disable=True) as bar:
        return graph._random_walks(len(begins), steps, 0, begins, has, move, bar)
loop(starts[:10])  # compiles
print(json.dumps({"build": build}), flush=True)
for line in sys.stdin:
    begin = time.perf_counter()
    if line.strip() == "loop":
        made = loop(starts)
    else:
        made = graph.simulate_walks(walks, steps)
    print(json.dumps({"time": time.perf_counter() - begin, "walks": len(made)}), flush=True)
"""


def python_loop(
    start: np.ndarray, node: np.ndarray, weight: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    walks = np.full((len(starts), STEPS + 1), -1)
    for walk, here in zip(walks, starts, strict=True):
        walk[0] = here
        for step in range(1, STEPS + 1):
            row = slice(start[here], start[here + 1])
            if row.start == row.stop:
                break
            here = rng.choice(node[row], p=weight[row] / weight[row].sum())
            walk[step] = here
    return walks


def timed(call, *args):
    begin = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - begin, result


def main() -> None:
    import pandas as pd
    from _script import parser_for, save
    from _stamp import command_line

    from gsnn.optim.walks import Transitions, random_walks

    parser = parser_for(__doc__, OUT)
    parser.add_argument("--pecanpy", default=sys.executable, help="Python of an environment with PecanPy")
    parser.add_argument("--repeats", type=int, default=5)
    args = command_line(parser)

    rng = np.random.default_rng(0)
    source, node = np.sort(rng.integers(NODES, size=EDGES)), rng.integers(NODES, size=EDGES)
    weight = 1.0 - rng.random(EDGES)
    start = np.searchsorted(source, np.arange(NODES + 1))
    starts = np.tile(np.arange(NODES), WALKS)
    best: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        best[name] = min(seconds, best.get(name, np.inf))

    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/graph.npz", start=start, node=node, weight=weight)
        command = [args.pecanpy, "-W", "ignore", "-c", PECANPY, f"{folder}/graph.npz", str(WALKS), str(STEPS)]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        questions, answers = other.stdin, other.stdout
        assert questions is not None and answers is not None
        first = answers.readline()
        if first:
            note("pecanpy, tables", json.loads(first)["build"])
        else:
            print(f"no PecanPy in {args.pecanpy}: see --help for how to compare with it", file=sys.stderr)

        def ask(what: str) -> float:
            questions.write(what + "\n")
            questions.flush()
            answer = json.loads(answers.readline())
            assert answer["walks"] == len(starts)
            return answer["time"]

        for repeat in range(args.repeats):
            seconds, table = timed(Transitions.of, source, node, weight, NODES)
            note("gsnn, tables", seconds)
            seconds, walks = timed(random_walks, table, starts, STEPS, np.random.default_rng(0))
            note("gsnn, walks", seconds)
            if first:
                note("pecanpy, walks", ask("loop"))
            seconds, slow = timed(
                python_loop, start, node, weight, starts[::LOOP_SHARE], np.random.default_rng(repeat)
            )
            note("rng.choice loop, walks", seconds * len(starts) / len(slow))
        if first:
            note("pecanpy, simulate_walks", ask("all"))
        questions.close()
        other.wait()
    assert (walks >= 0).mean() > 0.999

    rows = pd.DataFrame({"what": best.keys(), "seconds": best.values()})
    rows["over gsnn walks"] = rows.seconds / best["gsnn, walks"]
    print(rows.round(3).to_string(index=False))
    if first:
        print(
            f"gsnn takes {best['gsnn, walks'] / best['pecanpy, walks']:.2f} times PecanPy's time (at most 3)"
        )
    print(
        f"the loop takes {best['rng.choice loop, walks'] / best['gsnn, walks']:.0f} times ours (at least 50)"
    )
    settings = {"nodes": NODES, "edges": EDGES, "walks_per_node": WALKS, "steps": STEPS}
    save(rows, args.out, 6, threads=1, **settings)


if __name__ == "__main__":
    main()
