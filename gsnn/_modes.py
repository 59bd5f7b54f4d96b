"""Training and eval mode, put back as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """After a with statement, every submodule is back in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside a with statement; afterwards as before."""
    with modes_kept(model):
        model.eval()
        yield
