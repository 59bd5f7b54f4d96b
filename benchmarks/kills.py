"""Jobs killed at random moments and run again: does the same call give what it gives undisturbed?

Half of the kills come at a random time, half just before a random step on disk (a file opened for writing,
renamed or deleted), where a half-written result would be left. One kill in three is followed by a second one
while the job goes on. `fit` keeps a checkpoint after each epoch, `run` and `complete` go on from theirs,
`verify` begins anew. The last lines say how many results were, to the bit, those of the undisturbed job.

    python benchmarks/kills.py --out benchmarks/results/kills.csv
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _script import parser_for, save
from _stamp import command_line

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from kill_jobs import Jobs, in_child, result_of


def survived(job, folder: Path, expected: dict, seconds: float, steps: int, rng: np.random.Generator) -> bool:
    """One job, killed once or twice, then run to its end."""
    out = folder / "out"
    for _ in range(1 + (rng.random() < 1 / 3)):
        if rng.random() < 0.5:
            in_child(job, out, after=float(rng.uniform(0.0, seconds)))
        else:
            in_child(job, out, step=int(rng.integers(1, steps + 1)))
        if out.is_dir() and result_of(out) == expected:
            return True  # the kill came after the last file was written
    status, _ = in_child(job, out)
    return status == 0 and result_of(out) == expected


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--kills", type=int, default=50, help="of each job")
    parser.add_argument("--jobs", nargs="+", default=list(Jobs.names), choices=Jobs.names)
    arguments = command_line(parser)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        jobs = Jobs(Path(name))
        if in_child(lambda _: jobs.prepare(), Path(name) / "data")[0]:
            raise RuntimeError("no model to verify with")
        for job_name in arguments.jobs:
            job = getattr(jobs, job_name)
            whole = Path(name) / f"{job_name}-whole" / "out"
            whole.parent.mkdir()
            start = time.perf_counter()
            status, steps = in_child(job, whole)
            seconds = time.perf_counter() - start
            if status:
                raise RuntimeError(f"{job_name} does not even run undisturbed")
            expected, good = result_of(whole), 0
            for trial in range(arguments.kills):
                folder = Path(name) / f"{job_name}-{trial}"
                folder.mkdir()
                rng = np.random.default_rng([trial, len(job_name)])
                fine = survived(job, folder, expected, seconds, steps, rng)
                good += fine
                if not fine:
                    print(f"{job_name}, trial {trial}: another result, see above", file=sys.stderr)
            print(f"{job_name}: {good} of {arguments.kills} as undisturbed ({steps} steps on disk)")
            rows.append({"job": job_name, "steps": steps, "tried": arguments.kills, "survived": good})
    table = pd.DataFrame(rows)
    save(table, arguments.out)
    if not table["tried"].equals(table["survived"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
