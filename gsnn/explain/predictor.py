"""One output of a network as a function of its inputs and of masks on its nodes and edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from gsnn._modes import evaluation_mode
from gsnn._text import some_names
from gsnn.data.match import as_table, sample_names
from gsnn.data.scaling import scaling_of

Part = Literal["inputs", "nodes", "edges"]
PARTS: tuple[Part, ...] = ("inputs", "nodes", "edges")


class Predictor:
    """``model`` reduced to one output, in the units of the user's data; the model is left as it was.

    Args:
        model: a GSNN, with or without a scaling (see ``fit(standardize=True)``).
        output: the name of an output node, or its column.

    Raises:
        ValueError: there is no such output.
        TypeError: the model takes no masks, or ``output`` is neither a name nor a column.
    """

    def __init__(self, model: Any, output: str | int) -> None:
        if not hasattr(model, "homo_names") or not hasattr(model, "input_node_mask"):
            raise TypeError(f"model must be a GSNN, got {type(model).__name__}")
        names = list(model.graph.node_names_dict["output"])
        if isinstance(output, str):
            if output not in names:
                raise ValueError(f"output must be one of {some_names(names)}, got {output!r}")
            output = names.index(output)
        elif isinstance(output, bool) or not hasattr(output, "__index__"):
            raise TypeError(f"output must be the name of an output node or its column, got {output!r}")
        self.column = output.__index__()
        if not 0 <= self.column < len(names):
            raise ValueError(f"output must be a column below {len(names)}, got {output}")
        self.output = names[self.column]
        self.model = model
        self.scaling = scaling_of(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def table(self, x: Any, arg: str) -> tuple[Tensor, Any]:
        """x (B, N_in) in the user's units on the model's device, and the names of its rows, if it has any.

        Raises:
            ValueError: a wrong shape, wrong columns, NaN, or no sample.
        """
        values = as_table(self.model, x, "input", arg)
        if not len(values):
            raise ValueError(f"{arg} must have at least one row, got none")
        return values.to(self.device, self.dtype), sample_names(x)

    def __call__(self, x: Tensor, node_mask: Tensor | None = None, edge_mask: Tensor | None = None) -> Tensor:
        """Predictions (B,) for x (B, N_in), both in the user's units."""
        if self.scaling is not None:
            x = self.scaling.scale_x(x)
        yhat = self.model(x, node_mask=node_mask, edge_mask=edge_mask)[:, self.column]
        if self.scaling is not None:
            yhat = yhat * self.scaling.y_scale[self.column] + self.scaling.y_mean[self.column]
        return yhat

    def of_mask(self, part: Part, mask: Tensor, x: Tensor) -> Tensor:
        """Predictions (B,) where ``mask`` (B, n) has a column per function node, or per flat edge."""
        if part == "edges":
            return self(x, edge_mask=mask)
        others = mask.new_ones(len(mask), self.model.num_nodes - mask.shape[1])
        return self(x, node_mask=torch.cat([mask, others], 1))

    def names(self, part: Part) -> list[str] | list[tuple[str, str]]:
        """What the columns of a mask, or of the inputs, are called."""
        if part != "edges":
            kind = "input" if part == "inputs" else "function"
            return list(self.model.graph.node_names_dict[kind])
        names = self.model.homo_names
        return [(names[u], names[v]) for u, v in self.model.edge_index.t().tolist()]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Eval mode, and no gradients for the parameters; afterwards as before."""
        wanted = [(p, p.requires_grad) for p in self.model.parameters()]
        with evaluation_mode(self.model):
            try:
                for p, _ in wanted:
                    p.requires_grad_(False)
                yield
            finally:
                for p, required in wanted:
                    p.requires_grad_(required)
