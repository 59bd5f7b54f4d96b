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
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gsnn._checks import whole
from gsnn._memory import memory_advice
from gsnn._modes import evaluation_mode, modes_kept
from gsnn._progress import ProgressBar
from gsnn.data.dataset import Prepared
from gsnn.data.match import as_rows, node_names, sample_names
from gsnn.data.scaling import Scaling, scaling_of, set_scaling
from gsnn.train.callbacks import Callbacks, checked, stop_asked
from gsnn.train.history import History
from gsnn.train.resume import FitCheckpoint, Progress, describe_model, describe_versions
from gsnn.train.rules import (
    Criterion,
    Schedule,
    Settings,
    default_criterion,
    epoch_state,
    loss_of,
    rate,
    stops,
)
from gsnn.train.tables import Tables, prepare


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
        MemoryError: memory ran out; the message says what takes less. The model has the weights of its last
            step.

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
    settings = Settings(
        epochs,
        batch_size,
        lr,
        weight_decay,
        patience,
        default_criterion(sample_weight) if crit is None else crit,
        schedule,
        restore_best,
        checkpoint_every,
        checked(callbacks),
    )
    settings.check(validation)
    seed = None if seed is None else operator.index(seed)
    _check_place(checkpoint_path, seed)
    if device is not None:
        model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    rng = torch.Generator()
    rng.manual_seed(int(torch.randint(2**62, ()).item()) if seed is None else seed)
    looked, place = checkpoint_path is not None, (params[0].device, params[0].dtype)
    tables = prepare(model, x, y, validation, standardize, rng, looked, *place, sample_weight=sample_weight)
    checkpoint = None
    if checkpoint_path is not None:
        run = _identity(model, settings, tables, seed, standardize, validation)
        checkpoint = FitCheckpoint(checkpoint_path, run)
    training = _Training(model, params, settings, tables, seed, rng, checkpoint)
    label = verbose if isinstance(verbose, str) else "epochs"
    less = memory_advice(f"a batch_size below {batch_size} takes less, as does GSNN(checkpoint=True)")
    with modes_kept(model), _seeded(seed, params[0].device), less:
        training.resume()
        set_scaling(model, tables.scaling)
        with contextlib.closing(ProgressBar(epochs, label, bool(verbose), done=training.done.epoch)) as bar:
            while not training.over:
                training.train_epoch()
                losses = training.validate()
                training.refuse_explosion(losses)
                training.keep(losses)
                bar.update(**losses)
                training.tell()
    return training.history()


