"""What one training step asks of PyTorch, as counts that no machine and no load can change.

The limits are about a tenth above what was counted when they were set. One that is exceeded means that
every training became dearer; one that is no longer near should be lowered.
"""

import importlib
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gsnn.kernels import compiled as native
from gsnn.kernels import use
from gsnn.models.GSNN import GSNN


class Counts(TorchDispatchMode):
    """Operations that compute something, and bytes of the memory that they newly take."""

    def __init__(self):
        super().__init__()
        self.operations = self.allocated = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += not function.is_view
        given = {storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and storage(tensor) not in given:
                self.allocated += tensor.untyped_storage().nbytes()
        return result


def storage(tensor):
    return tensor.untyped_storage()._cdata


def random_model(n, n_edges, channels, layers):
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(n * n, generator=generator)
    pairs = pairs[pairs // n != pairs % n][:n_edges]
    side = torch.arange(n // 5)
    edges = {
        ("function", "to", "function"): torch.stack([pairs // n, pairs % n]),
        ("input", "to", "function"): torch.stack([side, torch.randperm(n, generator=generator)[: n // 5]]),
        ("function", "to", "output"): torch.stack([torch.randperm(n, generator=generator)[: n // 5], side]),
    }
    sizes = {"input": n // 5, "function": n, "output": n // 5}
    names = {kind: [f"{kind}{k}" for k in range(size)] for kind, size in sizes.items()}
    return GSNN(edges, names, channels, layers, share_layers=False)


SMALL, LARGE = (50, 87, 8, 64, 6), (1000, 8000, 16, 64, 4)  # N, edges between them, C, B, L


@pytest.mark.parametrize(
    ("compiled", "size", "most_operations", "most_megabytes"),
    [(True, SMALL, 111, 1.26), (True, LARGE, 70, 32.5), (False, SMALL, 403, 8.5), (False, LARGE, 500, 210.0)],
)
def test_a_step_needs_no_more_operations_and_memory_than_it_did(
    compiled, size, most_operations, most_megabytes
):
    if compiled and native.level() == "none":
        pytest.skip("the compiled blocks were not built when gsnn was installed")
    n, n_edges, channels, samples, layers = size
    model = random_model(n, n_edges, channels, layers)
    x, y = torch.ones(samples, n // 5), torch.zeros(samples, n // 5)

    def step():
        model.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()

    with use("compiled" if compiled else "torch"):
        tracemalloc.start()  # the compiled blocks keep NumPy's memory from step to step
        try:
            step()
            kept = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        with Counts() as counts:
            step()
    megabytes = (counts.allocated + kept) / 1e6
    assert 0 < counts.operations <= most_operations
    assert 0 < megabytes <= most_megabytes


def test_the_counts_see_forward_and_backward():
    x, weight = torch.ones(10, 20), torch.ones(20, 30, requires_grad=True)
    with Counts() as counts:
        (x @ weight).sum().backward()
    # mm, sum and the ones that start the backward pass; then the weight's gradient by another mm.
    assert counts.operations == 4
    assert counts.allocated == 4 * (10 * 30 + 1 + 1 + 20 * 30)


def test_without_valgrind_no_instructions_are_counted(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    instructions = importlib.import_module("instructions")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["instructions.py", "--dirty"])
    instructions.main()
    assert capsys.readouterr().out == "valgrind is not installed: no instructions counted\n"
