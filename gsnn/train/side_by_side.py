"""Fit many small networks at once: folds, restarts, ensembles, trial graphs."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gsnn._memory import memory_advice
from gsnn._progress import ProgressBar
from gsnn.data.scaling import Scaling
from gsnn.train._lots import Checkpoint, Lot, Member
from gsnn.train.callbacks import Callbacks, checked
from gsnn.train.history import History
from gsnn.train.resume import Progress, describe_model, describe_versions
from gsnn.train.rules import Criterion, Schedule, Settings, default_criterion, stops
from gsnn.train.tables import prepare

if TYPE_CHECKING:
    import os

    from gsnn.models.GSNN import GSNN

#: Bytes that the edge states of the networks trained at one time may take.
_MOST_BYTES = 2**30


def fit_side_by_side(
    models: Sequence[GSNN],
    data: Sequence[tuple[Any, Any]],
    *,
    seeds: Sequence[int],
    sample_weight: Sequence[Any] | None = None,
    validation: Sequence[tuple[Any, Any] | float | None] | None = None,
    epochs: int | Sequence[int] = 100,
    batch_size: int = 64,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    patience: int | None = None,
    crit: Criterion | None = None,
    schedule: Schedule = "cosine",
    standardize: bool | Scaling = False,
    restore_best: bool = True,
    device: torch.device | str | None = None,
    callbacks: Callbacks = (),
    verbose: bool | str = True,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
) -> list[History]:
    """Train each of K models in place as ``fit(models[k], *data[k], seed=seeds[k], ...)`` would, all at once.

    The results are those of :func:`gsnn.train.loop.fit`, up to rounding: each model has its own samples,
    batches, scaling, learning rate schedule, dropout, early stop and running statistics.
    The models must have equal arguments; their graphs may differ. See
    :class:`gsnn.models.SideBySide.SideBySide` for what is fast. Where their states would take more
    than 1 GiB, they are trained in several lots.

    Args:
        models: K GSNNs, each in the list once.
        data: (x, y) of each, anything that ``fit`` takes.
        seeds: of each.
        epochs: of all, or of each.
        sample_weight: of each, as ``fit`` takes it; None for none.
        validation: of each, as ``fit`` takes it; None for none.
        crit: as ``fit`` takes it, but a loss of the predictions alone: what is trained are copies, so a term
            of the models' own parameters would have no effect, and is refused.
        callbacks: called after each epoch of each model, which ``state.member`` counts; True stops this one
            model. Where one raises, or at Ctrl-C, every model first gets the weights that a stop leaves.
        checkpoint_path: a file from which the same call goes on after an interruption, with the result that
            it would have had. It belongs to its settings, data, graphs and initial weights.
        checkpoint_every: write it after every so many epochs of the first model that is still training.

    The other arguments are those of ``fit``, the same for all.

    Returns:
        K histories.

    Raises:
        ValueError: lists of different lengths, and what ``fit`` says.
        FloatingPointError: a loss became NaN or infinite. All models get the weights of their best epoch so
            far first (the initial ones without one).
        MemoryError: memory ran out; the message says what takes less. As at Ctrl-C, every model has the
            weights that a stop leaves.
    """
    models, data, seeds = list(models), list(data), [operator.index(seed) for seed in seeds]
    given = [None] * len(models) if validation is None else list(validation)
    weights = [None] * len(models) if sample_weight is None else list(sample_weight)
    lists: tuple[tuple[str, list[Any]], ...] = (("data", data), ("seeds", seeds), ("validation", given))
    for name, values in (*lists, ("sample_weight", weights)):
        if len(values) != len(models):
            raise ValueError(
                f"{name} must have one entry for each of {len(models)} models, got {len(values)}"
            )
    if len({id(model) for model in models}) < len(models):
        raise ValueError("models must be in the list once, got the same model twice")
    lengths = list(epochs) if isinstance(epochs, Sequence) else [epochs] * len(models)
    if len(lengths) != len(models):
        raise ValueError(f"epochs must have one entry for each of {len(models)} models, got {len(lengths)}")
    settings = Settings(
        max(lengths, default=1),
        batch_size,
        lr,
        weight_decay,
        patience,
        default_criterion((weights or [None])[0]) if crit is None else crit,
        schedule,
        restore_best,
        checkpoint_every,
        checked(callbacks),
        len(models),
    )
    for many, aside in zip(lengths or [1], given or [None], strict=True):
        replace(settings, epochs=many).check(aside)
    if checkpoint_path is not None and not Path(checkpoint_path).resolve().parent.is_dir():
        raise FileNotFoundError(f"checkpoint_path must be in a folder that exists, got {checkpoint_path}")
    if len({weight is None for weight in weights}) > 1:
        raise ValueError("sample_weight must be given for all models or for none, got it for some")
    if device is not None:
        for model in models:
            model.to(device)
    members: list[Member] = []
    per_model = zip(models, data, weights, given, seeds, lengths, strict=True)
    for model, (x, y), weight, aside, seed, many in per_model:
        param = next(model.parameters())
        rng = torch.Generator().manual_seed(seed)
        looked = checkpoint_path is not None
        place = param.device, param.dtype
        tables = prepare(model, x, y, aside, standardize, rng, looked, *place, sample_weight=weight)
        n_batches = math.ceil(len(tables.x) / batch_size)
        dropout = torch.Generator(param.device if param.is_cuda else "cpu").manual_seed(seed)
        done = Progress({})
        members.append(Member(model, len(members), tables, rng, dropout, n_batches, many, done))
    run = {
        **{
            "epochs": epochs if isinstance(epochs, int) else lengths,
            "batch_size": batch_size,
            "lr": float(lr),
            "weight_decay": float(weight_decay),
        },
        **{"patience": patience, "schedule": schedule, "restore_best": restore_best, "seeds": seeds},
        "crit": getattr(settings.crit, "__qualname__", type(settings.crit).__qualname__),
        "standardize": standardize if isinstance(standardize, bool) else repr(standardize),
        "validation": ["given" if isinstance(aside, tuple) else aside for aside in given],
    }
    label = verbose if isinstance(verbose, str) else "epochs"
    lots = _lots(members, batch_size)
    with contextlib.closing(
        ProgressBar(sum(lot[0].epochs for lot in lots if lot), label, bool(verbose))
    ) as bar:
        for number, lot in enumerate(lots):
            checkpoint = None
            if checkpoint_path is not None:
                path = Path(checkpoint_path)
                path = path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path
                sums = {
                    f"{what} of network {m.number}": value
                    for m in lot
                    for what, value in {**m.tables.checksums, **describe_model(m.model)}.items()
                }
                checkpoint = Checkpoint(path, {**describe_versions(), **run, "lot": number, **sums})
            with memory_advice(f"a batch_size below {batch_size} takes less"):
                Lot(lot, settings, checkpoint, bar).fit()
    return [
        History(
            tuple(m.done.train_loss),
            tuple(m.done.val_loss),
            tuple(m.done.lr),
            m.done.best_epoch if m.tables.val is not None and restore_best else m.done.epoch,
            stops(m.done, patience),
        )
        for m in members
    ]


def _lots(members: Sequence[Member], batch_size: int) -> list[list[Member]]:
    """Members in turn, cut where their states would take too much memory."""
    lots: list[list[Member]] = [[]]
    taken = 0
    for member in members:
        model = member.model
        item = next(model.parameters()).element_size()
        size = (model.layers + 4) * model.plan.n_rows * (batch_size + 16) * item
        if lots[-1] and taken + size > _MOST_BYTES:
            lots.append([])
            taken = 0
        lots[-1].append(member)
        taken += size
    return lots
