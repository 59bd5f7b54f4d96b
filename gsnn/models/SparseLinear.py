"""A linear layer whose weight matrix has a fixed sparsity pattern."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from gsnn._checks import one_of
from gsnn.kernels.scatter import Backend, Incidence, check_backend, incidence, spread
from gsnn.models.signs import bound, turned


def _uniform(values: torch.Tensor, bound: torch.Tensor | float) -> None:
    values.uniform_(-1.0, 1.0).mul_(bound)


def _normal(values: torch.Tensor, std: torch.Tensor | float) -> None:
    values.normal_().mul_(std)


Init = Literal[
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "uniform",
    "normal",
    "degree_normalized",
    "zeros",
]
INITS: dict[Init, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]] = {
    "xavier_uniform": lambda v, fan_in, fan_out: _uniform(v, (6 / (fan_in + fan_out)).sqrt()),
    "xavier_normal": lambda v, fan_in, fan_out: _normal(v, (2 / (fan_in + fan_out)).sqrt()),
    "kaiming_uniform": lambda v, fan_in, fan_out: _uniform(v, (6 / fan_in).sqrt()),
    "kaiming_normal": lambda v, fan_in, fan_out: _normal(v, (2 / fan_in).sqrt()),
    "uniform": lambda v, fan_in, fan_out: _uniform(v, 1.0),
    "normal": lambda v, fan_in, fan_out: _normal(v, 1.0),
    "degree_normalized": lambda v, fan_in, fan_out: _uniform(v, (fan_in * fan_out).rsqrt()),
    "zeros": lambda v, fan_in, fan_out: _uniform(v, 0.0),
}


class _Group:
    """Outputs that read the same inputs, in batches of one shape: a dense block each."""

    def __init__(self, inputs: np.ndarray, weights: np.ndarray, outputs: np.ndarray) -> None:
        self.inputs = torch.from_numpy(inputs.reshape(-1))  # (blocks * d_in,)
        self.weights = torch.from_numpy(weights.reshape(-1))  # (blocks * d_out * d_in,)
        self.outputs = outputs.reshape(-1)  # (blocks * d_out,)
        self.shape = weights.shape  # blocks, d_out, d_in


def _group_outputs(indices: np.ndarray, n_outputs: int) -> list[_Group]:
    """Dense blocks of a pattern: outputs with identical inputs share one, blocks of one shape a batch."""
    rows, columns = indices
    order = np.lexsort((rows, columns))
    rows, columns = rows[order], columns[order]
    degree = np.bincount(columns, minlength=n_outputs)
    start = np.cumsum(degree) - degree
    groups = []
    for d_in in np.unique(degree[degree > 0]).tolist():
        outputs = np.flatnonzero(degree == d_in)
        places = start[outputs][:, None] + np.arange(d_in)
        inputs, block = np.unique(rows[places], axis=0, return_inverse=True)
        block = block.reshape(-1)
        width = np.bincount(block)
        members = np.argsort(block, kind="stable")
        first = np.cumsum(width) - width
        for d_out in np.unique(width).tolist():
            blocks = np.flatnonzero(width == d_out)
            chosen = members[first[blocks][:, None] + np.arange(d_out)]
            groups.append(_Group(inputs[blocks], order[places[chosen]], outputs[chosen]))
    return groups


class SparseLinear(torch.nn.Module):
    """``y = x W + b`` with weights only at ``indices``.

    Args:
        indices: (2, nnz) int; input row and output column of each weight, no pair twice.
        size: (N, M), the numbers of inputs and outputs.
        bias: learn one bias per output, initially 0.
        init: name of the initialisation, one of :data:`INITS`. The fan-in of a weight is the number
            of weights of its output, its fan-out that of its input: ``xavier_*`` (Glorot & Bengio
            2010), ``kaiming_*`` (He et al. 2015, gain sqrt(2)), ``uniform`` on [-1, 1], ``normal``
            (0, 1), ``degree_normalized`` (uniform on [-1, 1] over sqrt(fan_in * fan_out)), ``zeros``.
        backend: ``bucketed``, dense blocks of outputs that read the same inputs, or ``scatter``, one
            message per weight by torch-scatter; see :mod:`gsnn.kernels.scatter`.

    Attributes:
        N, M: inputs and outputs.
        indices: (2, nnz) LongTensor.
        values: (nnz,) parameter aligned with ``indices``.
        signs: None, or (nnz,) the sign that each weight is bound to; see :mod:`gsnn.models.signs`.
        bias: (M,) parameter or None.

    Raises:
        ValueError: a malformed, repeated or out-of-range index, or an unknown ``init`` or ``backend``.
        ImportError: ``backend='scatter'`` without torch-scatter.
    """

    indices: torch.Tensor
    bias: torch.Tensor | None
    kept: torch.Tensor | None
    signs: torch.Tensor | None

    def __init__(
        self,
        indices: torch.Tensor,
        size: tuple[int, int],
        bias: bool = True,
        init: Init = "degree_normalized",
        backend: Backend = "bucketed",
    ) -> None:
        super().__init__()
        self.N, self.M = size
        check_backend(backend)
        one_of("init", init, INITS)
        if indices.ndim != 2 or indices.shape[0] != 2 or indices.is_floating_point():
            raise ValueError(
                f"indices must be an integer tensor of shape (2, nnz), "
                f"got {indices.dtype} of shape {tuple(indices.shape)}"
            )
        indices = indices.long()
        if indices.shape[1]:
            low, high = indices.amin(1), indices.amax(1)
            if low.min() < 0 or high[0] >= self.N or high[1] >= self.M:
                raise ValueError(
                    f"indices must lie in [0, {self.N}) x [0, {self.M}), "
                    f"got [{low[0]}, {high[0]}] x [{low[1]}, {high[1]}]"
                )
            if len(torch.unique(indices[0] * self.M + indices[1])) < indices.shape[1]:
                raise ValueError("indices must name each pair once, got repeated pairs")
        self.init = init
        self.backend = backend
        self.register_buffer("indices", indices, persistent=False)
        self.register_buffer("kept", None)
        self.register_buffer("signs", None, persistent=False)
        self.values = torch.nn.Parameter(torch.empty(indices.shape[1]))
        self.register_parameter("bias", torch.nn.Parameter(torch.zeros(self.M)) if bias else None)
        self._groups: list[_Group] | None = None
        self._incidence: Incidence | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew by ``init`` from PyTorch's generator; biases become 0."""
        rows, columns = self.indices
        fan_in = torch.bincount(columns, minlength=self.M)[columns].to(self.values.dtype)
        fan_out = torch.bincount(rows, minlength=self.N)[rows].to(self.values.dtype)
        INITS[self.init](self.values, fan_in, fan_out)
        if self.signs is not None:
            self.values.copy_(turned(self.values, self.signs))
        if self.bias is not None:
            self.bias.zero_()

    def weights(self) -> torch.Tensor:
        """(nnz,) the weights as they act: ``values``, 0 where one has not the sign that it is bound to."""
        values, signs = self._parameters["values"], self._buffers["signs"]
        assert values is not None
        return values if signs is None else bound(values, signs)

    def table(self) -> torch.Tensor:
        """All weights of the unpruned pattern; pruned ones are 0."""
        values, kept = self.weights(), self._buffers["kept"]
        if kept is None:
            return values
        return values.new_zeros(len(kept)).masked_scatter(kept, values)

    @torch.no_grad()
    def keep(self, mask: torch.Tensor) -> None:
        """Drop the weights where ``mask`` (nnz,) is False, from ``values`` and ``indices``."""
        if self.kept is None:
            self.kept = torch.ones_like(mask)
        self.kept = self.kept.masked_scatter(self.kept, mask)
        self.indices = self.indices[:, mask]
        self.signs = None if self.signs is None else self.signs[mask]
        self.values = torch.nn.Parameter(self.values[mask], requires_grad=self.values.requires_grad)
        self._groups = self._incidence = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N) or (B, N, 1) -> (B, M, 1)."""
        if x.ndim == 3 and x.shape[2] == 1:
            x = x.squeeze(2)
        if x.ndim != 2 or x.shape[1] != self.N:
            raise ValueError(f"x must have shape (B, {self.N}) or (B, {self.N}, 1), got {tuple(x.shape)}")
        rows = x.t()
        result = self._scattered(rows) if self.backend == "scatter" else self._bucketed(rows)
        if self.bias is not None:
            result = result + self.bias.unsqueeze(1)
        return result.t().unsqueeze(2)

    def _bucketed(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, B) -> (M, B)."""
        if self._groups is None:
            self._groups = _group_outputs(self.indices.cpu().numpy(), self.M)
        result, values = rows.new_zeros(self.M, rows.shape[1]), self.weights()
        for group in self._groups:
            blocks, d_out, d_in = group.shape
            inputs = rows.index_select(0, group.inputs.to(rows.device)).view(blocks, d_in, -1)
            weights = values.index_select(0, group.weights.to(rows.device)).view(blocks, d_out, d_in)
            outputs = torch.from_numpy(group.outputs).to(rows.device)
            result = result.index_copy(0, outputs, torch.bmm(weights, inputs).flatten(0, 1))
        return result

    def _scattered(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, B) -> (M, B)."""
        if self._incidence is None:
            self._incidence = incidence(self.indices[0], self.indices[1], self.N, self.M)
        where = self._incidence.to(rows.device)
        return spread(rows, self.weights().unsqueeze(1), where).squeeze(1)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take over the pruning of the saved layer before its values."""
        kept = state_dict.get(prefix + "kept")
        if kept is not None and self.kept is None and len(kept) == self.indices.shape[1]:
            self.keep(kept.to(self.indices.device, torch.bool))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What ``repr`` says of it."""
        return f"{self.N} -> {self.M}, weights={len(self.values)}, bias={self.bias is not None}"
