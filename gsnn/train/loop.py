"""Fit a GSNN to tables or arrays, and predict with it.

``fit`` is a plain supervised loop: AdamW (Loshchilov & Hutter 2019) with a cosine schedule, targets
that may have gaps, early stopping on a validation loss with the best weights restored. Code that
needs more (an extra loss, an online edge inferer) writes its own loop; nothing here is required.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch

from gsnn._checks import non_negative, one_of, positive, whole
from gsnn._modes import evaluation_mode, modes_kept
from gsnn._progress import ProgressBar
from gsnn.data.dataset import Prepared
from gsnn.data.match import as_rows, node_names, sample_names
from gsnn.data.scaling import Scaling, scaling_of, set_scaling
from gsnn.train.callbacks import Callbacks, EpochState, checked, stop_asked
from gsnn.train.history import History
from gsnn.train.resume import FitCheckpoint, Progress, describe_model, describe_versions
from gsnn.train.tables import Table, prepare

Criterion = Callable[..., torch.Tensor]

Schedule = Literal["cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def fit(
    model: torch.nn.Module,
    x: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    validation: tuple[Any, Any] | float | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    patience: int | None = None,
    crit: Criterion | None = None,
    schedule: Schedule = "cosine",
    standardize: bool | Scaling = False,
    restore_best: bool = True,
    seed: int | None = None,
    device: torch.device | str | None = None,
    callbacks: Callbacks = (),
    verbose: bool | str = True,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
) -> History:
    """Train ``model`` in place on x (B, N_in) and y (B, N_out).

    x and y are arrays, tensors, DataFrames, memory maps, scipy sparse matrices, HDF5 datasets or AnnData
    (their ``X``), in any combination. Columns of DataFrames and AnnData (``var_names``) are matched by name
    with the model's input and output nodes, in any order; where both tables name their samples, rows are
    too. Memory maps, sparse matrices, HDF5 and AnnData, also on disk, are never loaded or made dense as a
    whole: one pass checks them before training, then each batch reads its rows. Only predictions for the
    validation data and its targets are held at once. Zeros that a sparse matrix leaves out are zeros.
    NaN in y means "not measured" and takes no part in the loss; rows of y without any value are left
    out. Batches are drawn anew every epoch and differ by at most one sample in size.

    Args:
        model: a GSNN (anything with ``graph.node_names_dict`` and a forward from x to y).
        sample_weight: one number of at least 0 for each row of x (a Series is matched by name where x names
            its rows): how much its squared errors count. Rows of weight 0 are left out. The scaling
            and the norms' batch statistics count every other row alike.
        validation: ``(x_val, y_val)``, or the fraction of rows to put aside, drawn at random. The
            weights of the epoch with the lowest validation loss are restored at the end. Without it
            the model keeps the weights of the last epoch.
        restore_best: False only watches the validation loss: it is recorded, has no say in the result, and
            the weights of the last epoch stay. This is how a test set can be watched.
        patience: stop after this many epochs without a lower validation loss.
        crit: ``crit(yhat, y) -> scalar``, mean squared error by default. Where y has gaps it gets the
            measured entries only, as two vectors. With ``sample_weight`` it is ``crit(yhat, y, weight)``, the
            weights of the shape of y and 1 on average over the training rows.
        schedule: ``'cosine'`` takes the learning rate from ``lr`` to 0 over all steps, ``'constant'``
            keeps it.
        standardize: train on standardised columns. The scaling is computed from the training rows
            (or taken as given), kept as ``model.scaling``, undone by ``predict`` and stored by
            ``gsnn.io.save``. A direct call ``model(x)`` then works in standardised units.
        seed: fixes the order of the batches, the validation split and dropout, and leaves the global
            random state alone. Without it everything follows torch's global state.
        device: moves the model there first (and leaves it there); by default the model's own device.
        callbacks: functions of an :class:`gsnn.train.callbacks.EpochState`, or objects whose method
            ``on_epoch`` is one, called in turn after each epoch. Where one returns True the fit ends as after
            its last epoch. Where one raises, the model first gets the weights that it would have had then.
            After an interruption they are called from the epoch on that follows. With a ``seed``, random
            numbers that they draw change nothing.
        verbose: show progress, as a bar on a terminal and else as a line each tenth; a text labels it.
        checkpoint_path: a file that keeps the state after finished epochs. Where it is there already, the
            fit goes on from it: the same call in a new process gives, on the same kind of machine and
            number of threads, bit for bit what it would have given uninterrupted. Needs a ``seed``. The
            file stays after the last epoch, so that a script of several fits, started again, passes over
            those that are finished; delete it to train anew. It belongs to the settings, data, graph and
            initial weights it was written for (build the model after ``torch.manual_seed``); of ``crit``
            only the name is compared.
        checkpoint_every: write it after every so many epochs, and after the last.

    Returns:
        A :class:`History`.

    Raises:
        ValueError: wrong shapes, missing or unknown columns, NaN or infinite x, infinite y, an output
            without a single measured value, weights that are negative or all 0, options out of range; a
            checkpoint that is damaged or belongs to another run.
        TypeError: ``callbacks`` is no list of such, or one returned something else than True, False or None.
        FileNotFoundError: the folder of ``checkpoint_path`` is not there.
        FloatingPointError: the loss became NaN or infinite. The weights of the best epoch so far (by
            validation loss; the initial ones where there is none) are put back first, and the checkpoint is
            deleted.

    Example:
        >>> from gsnn.models.GSNN import GSNN
        >>> from gsnn.simulate.scenarios import converging_tiers
        >>> scenario = converging_tiers(4)
        >>> x, _, y, _ = scenario.sample(64, 0, seed=0)
        >>> graph = scenario.partial
        >>> model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=4, layers=3)
        >>> history = fit(model, x, y, epochs=3, standardize=True, seed=0, verbose=False)
        >>> len(history.train_loss), predict(model, x).shape
        (3, (64, 4))
    """
    check_options(epochs, batch_size, lr, weight_decay, patience, schedule, validation, restore_best)
    whole("checkpoint_every", checkpoint_every)
    if checkpoint_path is not None:
        if seed is None:
            raise ValueError(
                "checkpoint_path needs a seed, as an unseeded fit cannot be repeated, got seed=None"
            )
        if not os.path.isdir(os.path.dirname(os.path.abspath(checkpoint_path))):
            raise FileNotFoundError(f"checkpoint_path must be in a folder that exists, got {checkpoint_path}")
    if device is not None:
        model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    dtype, device = params[0].dtype, params[0].device
    calls = checked(callbacks)
    crit = default_criterion(sample_weight) if crit is None else crit

    seed = None if seed is None else operator.index(seed)
    rng = torch.Generator()
    rng.manual_seed(int(torch.randint(2**62, ()).item()) if seed is None else seed)
    given = prepare(
        model,
        x,
        y,
        validation,
        standardize,
        rng,
        checkpoint_path is not None,
        device,
        dtype,
        sample_weight=sample_weight,
    )
    x_train, y_train, val, scaling = given.x, given.y, given.val, given.scaling
    n_batches = math.ceil(len(x_train) / batch_size)
    n_steps = epochs * n_batches
    opt = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda"))
    checkpoint = None
    if checkpoint_path is not None:
        settings = {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "patience": patience,
            "crit": getattr(crit, "__qualname__", type(crit).__qualname__),
            "schedule": schedule,
            "standardize": standardize if isinstance(standardize, bool) else repr(standardize),
            "restore_best": restore_best,
            "validation": "given" if isinstance(validation, tuple) else validation,
            "seed": seed,
            "device": device.type,
        }
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
        run = {**describe_versions(), **plain, **given.checksums, **describe_model(model)}
        checkpoint = FitCheckpoint(checkpoint_path, run)
    label = verbose if isinstance(verbose, str) else "epochs"
    done = Progress(_snapshot(model))
    with modes_kept(model), _seeded(seed, device):
        if checkpoint is not None:
            checkpoint.resume(model, opt, rng, done)
        set_scaling(model, scaling)
        with contextlib.closing(ProgressBar(epochs, label, bool(verbose), done=done.epoch)) as bar:
            while done.epoch < epochs and not stops(done, patience):
                model.train()
                first = done.epoch * n_batches
                order = torch.randperm(len(x_train), generator=rng).to(device)
                total, count = torch.zeros((), device=device, dtype=torch.float64), 0
                for b, rows in enumerate(torch.tensor_split(order, n_batches)):
                    for group in opt.param_groups:
                        group["lr"] = rate(lr, schedule, first + b, n_steps)
                    weights = given.weights_of(rows)
                    loss = loss_of(crit, model(x_train[rows]), y_train[rows], given.gaps, weights)
                    opt.zero_grad(set_to_none=True)
                    loss.backward()
                    opt.step()
                    total += loss.detach().double() * len(rows)
                    count += len(rows)
                opt.zero_grad(set_to_none=True)
                done.train_loss.append(float(total) / count)
                done.val_loss.append(
                    math.nan if val is None else _evaluate(model, crit, *val, given.val_weight, batch_size)
                )
                done.lr.append(rate(lr, schedule, first, n_steps))
                losses = {"train": done.train_loss[-1]} | ({} if val is None else {"val": done.val_loss[-1]})
                if not all(map(math.isfinite, losses.values())):
                    model.load_state_dict(done.best)
                    if checkpoint is not None:
                        checkpoint.discard()
                    back = (
                        f"the weights of epoch {done.best_epoch}"
                        if done.best_epoch
                        else "the initial weights"
                    )
                    raise FloatingPointError(
                        f"the loss became {losses['train']:g} in epoch {done.epoch} of {epochs}; {back} were "
                        f"put back. A lower lr (now {lr:g}) or another norm usually helps"
                    )
                if val is not None and losses["val"] < done.best_loss:
                    done.best, done.best_epoch = _snapshot(model), done.epoch
                if checkpoint is not None and (
                    done.epoch % checkpoint_every == 0 or done.epoch == epochs or stops(done, patience)
                ):
                    checkpoint.save(model, opt, rng, done)
                bar.update(**losses)
                if calls:
                    state = epoch_state(done, epochs, model)
                    try:
                        with _undrawn(seed, device):
                            done.stopped = stop_asked(calls, state)
                    except BaseException:
                        if val is not None and restore_best:
                            model.load_state_dict(done.best)
                        raise
                    if done.stopped and checkpoint is not None:
                        checkpoint.save(model, opt, rng, done)
    best_epoch = done.epoch
    if val is not None and restore_best:
        best_epoch = done.best_epoch
        model.load_state_dict(done.best)
    return History(
        tuple(done.train_loss), tuple(done.val_loss), tuple(done.lr), best_epoch, stops(done, patience)
    )


def predict(model: torch.nn.Module, x: Any, *, batch_size: int = 1024) -> Any:
    """Predictions (B, N_out) for x (B, N_in), in eval mode, without gradients.

    x is anything that ``fit`` takes. A DataFrame or AnnData is matched by column name and gives a DataFrame
    with its index (``obs_names``) and one column per output node; anything else gives a numpy array. Memory
    maps, sparse matrices, HDF5 and AnnData are read batch by batch. Where the model carries a scaling (see
    ``fit(standardize=True)``) x and the predictions are in the original units. The model's mode is
    left as it was.

    Raises:
        ValueError: wrong width, missing or unknown columns, NaN or infinite x.
    """
    whole("batch_size", batch_size)
    xs = as_rows(model, x, "input", "x")
    param = next(model.parameters())
    scaling = scaling_of(model)
    ready = Prepared(xs, None if scaling is None else scaling.scale_x, param.device, param.dtype)
    parts = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(ready), batch_size):
            parts.append(model(ready[start : start + batch_size]).to("cpu"))
    yhat = torch.cat(parts) if parts else torch.zeros(0, len(node_names(model, "output")), dtype=param.dtype)
    if scaling is not None:
        yhat = scaling.unscale_y(yhat)
    out = (yhat.float() if yhat.dtype == torch.bfloat16 else yhat).numpy()
    samples = sample_names(x)
    if samples is None:
        return out
    import pandas as pd

    return pd.DataFrame(out, index=samples, columns=node_names(model, "output"))


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


def _evaluate(
    model: torch.nn.Module,
    crit: Criterion,
    x: Table,
    y: Table,
    weight: torch.Tensor | None,
    batch_size: int,
) -> float:
    """Loss over all of (x, y) at once, so that it does not depend on how batches are cut."""
    model.eval()
    with torch.no_grad():
        yhat = torch.cat([model(x[i : i + batch_size]) for i in range(0, len(x), batch_size)])
        measured = y[:]
        return float(loss_of(crit, yhat, measured, bool(measured.isnan().any()), weight))


def _snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global state, so a seed is set there and the state put back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _undrawn(seed: int | None, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Inside, random numbers may be drawn that the fit of a ``seed`` does not miss."""
    if seed is None:
        return contextlib.nullcontext()
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def check_options(
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    patience: int | None,
    schedule: Schedule,
    validation: tuple[Any, Any] | float | None,
    restore_best: bool,
) -> None:
    """Refuse arguments of ``fit`` that are out of range."""
    whole("epochs", epochs)
    whole("batch_size", batch_size)
    positive("lr", lr)
    non_negative("weight_decay", weight_decay)
    one_of("schedule", schedule, SCHEDULES)
    if patience is not None:
        whole("patience", patience)
        if validation is None or not restore_best:
            raise ValueError("patience needs validation=... and restore_best=True")
    if isinstance(validation, tuple):
        if len(validation) != 2:
            raise ValueError(f"validation must be (x_val, y_val), got {len(validation)} items")
    elif validation is not None and not (
        isinstance(validation, (int, float)) and not isinstance(validation, bool) and 0 < validation < 1
    ):
        raise ValueError(f"validation must be (x_val, y_val) or a fraction in (0, 1), got {validation!r}")
