"""Fit a GSNN to tables or arrays, and predict with it.

``fit`` is a plain supervised loop: AdamW (Loshchilov & Hutter 2019) with a cosine schedule, targets
that may have gaps, early stopping on a validation loss with the best weights restored. Code that
needs more (an extra loss, an online edge inferer) writes its own loop; nothing here is required.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from gsnn.arrays import Scaling, as_pair, as_table, is_frame, node_names, scaling_of, set_scaling
from gsnn.functional.modes import evaluation_mode, modes_kept
from gsnn.graph import some_names

if TYPE_CHECKING:
    import pandas as pd

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class History:
    """What ``fit`` saw, one entry per finished epoch.

    Losses are in the units the network is trained in (standardised ones with ``standardize``).
    ``train_loss`` is measured while the weights move, in training mode; ``val_loss`` after the epoch,
    in eval mode, NaN without validation data. ``best_epoch`` counts from 1 and names the epoch whose
    weights the model holds now.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    lr: tuple[float, ...]
    best_epoch: int
    stopped_early: bool

    def to_frame(self) -> pd.DataFrame:
        """Columns ``epoch`` (from 1), ``train_loss``, ``val_loss``, ``lr``."""
        import pandas as pd

        epochs = np.arange(1, len(self.train_loss) + 1)
        return pd.DataFrame(
            {"epoch": epochs, "train_loss": self.train_loss, "val_loss": self.val_loss, "lr": self.lr}
        )


