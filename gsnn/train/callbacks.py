"""What is called after each epoch of a fit: to watch it, to write it down, to stop it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class EpochState:
    """A network after an epoch. It is there to be read: changing ``model`` has no defined effect.

    Attributes:
        epoch: finished epochs, from 1.
        epochs: how many there will be, unless the fit stops early.
        train_loss: of this epoch, in the units the network is trained in.
        val_loss: the same for the validation data, NaN without any.
        lr: learning rate of the epoch's first step.
        best_epoch: the epoch with the lowest validation loss so far; 0 without validation data.
        model: the network with its weights as they are now.
        member: which of the networks that are trained side by side this is, from 0.
        members: how many these are, 1 in a fit of one.
    """

    epoch: int
    epochs: int
    train_loss: float
    val_loss: float
    lr: float
    best_epoch: int
    model: torch.nn.Module
    member: int = 0
    members: int = 1

    def metrics(self) -> dict[str, float]:
        """What trackers log: ``train_loss``, ``val_loss`` where there is one, ``lr``.

        Names begin with ``member0/`` and so on where several networks are trained.
        """
        start = f"member{self.member}/" if self.members > 1 else ""
        found = {"train_loss": self.train_loss, "val_loss": self.val_loss, "lr": self.lr}
        return {start + name: value for name, value in found.items() if not math.isnan(value)}


class Callback(Protocol):
    """An object with ``on_epoch(state)``: True stops the fit of this network, None and False go on.

    A plain function of the state will do as well.
    """

    def on_epoch(self, state: EpochState) -> bool | None:
        """Called after each epoch with an :class:`EpochState`."""


Callbacks = Iterable[Callback | Callable[[EpochState], bool | None]]


def checked(callbacks: Any) -> list[Callable[[EpochState], Any]]:
    """The functions to call.

    Raises:
        TypeError: no list of objects with ``on_epoch`` or functions.
    """
    wanted = "callbacks must be a list of functions or objects with on_epoch"
    if callbacks is None or not isinstance(callbacks, Iterable):
        raise TypeError(f"{wanted}, got {callbacks!r}")
    found = []
    for callback in callbacks:
        call = getattr(callback, "on_epoch", callback)
        if isinstance(callback, type) or not callable(call):
            raise TypeError(f"{wanted}, got {callback!r} in it")
        found.append(call)
    return found


def stop_asked(calls: Iterable[Callable[[EpochState], Any]], state: EpochState) -> bool:
    """Call all; whether one of them asks to stop.

    Raises:
        TypeError: one returned something else than True, False or None.
    """
    stop = False
    for call in calls:
        answer = call(state)
        if answer is not None and not isinstance(answer, (bool, np.bool_)):
            raise TypeError(
                f"a callback must return True to stop, else False or None; {call!r} returned {answer!r}"
            )
        stop = stop or bool(answer)
    return stop
