"""What a sample is (its cell line, its donor) as a gate on every function node, ``GSNN(..., context=...)``.

A drug does the same to its target in every cell line, but the lines differ in which proteins they have and
how active these are. A gate says that: in each block a node's channels are multiplied by a number that
depends on the context alone, 2 sigmoid(a + B c), c the context's values. It is 1 at the start, 0 for a node
that the context switches off, at most 2, and the same in all blocks. Source of the idea: the learning of
hidden unit contributions, by which a network is adapted to a speaker (Swietojanski & Renals 2014, IEEE SLT).

The wiring stays what it was. Without edges out of them, the context's inputs act through the gates only; one
that is 0 in all samples of the training (the indicator of a line that was held out) leaves the gates alone
whatever it is later. Gates are positive: what ``edge_signs='respect'`` says holds for all other inputs.

A network with a context runs block by block, not as one operation, and so is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gsnn._text import some_names
from gsnn.kernels.plan import Plan


class ContextGate(torch.nn.Module):
    """Factors of the function nodes from some of the inputs.

    Args:
        columns: of x, the inputs that are the context.
        n_nodes: N.

    Attributes:
        linear: from the context's values to N numbers, initially all 0.
    """

    columns: torch.Tensor

    def __init__(self, columns: Sequence[int], n_nodes: int) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(list(columns)), persistent=False)
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights, here for nothing
            self.linear = torch.nn.Linear(len(columns), n_nodes)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor, plan: Plan) -> torch.Tensor:
        """x (B, N_in) -> factors (N, 1, B), nodes in plan order."""
        gates = 2.0 * torch.sigmoid(self.linear(x.index_select(1, self.columns)))
        return plan.to_nodes(gates.t()).unsqueeze(1)


def context_columns(context: Any, inputs: Sequence[str]) -> list[int]:
    """The columns of the inputs that ``context`` names.

    Raises:
        TypeError: no sequence of names.
        ValueError: a name that is no input node, or is given twice.
    """
    listed = isinstance(context, Sequence) and not isinstance(context, str)
    if not listed or not all(isinstance(name, str) for name in context):
        raise TypeError(f"context must be names of input nodes, got {context!r}")
    names = list(context)
    unknown = [name for name in names if name not in set(inputs)]
    if unknown:
        raise ValueError(f"context must name input nodes, got {len(unknown)} unknown: {some_names(unknown)}")
    if len(set(names)) < len(names):
        raise ValueError(f"context must name each input once, got {some_names(names)}")
    place = {name: k for k, name in enumerate(inputs)}
    return [place[name] for name in names]