def fit(
    model: torch.nn.Module,
    x: Any,
    y: Any,
    *,
    validation: tuple[Any, Any] | float | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    patience: int | None = None,
    crit: Criterion | None = None,
    schedule: str = "cosine",
    standardize: bool | Scaling = False,
    restore_best: bool = True,
    seed: int | None = None,
    device: torch.device | str | None = None,
    verbose: bool | str = True,
) -> History:
    """Train ``model`` in place on x (B, N_in) and y (B, N_out).

    x and y are arrays, tensors or DataFrames. DataFrame columns are matched by name with the model's
    input and output nodes, in any order; two DataFrames are also matched by their row index.
    NaN in y means "not measured" and takes no part in the loss; rows of y without any value are left
    out. Batches are drawn anew every epoch and differ by at most one sample in size.

    Args:
        model: a GSNN (anything with ``graph.node_names_dict`` and a forward from x to y).
        validation: ``(x_val, y_val)``, or the fraction of rows to put aside, drawn at random. The
            weights of the epoch with the lowest validation loss are restored at the end. Without it
            the model keeps the weights of the last epoch.
        restore_best: False only watches the validation loss: it is recorded, has no say in the result, and
            the weights of the last epoch stay. This is how a test set can be watched.
        patience: stop after this many epochs without a lower validation loss.
        crit: ``crit(yhat, y) -> scalar``, mean squared error by default. Where y has gaps it gets the
            measured entries only, as two vectors.
        schedule: ``'cosine'`` takes the learning rate from ``lr`` to 0 over all steps, ``'constant'``
            keeps it.
        standardize: train on standardised columns. The scaling is computed from the training rows
            (or taken as given), kept as ``model.scaling``, undone by ``predict`` and stored by
            ``gsnn.io.save``. A direct call ``model(x)`` then works in standardised units.
        seed: fixes the order of the batches, the validation split and dropout, and leaves the global
            random state alone. Without it everything follows torch's global state.
        device: moves the model there first (and leaves it there); by default the model's own device.
        verbose: show a progress bar; a text labels it.

    Returns:
        A :class:`History`.

    Raises:
        ValueError: wrong shapes, missing or unknown columns, NaN or infinite x, infinite y, an output
            without a single measured value, options out of range.
        FloatingPointError: the loss became NaN or infinite. The weights of the best epoch so far (by
            validation loss; the initial ones where there is none) are put back first.
    """
    _check_options(epochs, batch_size, lr, weight_decay, patience, schedule, validation, restore_best)
    if device is not None:
        model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    dtype, device = params[0].dtype, params[0].device
    crit = torch.nn.functional.mse_loss if crit is None else crit

    xs, ys = as_pair(model, x, y, "x", "y")
    rng = torch.Generator()
    rng.manual_seed(int(torch.randint(2**62, ()).item()) if seed is None else seed)
    val: tuple[torch.Tensor, torch.Tensor] | None = None
    if isinstance(validation, tuple):
        val = as_pair(model, *validation, "x_val", "y_val")
    elif validation is not None:
        n_val = max(1, round(validation * len(xs)))
        if n_val >= len(xs):
            raise ValueError(f"validation={validation} leaves no sample of {len(xs)} to train on")
        order = torch.randperm(len(xs), generator=rng)
        held, rest = order[:n_val].sort().values, order[n_val:].sort().values
        val = xs[held], ys[held]
        xs, ys = xs[rest], ys[rest]
    _check_measured(model, ys)
    if val is not None and bool(val[1].isnan().all()):
        raise ValueError("validation data must have at least one measured target, got only NaN")

    scaling = Scaling.of(xs, ys) if standardize is True else (standardize or None)
    set_scaling(model, scaling)

    def prepare(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keep = ~y.isnan().all(1)
        x, y = x[keep], y[keep]
        if scaling is not None:
            x, y = scaling.scale_x(x), scaling.scale_y(y)
        return x.to(device, dtype), y.to(device, dtype)

    xs, ys = prepare(xs, ys)
    val = None if val is None else prepare(*val)
    gaps = bool(ys.isnan().any())
    n_batches = math.ceil(len(xs) / batch_size)
    n_steps = epochs * n_batches
    opt = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda"))

    train_loss: list[float] = []
    val_loss: list[float] = []
    rates: list[float] = []
    best, best_epoch, best_loss = _snapshot(model), 0, math.inf
    stopped = False
    with modes_kept(model), _seeded(seed, device), _bar(epochs, verbose) as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            order = torch.randperm(len(xs), generator=rng).to(device)
            total, count = torch.zeros((), device=device, dtype=torch.float64), 0
            rates.append(_rate(lr, schedule, (epoch - 1) * n_batches, n_steps))
            for b, rows in enumerate(torch.tensor_split(order, n_batches)):
                for group in opt.param_groups:
                    group["lr"] = _rate(lr, schedule, (epoch - 1) * n_batches + b, n_steps)
                loss = _loss(crit, model(xs[rows]), ys[rows], gaps)
                opt.zero_grad(set_to_none=True)
                loss.backward()
                opt.step()
                total += loss.detach().double() * len(rows)
                count += len(rows)
            train_loss.append(float(total) / count)
            val_loss.append(math.nan if val is None else _evaluate(model, crit, *val, batch_size))
            opt.zero_grad(set_to_none=True)
            if not math.isfinite(train_loss[-1]) or (val is not None and not math.isfinite(val_loss[-1])):
                model.load_state_dict(best)
                back = f"the weights of epoch {best_epoch}" if best_epoch else "the initial weights"
                raise FloatingPointError(
                    f"the loss became {train_loss[-1]:g} in epoch {epoch} of {epochs}; {back} were put back. "
                    f"A lower lr (now {lr:g}) or another norm usually helps"
                )
            bar.update()
            shown = {"train": f"{train_loss[-1]:.4g}"} | (
                {} if val is None else {"val": f"{val_loss[-1]:.4g}"}
            )
            bar.set_postfix(shown, refresh=False)
            if val is not None and val_loss[-1] < best_loss:
                best, best_epoch, best_loss = _snapshot(model), epoch, val_loss[-1]
            elif patience is not None and epoch - best_epoch >= patience:
                stopped = True
                break
    if val is None or not restore_best:
        best_epoch = len(train_loss)
    else:
        model.load_state_dict(best)
    return History(tuple(train_loss), tuple(val_loss), tuple(rates), best_epoch, stopped)


def predict(model: torch.nn.Module, x: Any, *, batch_size: int = 1024) -> Any:
    """Predictions (B, N_out) for x (B, N_in), in eval mode, without gradients.

    A DataFrame is matched by column name and gives a DataFrame with the same index and one column
    per output node; an array or tensor gives a numpy array. Where the model carries a scaling (see
    ``fit(standardize=True)``) x and the predictions are in the original units. The model's mode is
    left as it was.

    Raises:
        ValueError: wrong width, missing or unknown columns, NaN or infinite x.
    """
    _check_positive_int("batch_size", batch_size)
    xs = as_table(model, x, "input", "x")
    param = next(model.parameters())
    scaling = scaling_of(model)
    if scaling is not None:
        xs = scaling.scale_x(xs)
    parts = []
    with evaluation_mode(model), torch.no_grad():
        for rows in torch.split(xs, batch_size):
            parts.append(model(rows.to(param.device, param.dtype)).to("cpu"))
    yhat = torch.cat(parts) if parts else torch.zeros(0, len(node_names(model, "output")), dtype=param.dtype)
    if scaling is not None:
        yhat = scaling.unscale_y(yhat)
    out = (yhat.float() if yhat.dtype == torch.bfloat16 else yhat).numpy()
    if not is_frame(x):
        return out
    import pandas as pd

    return pd.DataFrame(out, index=x.index, columns=node_names(model, "output"))


def _bar(epochs: int, verbose: bool | str) -> tqdm:
    return tqdm(total=epochs, disable=not verbose, desc=verbose if isinstance(verbose, str) else None)


def _rate(lr: float, schedule: str, step: int, n_steps: int) -> float:
    return lr if schedule == "constant" else lr * 0.5 * (1.0 + math.cos(math.pi * step / n_steps))


def _loss(crit: Criterion, yhat: torch.Tensor, y: torch.Tensor, gaps: bool) -> torch.Tensor:
    if not gaps:
        return crit(yhat, y)
    measured = ~y.isnan()
    return crit(yhat[measured], y[measured])


def _evaluate(
    model: torch.nn.Module, crit: Criterion, x: torch.Tensor, y: torch.Tensor, batch_size: int
) -> float:
    """Loss over all of (x, y) at once, so that it does not depend on how batches are cut."""
    model.eval()
    with torch.no_grad():
        yhat = torch.cat([model(rows) for rows in torch.split(x, batch_size)])
        return float(_loss(crit, yhat, y, bool(y.isnan().any())))


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


def _check_measured(model: torch.nn.Module, y: torch.Tensor) -> None:
    empty = y.isnan().all(0)
    if bool(empty.any()):
        names = [n for n, e in zip(node_names(model, "output"), empty.tolist(), strict=True) if e]
        raise ValueError(f"y has no measured value to train on for {some_names(names)}")


def _check_positive_int(arg: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{arg} must be a positive int, got {value!r}")


def _check_options(
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    patience: int | None,
    schedule: str,
    validation: tuple[Any, Any] | float | None,
    restore_best: bool,
) -> None:
    _check_positive_int("epochs", epochs)
    _check_positive_int("batch_size", batch_size)
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"weight_decay must be a number >= 0, got {weight_decay!r}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
    if patience is not None:
        _check_positive_int("patience", patience)
        if validation is None or not restore_best:
            raise ValueError("patience needs validation=... and restore_best=True")
    if isinstance(validation, tuple):
        if len(validation) != 2:
            raise ValueError(f"validation must be (x_val, y_val), got {len(validation)} items")
    elif validation is not None and not (
        isinstance(validation, (int, float)) and not isinstance(validation, bool) and 0 < validation < 1
    ):
        raise ValueError(f"validation must be (x_val, y_val) or a fraction in (0, 1), got {validation!r}")
