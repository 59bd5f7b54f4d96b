"""How long to train, found inside the training data: an early stop that says what it chose and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold

from gsnn._checks import whole
from gsnn.models.GSNN import GSNN
from gsnn.train.defaults import default_epochs
from gsnn.train.loop import predict
from gsnn.train.side_by_side import fit_side_by_side

_SHORTEST = 16  # the ladder begins at this part of the default length
_LONGEST = 4  # and ends at this multiple of it
_WORTH = 0.02  # twice as many epochs must lower the loss by this share


@dataclass(frozen=True)
class EpochChoice:
    """A number of epochs and where it comes from.

    Attributes:
        epochs: the last doubling that lowered the loss by at least 2%.
        losses: epochs -> mean squared error on samples put aside, in standardised units (1 is about what the
            mean of the training samples reaches), shortest first; empty where nothing could be tried.
        why: one sentence.
    """

    epochs: int
    losses: dict[int, float]
    why: str


def choose_epochs(
    network: Callable[[int], GSNN],
    x: Any,
    y: Any,
    *,
    groups: Any = None,
    sample_weight: Any = None,
    folds: int = 3,
    batch_size: int = 64,
    seed: int = 0,
    verbose: bool | str = False,
    **options: Any,
) -> EpochChoice:
    """The number of epochs that is worth its time on samples put aside, each number with its whole schedule.

    The samples are cut into ``folds`` parts, groups whole. From a sixteenth of
    :func:`gsnn.train.defaults.default_epochs` on the number is doubled; each time networks are trained anew
    without each part, side by side, and judged on it. It ends where twice as many lower the loss by less than
    2%, or at four times the default. A curve of one long training would be cheaper, but with a learning rate
    that falls to 0 its epoch k is not a training of k epochs. The cost is about that of six trainings of the
    length chosen.

    Args:
        network: ``network(seed)`` is an untrained network.
        x, y: (n, N_in) and (n, N_out), rows in the same order, columns in the graph's; NaN in y was not
            measured. Nothing else is looked at, so a test set that is not among them has no say.
        groups: (n,) labels.
        sample_weight: (n,), of the training's losses; samples are judged alike.
        folds: parts, at least 2.
        seed: of the parts and the networks.
        options: further arguments of :func:`gsnn.train.side_by_side.fit_side_by_side`.

    Raises:
        ValueError: ``folds`` below 2, and what a fit says.
    """
    whole("folds", folds, at_least=2)
    targets = np.asarray(y, dtype=np.float64)
    usual = default_epochs(len(targets), batch_size)
    splits = _splits(targets, groups, folds, seed)
    if not splits:
        why = "too few samples to put some aside with every output measured in the others"
        return EpochChoice(usual, {}, f"{usual} epochs, the default for {len(targets)} samples: {why}")
    losses: dict[int, float] = {}
    best = 0
    for epochs in _ladder(usual):
        models = [network(seed + k) for k in range(len(splits))]
        fit_side_by_side(
            models,
            [(x[train], y[train]) for train, _ in splits],
            seeds=[seed + k for k in range(len(splits))],
            sample_weight=None if sample_weight is None else [sample_weight[train] for train, _ in splits],
            epochs=epochs,
            batch_size=batch_size,
            verbose=f"{verbose}, {epochs} epochs" if isinstance(verbose, str) else verbose,
            **options,
        )
        losses[epochs] = _loss(models, x, targets, splits)
        if best and losses[epochs] > (1 - _WORTH) * losses[best]:
            break
        best = epochs
    return EpochChoice(best, losses, _sentence(best, losses, len(splits), len(targets)))


def _ladder(usual: int) -> list[int]:
    """Numbers of epochs to try, each twice the one before."""
    first = max(1, usual // _SHORTEST)
    rungs = int(math.log2(_SHORTEST * _LONGEST)) + 1
    return [first * 2**k for k in range(rungs)]


def _splits(y: np.ndarray, groups: Any, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, rows put aside), those left out in which an output has no value to learn from."""
    labels = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n = len(y) if labels is None else int(labels.max()) + 1
    if min(folds, n) < 2:
        return []
    if labels is None:
        splits = KFold(min(folds, n), shuffle=True, random_state=seed).split(y)
    else:
        # In their order, the groups of a design with three doses would be dealt out one dose to a fold.
        mixed = np.random.default_rng(seed).permutation(n)[labels]
        splits = GroupKFold(min(folds, n)).split(y, groups=mixed)
    seen = ~np.isnan(y)
    return [(train, held) for train, held in splits if seen[train].any(0).all() and seen[held].any()]


def _loss(
    models: Sequence[GSNN], x: Any, y: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Mean squared error over all measured cells put aside, in units of the training samples' spread."""
    total, count = 0.0, 0
    for model, (train, held) in zip(models, splits, strict=True):
        spread = np.nanstd(y[train], axis=0)
        error = (predict(model, x[held]) - y[held]) / np.where(spread > 0, spread, 1.0)
        total, count = total + float(np.nansum(error**2)), count + int((~np.isnan(error)).sum())
    return total / count


def _sentence(best: int, losses: dict[int, float], folds: int, n: int) -> str:
    tried = ", ".join(f"{loss:.3f} after {epochs}" for epochs, loss in losses.items())
    end = (
        "this is the longest that is tried"
        if best == max(losses)
        else f"twice as many lower it by less than {_WORTH:.0%}"
    )
    return (
        f"{best} epochs, by the loss on samples put aside in {folds} folds of the {n} training samples: "
        f"{tried}; {end}"
    )
