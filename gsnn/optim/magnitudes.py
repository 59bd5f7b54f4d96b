"""Magnitudes of activations and gradients, one number per node, sample and pair of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from gsnn.optim.layer_captures import LayerCaptures

AGGREGATORS: dict[str, Callable[[Tensor], Tensor]] = {  # absolute values (N, P, C, B) -> (N, P, B)
    "sum": lambda z: z.sum(2),
    "max": lambda z: z.amax(2),
    "mean": lambda z: z.mean(2),
    "l2": lambda z: z.square().sum(2).sqrt(),
}

SCORES: dict[str, Callable[[Tensor], Tensor]] = {  # what a weight is worth, by the regressor's `score_mode`
    "abs": torch.abs,
    "relu": torch.relu,
    "signed": torch.clone,
}

MagnitudeScore = Literal["corr", "partial"]


def check_aggregators(aggregators: Iterable[str]) -> tuple[str, ...]:
    """`aggregators` as a tuple of different names of `AGGREGATORS`."""
    names = (aggregators,) if isinstance(aggregators, str) else tuple(aggregators)
    if not names or len(set(names)) < len(names) or not set(names) <= set(AGGREGATORS):
        raise ValueError(
            f"aggregators must be one or more different ones of {', '.join(AGGREGATORS)}, got {names!r}"
        )
    return names


def kept_gradients(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """A list that backward passes fill with the gradients at `tensors`; None where none has come.

    The same as `retain_grad()` keeps, without the copy that it makes.
    """
    found: list[Tensor | None] = [None] * len(tensors)

    def keep(number: int, grad: Tensor) -> None:
        before = found[number]
        found[number] = grad if before is None else before + grad

    for number, tensor in enumerate(tensors):
        tensor.register_hook(partial(keep, number))
    return found


def magnitudes(
    captures: LayerCaptures,
    captured: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    aggregators: Sequence[str],
    dtype: torch.dtype,
) -> Tensor:
    """(N, (A + 1) P, B): |z^p| of layers 0..P-1 by each aggregator, then the sums of |g^(p+1)| times B.

    `captured` are the L captures; `grads` those of all but the first, None for a block that the loss does
    not depend on.
    """

    def absolute(tensors: Iterable[Tensor]) -> Tensor:  # (N, P, C, B), the order that GSNN keeps them in
        parts = [captures.by_node(t).permute(1, 2, 0) for t in tensors]
        return torch.stack(parts, 1).to(dtype).abs_()

    z = absolute(t.detach() for t in captured[:-1])
    g = absolute(
        torch.zeros_like(t) if grad is None else grad for grad, t in zip(grads, captured[1:], strict=True)
    )
    y = AGGREGATORS["sum"](g) * g.shape[-1]
    return torch.cat([*(AGGREGATORS[name](z) for name in aggregators), y], 1)


def check_finite(values: Tensor, pairs: int, names: Sequence[str], step: int) -> None:
    """A ValueError that names the first of `magnitudes` that is NaN or infinite."""
    bad = ~values.isfinite()
    if bool(bad.any()):
        node, slot, _ = bad.nonzero()[0].tolist()
        of_gradient = slot >= values.shape[1] - pairs
        raise ValueError(
            f"the {'gradient' if of_gradient else 'activation'} of function node {names[node]!r} in block "
            f"{slot % pairs + of_gradient} is not finite (step {step}): check the data and the loss for NaN "
            "and infinity"
        )