class _Training:
    """One network under way, by the steps that ``fit`` takes in turn."""

    def __init__(
        self,
        model: torch.nn.Module,
        params: list[torch.nn.Parameter],
        settings: Settings,
        tables: Tables,
        seed: int | None,
        rng: torch.Generator,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        self.model, self.settings, self.tables = model, settings, tables
        self.seed, self.rng, self.checkpoint = seed, rng, checkpoint
        self.device = params[0].device
        self.n_batches = math.ceil(len(tables.x) / settings.batch_size)
        self.opt = torch.optim.AdamW(  # the rate is set before each step
            params,
            weight_decay=settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.done = Progress(_snapshot(model))

    @property
    def over(self) -> bool:
        return self.done.epoch >= self.settings.epochs or stops(self.done, self.settings.patience)

    def resume(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.resume(self.model, self.opt, self.rng, self.done)

    def train_epoch(self) -> None:
        """Every row once, in batches that differ by at most one row."""
        s, t = self.settings, self.tables
        first, n_steps = self.done.epoch * self.n_batches, s.epochs * self.n_batches
        order = torch.randperm(len(t.x), generator=self.rng).to(self.device)
        total, count = torch.zeros((), device=self.device, dtype=torch.float64), 0
        self.model.train()
        for b, rows in enumerate(torch.tensor_split(order, self.n_batches)):
            for group in self.opt.param_groups:
                group["lr"] = rate(s.lr, s.schedule, first + b, n_steps)
            loss = loss_of(s.crit, self.model(t.x[rows]), t.y[rows], t.gaps, t.weights_of(rows))
            self.opt.zero_grad(set_to_none=True)
            loss.backward()
            self.opt.step()
            total += loss.detach().double() * len(rows)
            count += len(rows)
        self.opt.zero_grad(set_to_none=True)
        self.done.train_loss.append(float(total) / count)
        self.done.lr.append(rate(s.lr, s.schedule, first, n_steps))

    def validate(self) -> dict[str, float]:
        """The losses of the epoch; that of the validation data is over all of them at once."""
        losses, val = {"train": self.done.train_loss[-1]}, self.tables.val
        if val is not None:
            x, y = val
            size = self.settings.batch_size
            self.model.eval()
            with torch.no_grad():
                yhat = torch.cat([self.model(x[i : i + size]) for i in range(0, len(x), size)])
                measured = y[:]
                gaps, weight = bool(measured.isnan().any()), self.tables.val_weight
                losses["val"] = float(loss_of(self.settings.crit, yhat, measured, gaps, weight))
        self.done.val_loss.append(losses.get("val", math.nan))
        return losses

    def refuse_explosion(self, losses: dict[str, float]) -> None:
        """Put the best weights back and raise where a loss is no number."""
        if all(map(math.isfinite, losses.values())):
            return
        done, s = self.done, self.settings
        self.model.load_state_dict(done.best)
        if self.checkpoint is not None:
            self.checkpoint.discard()
        back = f"the weights of epoch {done.best_epoch}" if done.best_epoch else "the initial weights"
        raise FloatingPointError(
            f"the loss became {losses['train']:g} in epoch {done.epoch} of {s.epochs}; {back} were "
            f"put back. A lower lr (now {s.lr:g}) or another norm usually helps"
        )

    def keep(self, losses: dict[str, float]) -> None:
        """The weights where they are the best so far, and the checkpoint where it is due."""
        done = self.done
        if losses.get("val", math.inf) < done.best_loss:
            done.best, done.best_epoch = _snapshot(self.model), done.epoch
        if done.epoch % self.settings.checkpoint_every == 0 or self.over:
            self._save()

    def tell(self) -> None:
        """Call the callbacks; one of them may stop the fit."""
        s, done = self.settings, self.done
        if not s.calls:
            return
        try:
            with _undrawn(self.seed, self.device):
                done.stopped = stop_asked(s.calls, epoch_state(done, s.epochs, self.model))
        except BaseException:
            self._restore()
            raise
        if done.stopped:
            self._save()

    def history(self) -> History:
        """What came of it; the model gets its final weights."""
        done = self.done
        losses = tuple(done.train_loss), tuple(done.val_loss), tuple(done.lr)
        return History(*losses, self._restore(), stops(done, self.settings.patience))

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(self.model, self.opt, self.rng, self.done)

    def _restore(self) -> int:
        """Go to the best epoch where validation chooses one; the epoch whose weights the model has."""
        if self.tables.val is None or not self.settings.restore_best:
            return self.done.epoch
        self.model.load_state_dict(self.done.best)
        return self.done.best_epoch


def _check_place(checkpoint_path: str | os.PathLike[str] | None, seed: int | None) -> None:
    if checkpoint_path is None:
        return
    if seed is None:
        raise ValueError("checkpoint_path needs a seed, as an unseeded fit cannot be repeated, got seed=None")
    if not os.path.isdir(os.path.dirname(os.path.abspath(checkpoint_path))):
        raise FileNotFoundError(f"checkpoint_path must be in a folder that exists, got {checkpoint_path}")


def _identity(
    model: torch.nn.Module,
    s: Settings,
    tables: Tables,
    seed: int | None,
    standardize: bool | Scaling,
    validation: tuple[Any, Any] | float | None,
) -> dict[str, Any]:
    """All that the result depends on, for the checkpoint, which another fit does not take up."""
    settings = {
        **{name: getattr(s, name) for name in ("epochs", "batch_size", "lr", "weight_decay", "patience")},
        "crit": getattr(s.crit, "__qualname__", type(s.crit).__qualname__),
        "schedule": s.schedule,
        "standardize": standardize if isinstance(standardize, bool) else repr(standardize),
        "restore_best": s.restore_best,
        "validation": "given" if isinstance(validation, tuple) else validation,
        "seed": seed,
        "device": next(model.parameters()).device.type,
    }
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
    return {**describe_versions(), **plain, **tables.checksums, **describe_model(model)}


def predict(model: torch.nn.Module, x: Any, *, batch_size: int = 1024) -> Any:
    """Predictions (B, N_out) for x (B, N_in), in eval mode, without gradients.

    x is anything that ``fit`` takes. A DataFrame or AnnData is matched by column name and gives a DataFrame
    with its index (``obs_names``) and one column per output node; anything else gives a numpy array. Memory
    maps, sparse matrices, HDF5 and AnnData are read batch by batch. Where the model carries a scaling (see
    ``fit(standardize=True)``) x and the predictions are in the original units. The model's mode is
    left as it was.

    Raises:
        ValueError: wrong width, missing or unknown columns, NaN or infinite x.
        MemoryError: memory ran out; the message says what takes less.
    """
    whole("batch_size", batch_size)
    xs = as_rows(model, x, "input", "x")
    param = next(model.parameters())
    scaling = scaling_of(model)
    ready = Prepared(xs, None if scaling is None else scaling.scale_x, param.device, param.dtype)
    parts = []
    less = memory_advice(f"a batch_size below {batch_size} takes less")
    with evaluation_mode(model), torch.no_grad(), less:
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
