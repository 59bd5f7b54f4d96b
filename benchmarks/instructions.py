"""Instructions of one training step (forward, loss, backward), counted by callgrind on one thread.

One row each for the compiled blocks, where they were built, and for PyTorch's operations.

Time depends on the machine and on what else runs there, a count of instructions hardly does: it tells
whether a change made the step dearer. It counts work, not waiting for memory, and libraries choose
their kernels by processor, so compare rows of like machines. The network is small, where the cost per
call is what matters. Without valgrind the script says so and leaves.

    python benchmarks/instructions.py --out benchmarks/results/instructions.csv
"""

import os
import shutil
import sys
import textwrap
from pathlib import Path

import pandas as pd
import torch
from _script import parser_for, save
from _stamp import command_line
from torch.utils.benchmark import Timer

SIZE = (50, 87, 8, 64, 6)
SETUP = """
import sys
sys.path.insert(0, {here!r})
import torch
from gsnn import kernels
from _networks import random_model
from step import step
kernels.use({kernel!r})
model = random_model({n}, {edges}, {channels}, {layers})
parameters = list(model.parameters())
generator = torch.Generator().manual_seed(0)
x = torch.randn({samples}, int(model.input_node_mask.sum()), generator=generator)
y = torch.randn({samples}, int(model.output_node_mask.sum()), generator=generator)
for _ in range(3):
{step}
"""
STEP = """
    for parameter in parameters:
        parameter.grad = None
    torch.nn.functional.mse_loss(model(x), y).backward()
"""


def instructions(size: tuple[int, int, int, int, int], steps: int, kernel: str) -> int:
    """Instructions of one step, the mean over ``steps``."""
    n, edges, channels, samples, layers = size
    setup = SETUP.format(
        here=str(Path(__file__).parent),
        n=n,
        edges=edges,
        channels=channels,
        samples=samples,
        kernel=kernel,
        layers=layers,
        step=STEP,
    )
    timer = Timer(textwrap.dedent(STEP), setup, num_threads=1)
    # The last three are the defaults, which the stub of torch has not.
    found = timer.collect_callgrind(steps, repeats=None, collect_baseline=True, retain_out_file=False)
    return round(found.counts() / steps)


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--steps", type=int, default=20)
    arguments = command_line(parser)
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: no instructions counted")
        return
    os.environ["PYTHONHASHSEED"] = "0"  # the order of sets decides some branches
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # runs `python`
    torch.set_num_threads(1)
    rows = []
    for blocks, kernel in (("compiled", "compiled"), ("PyTorch", "torch")):
        count = instructions(SIZE, arguments.steps, kernel)
        rows.append(dict(zip("NECBL", SIZE, strict=True)) | {"blocks": blocks, "instructions": count})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    save(table, arguments.out)


if __name__ == "__main__":
    main()
