"""Fit a GSNN to tables or arrays, and predict with it.

``fit`` is a plain supervised loop: AdamW (Loshchilov & Hutter 2019) with a cosine schedule, targets
that may have gaps, early stopping on a validation loss with the best weights restored. Code that
needs more (an extra loss, an online edge inferer) writes its own loop; nothing here is required.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from gsnn.graph import some_names

if TYPE_CHECKING:
    import pandas as pd

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Scaling:
    """Per-column shifts and scales: a network sees ``(x - x_mean) / x_scale`` and predicts
    ``(y - y_mean) / y_scale``.

    Each field holds one float per column, in the order of the graph's input or output nodes.
    """

    x_mean: tuple[float, ...]
    x_scale: tuple[float, ...]
    y_mean: tuple[float, ...]
    y_scale: tuple[float, ...]

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> Scaling:
        """Column means and standard deviations of x (B, N_in) and y (B, N_out), gaps (NaN) left out.

        A column without spread gets the scale 1, so that it is only shifted.
        """
        moments = []
        for table in (x, y):
            table = table.detach().to("cpu", torch.float64)
            mean = torch.nanmean(table, 0)
            scale = torch.nanmean((table - mean) ** 2, 0).sqrt()
            flat = ~(scale > 1e-9 * mean.abs())  # also true for NaN: a column without any value
            moments += [tuple(mean.nan_to_num(0.0).tolist()), tuple(scale.masked_fill(flat, 1.0).tolist())]
        return cls(*moments)

    def scale_x(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, N_in) in the units the network sees."""
        return (x - x.new_tensor(self.x_mean)) / x.new_tensor(self.x_scale)

    def scale_y(self, y: torch.Tensor) -> torch.Tensor:
        """y (B, N_out) in the units the network predicts."""
        return (y - y.new_tensor(self.y_mean)) / y.new_tensor(self.y_scale)

    def unscale_y(self, yhat: torch.Tensor) -> torch.Tensor:
        """Predictions (B, N_out) back in the units of y."""
        return yhat * yhat.new_tensor(self.y_scale) + yhat.new_tensor(self.y_mean)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON; ``Scaling.from_dict`` is the way back."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Scaling:
        return cls(**{f.name: tuple(float(v) for v in data[f.name]) for f in fields(cls)})


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
    seed: int | None = None,
    device: torch.device | str | None = None,
    verbose: bool = True,
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
        verbose: show a progress bar.

    Returns:
        A :class:`History`.

    Raises:
        ValueError: wrong shapes, missing or unknown columns, NaN or infinite x, infinite y, an output
            without a single measured value, options out of range.
        FloatingPointError: the loss became NaN or infinite. The weights of the best epoch so far (by
            validation loss; the initial ones where there is none) are put back first.
    """
    _check_options(epochs, batch_size, lr, weight_decay, patience, schedule, validation)
    if device is not None:
        model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have parameters that require a gradient, got none")
    dtype, device = params[0].dtype, params[0].device
    crit = torch.nn.functional.mse_loss if crit is None else crit

    xs, ys = _pair(model, x, y, "x", "y")
    rng = torch.Generator()
    rng.manual_seed(int(torch.randint(2**62, ()).item()) if seed is None else seed)
    val: tuple[torch.Tensor, torch.Tensor] | None = None
    if isinstance(validation, tuple):
        val = _pair(model, *validation, "x_val", "y_val")
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
    model.scaling = scaling  # type: ignore[assignment]

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
    with _modes_kept(model), _seeded(seed, device), tqdm(total=epochs, disable=not verbose) as bar:
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
            bar.set_postfix(train=f"{train_loss[-1]:.4g}", val=f"{val_loss[-1]:.4g}", refresh=False)
            if val is not None and val_loss[-1] < best_loss:
                best, best_epoch, best_loss = _snapshot(model), epoch, val_loss[-1]
            elif patience is not None and epoch - best_epoch >= patience:
                stopped = True
                break
    if val is None:
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
    xs = _table(model, x, "input", "x")
    param = next(model.parameters())
    scaling: Scaling | None = getattr(model, "scaling", None)
    if scaling is not None:
        xs = scaling.scale_x(xs)
    parts = []
    with _modes_kept(model), torch.no_grad():
        model.eval()
        for rows in torch.split(xs, batch_size):
            parts.append(model(rows.to(param.device, param.dtype)).to("cpu"))
    yhat = torch.cat(parts) if parts else torch.zeros(0, len(_names(model, "output")), dtype=param.dtype)
    if scaling is not None:
        yhat = scaling.unscale_y(yhat)
    out = (yhat.float() if yhat.dtype == torch.bfloat16 else yhat).numpy()
    if not _is_frame(x):
        return out
    import pandas as pd

    return pd.DataFrame(out, index=x.index, columns=_names(model, "output"))


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
def _modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Puts back train or eval mode of every submodule, which a bare ``train()`` would flatten."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global state, so a seed is set there and the state put back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _is_frame(table: Any) -> bool:
    return hasattr(table, "columns") and hasattr(table, "index")


def _names(model: torch.nn.Module, kind: str) -> list[str]:
    return list(model.graph.node_names_dict[kind])  # type: ignore[union-attr,index,operator]


def _pair(model: torch.nn.Module, x: Any, y: Any, x_arg: str, y_arg: str) -> tuple[torch.Tensor, torch.Tensor]:
    if _is_frame(x) and _is_frame(y) and not x.index.equals(y.index):
        for arg, table in ((x_arg, x), (y_arg, y)):
            if not table.index.is_unique:
                name = table.index[table.index.duplicated()][0]
                raise ValueError(f"{arg} has the sample {name!r} more than once")
        odd = x.index.symmetric_difference(y.index)
        if len(odd):
            raise ValueError(
                f"{x_arg} and {y_arg} must have the same samples; {len(odd)} are in one only: {some_names(odd)}"
            )
        y = y.loc[x.index]
    xs, ys = _table(model, x, "input", x_arg), _table(model, y, "output", y_arg)
    if len(xs) != len(ys):
        raise ValueError(f"{x_arg} and {y_arg} must have the same number of rows, got {len(xs)} and {len(ys)}")
    if not len(xs):
        raise ValueError(f"{x_arg} must have at least one row, got none")
    return xs, ys


def _table(model: torch.nn.Module, table: Any, kind: str, arg: str) -> torch.Tensor:
    """A checked (B, n) float tensor on the CPU, columns in the order of the model's nodes."""
    names = _names(model, kind)
    rows: Any = None
    if _is_frame(table):
        table, rows = select_columns(table, names, kind, arg), table.index
        try:
            values = torch.as_tensor(table.to_numpy(dtype=np.float64))
        except (TypeError, ValueError) as err:
            raise ValueError(f"{arg} must be numeric: {err}") from None
    else:
        values = torch.as_tensor(table).detach().to("cpu")
        if values.dtype == torch.bool or not values.is_floating_point():
            values = values.to(torch.float64)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise ValueError(
                f"{arg} must have the shape (samples, {len(names)}), one column per {kind} node, "
                f"got {tuple(values.shape)}"
            )
    bad = ~values.isfinite() if kind == "input" else values.isinf()
    if bool(bad.any()):
        row, col = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{arg} must be {'finite' if kind == 'input' else 'finite or NaN'}, got "
            f"{float(values[row, col])} in column {names[col]!r}, "
            + (f"row {row}" if rows is None else f"sample {rows[row]!r}")
        )
    return values


