"""What every training here does alike: settings, learning rate, loss, when to stop, what callbacks hear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from gsnn._checks import non_negative, one_of, positive, whole
from gsnn.train.callbacks import EpochState
from gsnn.train.resume import Progress

Criterion = Callable[..., torch.Tensor]

Schedule = Literal["cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`gsnn.train.loop.fit` that are the same for all networks of a call.

    Attributes:
        crit: the loss, :func:`default_criterion` in place of None.
        calls: callbacks.
        n_models: how many networks there are.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    patience: int | None
    crit: Criterion
    schedule: Schedule
    restore_best: bool
    checkpoint_every: int = 1
    calls: Sequence[Callable[[EpochState], Any]] = ()
    n_models: int = 1

    def check(self, validation: tuple[Any, Any] | float | None) -> None:
        """Refuse settings that are out of range, by themselves or beside this ``validation``.

        Raises:
            ValueError: naming the argument of ``fit``.
        """
        whole("epochs", self.epochs)
        whole("batch_size", self.batch_size)
        whole("checkpoint_every", self.checkpoint_every)
        positive("lr", self.lr)
        non_negative("weight_decay", self.weight_decay)
        one_of("schedule", self.schedule, SCHEDULES)
        if self.patience is not None:
            whole("patience", self.patience)
            if validation is None or not self.restore_best:
                raise ValueError("patience needs validation=... and restore_best=True")
        if isinstance(validation, tuple):
            if len(validation) != 2:
                raise ValueError(f"validation must be (x_val, y_val), got {len(validation)} items")
        elif validation is not None and not (
            isinstance(validation, (int, float)) and not isinstance(validation, bool) and 0 < validation < 1
        ):
            raise ValueError(f"validation must be (x_val, y_val) or a fraction in (0, 1), got {validation!r}")


def stops(done: Progress, patience: int | None) -> bool:
    """Whether a callback asked to stop, or no epoch in ``patience`` has lowered the validation loss."""
    return done.stopped or (patience is not None and done.epoch - done.best_epoch >= patience)


def epoch_state(
    done: Progress, epochs: int, model: torch.nn.Module, member: int = 0, members: int = 1
) -> EpochState:
    """What callbacks are told of the epoch that is finished."""
    losses = done.train_loss[-1], done.val_loss[-1], done.lr[-1]
    return EpochState(done.epoch, epochs, *losses, done.best_epoch, model, member, members)


def rate(lr: float, schedule: Schedule, step: int, n_steps: int) -> float:
    """The learning rate of a step (from 0) of ``n_steps``."""
    return lr if schedule == "constant" else lr * 0.5 * (1.0 + math.cos(math.pi * step / n_steps))


def default_criterion(sample_weight: Any) -> Criterion:
    """Mean squared error, weighted where there are weights."""
    return torch.nn.functional.mse_loss if sample_weight is None else weighted_mse


def weighted_mse(yhat: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean of ``weight * (yhat - y)^2`` over all entries, for three tensors of one shape."""
    return (weight * (yhat - y).square()).mean()


def loss_of(
    crit: Criterion, yhat: torch.Tensor, y: torch.Tensor, gaps: bool, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """``crit`` over the measured entries of y (b, N_out), with the rows' ``weight`` (b,) if there is one."""
    given = [yhat, y] if weight is None else [yhat, y, weight[:, None].expand_as(y)]
    if gaps:
        measured = ~y.isnan()
        given = [values[measured] for values in given]
    return crit(*given)
