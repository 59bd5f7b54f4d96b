"""What a block of the common form computes, and its tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from gsnn.kernels.channels import Dims


class Form(NamedTuple):
    """What a block computes besides its products.

    Attributes:
        channels: C.
        dims: dimensions of (N, C, B) its norm averages over; None for no norm.
        centre: whether the norm subtracts the mean.
        aside: whether it also gives the activations that ``lin_out`` reads.
        inside: whether it gives these and the results of ``lin_in``, both on the way to its result.
    """

    channels: int
    dims: Dims | None
    centre: bool
    aside: bool = False
    inside: bool = False

    @property
    def over_batch(self) -> bool:
        """Whether the norm's statistics are those of the batch."""
        return self.dims is not None and 2 in self.dims


class Weights(NamedTuple):
    """The tensors of one block, nodes and edges in the given order.

    Attributes:
        in_values: (edges into function nodes * C,).
        in_bias: (N*C,) or None.
        scale, shift: (N,) of the norm, or None. Without a norm they map all the same, as a norm by known
            statistics does, and may be those of each channel, (N*C,).
        out_values: (edges out of function nodes * C,).
        out_bias: (E,) or None.
        residual: scalar r, or None for no residual.
        factor: constant that broadcasts to (N, C, B), in plan order, or None; gets no gradient.
    """

    in_values: Tensor
    in_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    out_values: Tensor
    out_bias: Tensor | None
    residual: Tensor | None
    factor: Tensor | None


N_WEIGHTS = len(Weights._fields)


def split(flat: Sequence[Any]) -> list[Weights]:
    """The tensors of all blocks in one list -> those of each block."""
    return [Weights(*flat[k : k + N_WEIGHTS]) for k in range(0, len(flat), N_WEIGHTS)]