def select_columns(table: pd.DataFrame, names: list[str], kind: str, arg: str) -> pd.DataFrame:
    """``table`` with exactly the columns ``names``, in that order.

    Raises:
        ValueError: naming the columns that are missing, unknown or there more than once.
    """
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].unique()
        raise ValueError(f"{arg} has columns more than once: {some_names(twice)}")
    known = set(names)
    missing = [n for n in names if n not in table.columns]
    unknown = [c for c in table.columns if c not in known]
    if missing:
        hint = f" (columns that match no {kind} node: {some_names(unknown)})" if unknown else ""
        raise ValueError(f"{arg} has no column for {len(missing)} {kind} node(s): {some_names(missing)}{hint}")
    if unknown:
        raise ValueError(f"{arg} has {len(unknown)} column(s) that are no {kind} node: {some_names(unknown)}")
    return table[names]


def _check_measured(model: torch.nn.Module, y: torch.Tensor) -> None:
    empty = y.isnan().all(0)
    if bool(empty.any()):
        names = [n for n, e in zip(_names(model, "output"), empty.tolist(), strict=True) if e]
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
        if validation is None:
            raise ValueError("patience needs validation data to watch: pass validation=")
    if isinstance(validation, tuple):
        if len(validation) != 2:
            raise ValueError(f"validation must be (x_val, y_val), got {len(validation)} items")
    elif validation is not None and not (
        isinstance(validation, (int, float)) and not isinstance(validation, bool) and 0 < validation < 1
    ):
        raise ValueError(f"validation must be (x_val, y_val) or a fraction in (0, 1), got {validation!r}")
