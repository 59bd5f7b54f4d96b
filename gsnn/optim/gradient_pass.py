"""One forward and one backward pass a batch through a model with captures: what inferers learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gsnn._memory import memory_advice
from gsnn._modes import evaluation_mode
from gsnn._progress import progress
from gsnn.captures import Captures
from gsnn.optim.batch_scale import BatchScale, Crit, device_of, dtype_of, unpack


@dataclass(frozen=True)
class Batch:
    """A batch that has gone forward.

    Attributes:
        number: from 0.
        inputs, prediction: (B, N_in), a leaf of the autograd graph, and (B, N_out).
        target: (B, N_out), NaN where nothing was measured.
        loss: scalar.
        keep: (B,) the samples to count, None for all.
        scale: factor that makes the gradients those of each sample's own loss.
        again: whether gradients of this batch are asked for once more.
    """

    number: int
    inputs: Tensor
    prediction: Tensor
    target: Tensor
    loss: Tensor
    keep: Tensor | None
    scale: float
    again: bool = False

    def gradients(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of the loss at `tensors`, 0 at one that it does not depend on; not yet times `scale`."""
        if not self.loss.requires_grad or not all(t.requires_grad for t in tensors):
            raise ValueError(
                "crit must return a loss that depends on the model's output, got one without a gradient"
            )
        found = torch.autograd.grad(self.loss, tensors, allow_unused=True, retain_graph=self.again)
        return [t.new_zeros(t.shape) if g is None else g for g, t in zip(found, tensors, strict=True)]

    def probe(self, generator: torch.Generator) -> Batch:
        """The same with the outputs, of random signs, as its loss; its gradients may be asked for first.

        Gradients of that have as second moments those of the derivatives of all measured outputs together.
        """
        signs = torch.randint(2, self.prediction.shape, generator=generator).to(self.prediction) * 2 - 1
        loss = (self.prediction * signs * ~self.target.isnan()).sum()
        return replace(self, loss=loss, again=True)

    def counted(self, values: Tensor) -> Tensor:
        """The samples to count of (P, B, ...)."""
        return values if self.keep is None else values[:, self.keep]

    def check_finite(self, values: Tensor, kind: str, what: str, names: Sequence[str], first: int) -> None:
        """ValueError where `values` (P, B, nodes, ...) are not finite; `first` is the block of the first."""
        if not bool(values.isfinite().all()):
            pair, _, node = (~values.isfinite()).nonzero()[0].tolist()[:3]
            raise ValueError(
                f"the {kind} of {what} {names[node]!r} in block {pair + first} is not finite "
                f"(batch {self.number}): check the data and the loss for NaN and infinity"
            )


def over_batches(
    model: nn.Module,
    captures: Captures,
    dataloader: Iterable[Any],
    take: Callable[[Batch], None],
    crit: Crit | None = None,
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> None:
    """Run the model over `dataloader` in eval mode, captures on, and give `take` each batch in turn.

    The model's mode, its device, its parameters' `.grad` and its captures are left as they were, also when
    something fails.

    Args:
        dataloader: yields (x, y).
        crit: loss, see :class:`gsnn.optim.batch_scale.BatchScale`.
        device: where to run; by default where the model is.
        verbose: show progress.

    Raises:
        TypeError, ValueError: a batch is no (x, y) pair, or the loss is neither a mean nor a sum over
            samples.
    """
    home = device_of(model)
    away = home if device is None else torch.device(device)
    scale_of = BatchScale(crit)
    with ExitStack() as stack:
        if away != home:
            stack.callback(model.to, home)
            model.to(away)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(captures.recording())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(
            memory_advice(
                "smaller batches of the dataloader take less; the inferer's own needs are in its docstring"
            )
        )
        for number, batch in enumerate(progress(dataloader, "samples", verbose)):
            inputs, target = unpack(batch, away, dtype_of(model))
            # The captures must be on the autograd graph even if every parameter is frozen.
            inputs = inputs.detach().requires_grad_()
            prediction = model(inputs)
            take(Batch(number, inputs, prediction, target, *scale_of(prediction, target)))
