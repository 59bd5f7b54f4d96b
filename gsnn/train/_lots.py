"""Networks that are trained at one time, step by step, and the file from which they go on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gsnn._modes import modes_kept
from gsnn._progress import ProgressBar
from gsnn.data.scaling import set_scaling
from gsnn.io import container
from gsnn.models.SideBySide import SideBySide
from gsnn.train.callbacks import stop_asked
from gsnn.train.resume import KIND, Progress, check_same_run
from gsnn.train.rules import Settings, epoch_state, loss_of, rate, stops
from gsnn.train.tables import Tables

if TYPE_CHECKING:
    from gsnn.models.GSNN import GSNN

#: Values of the edge states that a pass over validation samples holds at a time, 16 MiB in float32.
_PASS_VALUES = 2**22
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Member:
    """One network's fit: its tables, where it stands, and what it has seen."""

    model: GSNN
    number: int
    tables: Tables
    rng: torch.Generator
    dropout: torch.Generator
    n_batches: int
    epochs: int
    done: Progress
    order: torch.Tensor = field(init=False)  # of the samples in this epoch
    total: float = field(init=False)  # loss so far in it
    best: tuple[torch.Tensor, torch.Tensor | None] | None = None
    finished: bool = False

    @property
    def n_steps(self) -> int:
        """How many steps its epochs have."""
        return self.epochs * self.n_batches


class Lot:
    """Networks trained at one time, step by step; those that are finished leave."""

    def __init__(
        self, members: list[Member], settings: Settings, checkpoint: Checkpoint | None, bar: ProgressBar
    ) -> None:
        self.members, self.settings, self.checkpoint, self.bar = members, settings, checkpoint, bar
        self.step = 0
        self.looked_at = False

    def fit(self) -> None:
        """Train all to their end and put the results into their models."""
        with contextlib.ExitStack() as stack:
            for member in self.members:
                stack.enter_context(modes_kept(member.model))
                member.model.train()
            self._unite(list(self.members), None)
            for k, member in enumerate(self.active):
                member.best = self.side.snapshot(k)
            if self.checkpoint is not None:
                self.checkpoint.resume(self)
                self.bar.skip(self.members[0].done.epoch)
            for member in self.members:
                set_scaling(member.model, member.tables.scaling)
            try:
                while self.active:
                    self._one_step()
            except BaseException:  # a callback's error or Ctrl-C must not lose what was learnt
                self._hand_over(range(len(self.active)))
                raise

    def _unite(self, members: list[Member], moments: list[dict[str, torch.Tensor]] | None) -> None:
        """The networks that go on, as one, their optimizer with the moments it had."""
        self.active = members
        self.side = SideBySide([member.model for member in members])
        self.side.generators = [member.dropout for member in members]
        self.side.train()
        groups: dict[int, list[torch.Tensor]] = {}  # equal learning rates at all times: one call
        for member, flat in zip(members, self.side.weights, strict=True):
            groups.setdefault(member.n_steps, []).append(flat)
        self.opt = torch.optim.AdamW(  # the rates are set before each step
            [{"params": flats, "n_steps": n_steps} for n_steps, flats in groups.items()],
            weight_decay=self.settings.weight_decay,
            fused=self.side.weights[0].device.type in ("cpu", "cuda"),
        )
        for flat, state in zip(self.side.weights, moments or [], strict=False):
            self.opt.state[flat].update(state)

    def _one_step(self) -> None:
        s, rows = self.settings, []
        for member in self.active:
            at = self.step % member.n_batches
            if at == 0:
                member.order = torch.randperm(len(member.tables.x), generator=member.rng)
                member.total = 0.0
            n, parts = len(member.order), member.n_batches
            start = at * (n // parts) + min(at, n % parts)  # as torch.tensor_split cuts
            rows.append(member.order[start : start + n // parts + (at < n % parts)])
        for group in self.opt.param_groups:
            group["lr"] = rate(s.lr, s.schedule, self.step, group["n_steps"])
        losses = self._losses(rows)
        self.opt.zero_grad(set_to_none=True)
        if not self.looked_at:
            self._refuse_own_terms(losses)
            self.looked_at = True
        losses.sum().backward()
        self.opt.step()
        self.step += 1
        for member, loss, index in zip(self.active, losses.tolist(), rows, strict=True):
            member.total += loss * len(index)
        first = self.active[0]
        ending = [k for k, member in enumerate(self.active) if self.step % member.n_batches == 0]
        if ending:
            judged = any(self.active[k].tables.val is not None for k in ending)
            if judged:
                self.side.eval()
            finished = [k for k in ending if self._end_epoch(k, self.active[k])]
            if judged:
                self.side.train()
            if finished:
                self._leave(finished)
        due = self.step % (first.n_batches * s.checkpoint_every) == 0 or not self.active
        if self.checkpoint is not None and due:
            self.checkpoint.save(self)

    def _losses(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """(K,) loss of each network on its next batch."""
        crit, device = self.settings.crit, self.side.weights[0].device
        if device.type != "cpu":
            rows = [index.to(device) for index in rows]
        tables = [member.tables for member in self.active]
        outputs = self.side([t.x[index] for t, index in zip(tables, rows, strict=True)])
        targets = [t.y[index] for t, index in zip(tables, rows, strict=True)]
        plain = crit is torch.nn.functional.mse_loss and not any(t.gaps for t in tables)
        if plain and isinstance(outputs, torch.Tensor):  # three operations for all
            return (outputs - torch.stack(targets, 1)).square().mean((0, 2))
        each = outputs.unbind(1) if isinstance(outputs, torch.Tensor) else outputs
        quadruples = zip(tables, each, targets, rows, strict=True)
        return torch.stack(
            [loss_of(crit, yhat, y, t.gaps, t.weights_of(index)) for t, yhat, y, index in quadruples]
        )

    def _refuse_own_terms(self, losses: torch.Tensor) -> None:
        """What is trained are copies: a term of the models' own parameters would be without effect."""
        for member, loss in zip(self.active, losses, strict=True):
            own = [p for p in member.model.parameters() if p.requires_grad]
            found = torch.autograd.grad(loss, own, allow_unused=True)
            if any(grad is not None for grad in found):
                raise ValueError(
                    "crit must be a loss of the predictions alone where models train side by side, got one "
                    f"that depends on parameters of model {member.number}: train it with fit"
                )

    def _end_epoch(self, k: int, member: Member) -> bool:
        """Write down an epoch of one network; whether it was its last."""
        s, done, val = self.settings, member.done, member.tables.val
        done.train_loss.append(member.total / len(member.order))
        done.lr.append(rate(s.lr, s.schedule, self.step - member.n_batches, member.n_steps))
        done.val_loss.append(math.nan)
        if val is not None:
            with torch.no_grad():
                size = max(s.batch_size, _PASS_VALUES // member.model.plan.n_rows)
                starts = range(0, len(val[0]), size)
                yhat = torch.cat([self.side.one(k, val[0][i : i + size]) for i in starts])
                measured = val[1][:]
                gaps = bool(measured.isnan().any())
                done.val_loss[-1] = float(loss_of(s.crit, yhat, measured, gaps, member.tables.val_weight))
        losses = {"train": done.train_loss[-1]} | ({} if val is None else {"val": done.val_loss[-1]})
        if not all(map(math.isfinite, losses.values())):
            self._explode(member, losses["train"])
        if val is not None and losses["val"] < done.best_loss:
            member.best, done.best_epoch = self.side.snapshot(k), done.epoch
        if member is self.members[0]:
            self.bar.update(**losses)
        if s.calls:
            self._write_models([k])
            done.stopped = stop_asked(
                s.calls, epoch_state(done, member.epochs, member.model, member.number, s.n_models)
            )
        return done.epoch == member.epochs or stops(done, s.patience)

    def _explode(self, member: Member, loss: float) -> None:
        self._put_back(range(len(self.active)))
        if self.checkpoint is not None:
            self.checkpoint.path.unlink(missing_ok=True)
        raise FloatingPointError(
            f"the loss of model {member.number} became {loss:g} in epoch {member.done.epoch} of "
            f"{member.epochs}; every model got the weights of its best epoch, or the initial ones. A "
            f"lower lr (now {self.settings.lr:g}) or another norm usually helps"
        )

    def _put_back(self, numbers: Sequence[int]) -> None:
        for k in numbers:
            best = self.active[k].best
            assert best is not None
            self.side.restore(k, best)
        self._write_models(numbers)

    def _hand_over(self, numbers: Sequence[int]) -> None:
        """Give models the weights that a fit which ends now leaves."""
        for k in numbers:
            member = self.active[k]
            if member.tables.val is not None and self.settings.restore_best and member.best is not None:
                self.side.restore(k, member.best)
        self._write_models(numbers)

    def _write_models(self, numbers: Sequence[int]) -> None:
        for k in numbers:
            self.side.write(k, self.active[k].model)

    def _leave(self, finished: list[int]) -> None:
        """Put the results of finished networks into their models, and go on with the others."""
        for k in finished:
            self.active[k].finished = True
        self._hand_over(finished)
        self._write_models(range(len(self.active)))
        rest = [k for k in range(len(self.active)) if k not in finished]
        moments = [self.opt.state[self.side.weights[k]] for k in rest]
        self.active = [self.active[k] for k in rest]
        if self.active:
            self._unite(self.active, moments)


class Checkpoint:
    """The file of a lot: weights, moments, random states, epochs under way and losses."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run = path, run

    def save(self, lot: Lot) -> None:
        """Replace the file by the state now, in one step."""
        lot._write_models(range(len(lot.active)))
        tensors: dict[str, torch.Tensor] = {}
        for k, member in enumerate(lot.members):
            own = {
                "rng": member.rng.get_state(),
                "dropout": member.dropout.get_state(),
                "order": member.order,
                "total": torch.tensor(member.total, dtype=torch.float64),
                "losses": torch.tensor(
                    [member.done.train_loss, member.done.val_loss, member.done.lr], dtype=torch.float64
                ),
                **dict(zip(("best", "best_statistics"), member.best or (), strict=False)),
                **{
                    f"model.{name}": value
                    for name, value in container.untied(member.model.state_dict())[0].items()
                },
            }
            if not member.finished:
                flat = lot.side.weights[lot.active.index(member)]
                own |= {f"optimizer.{name}": lot.opt.state[flat][name] for name in _MOMENTS}
            tensors |= {
                f"{k}.{name}": value.detach().to("cpu", copy=True).contiguous()
                for name, value in own.items()
                if value is not None
            }
        header = {
            "run": self.run,
            "step": lot.step,
            "finished": [member.finished for member in lot.members],
            "stopped": [member.done.stopped for member in lot.members],
            "best_epochs": [member.done.best_epoch for member in lot.members],
        }
        container.write_file(self.path, KIND, header, tensors)

    def resume(self, lot: Lot) -> None:
        """Put everything back as it was; without a file, do nothing.

        Raises:
            ValueError: the file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return
        header, tensors = container.read_file(self.path, KIND)
        way_out = "delete it or choose another file"
        check_same_run(header["run"], self.run, f"the checkpoint {self.path}", way_out)
        lot.step = header["step"]
        active, moments = [], []
        for k, member in enumerate(lot.members):
            start = f"{k}."
            own = {key.removeprefix(start): v for key, v in tensors.items() if key.startswith(start)}
            device = next(member.model.parameters()).device
            state = {n.removeprefix("model."): v for n, v in own.items() if n.startswith("model.")}
            ties = container.untied(member.model.state_dict())[1]
            member.model.load_state_dict({**state, **{name: state[first] for name, first in ties.items()}})
            member.rng.set_state(own["rng"])
            member.dropout.set_state(own["dropout"])
            member.order, member.total = own["order"], float(own["total"])
            member.done.train_loss, member.done.val_loss, member.done.lr = own["losses"].tolist()
            member.done.best_epoch, member.done.stopped = header["best_epochs"][k], header["stopped"][k]
            statistics = own.get("best_statistics")
            member.best = own["best"].to(device), None if statistics is None else statistics.to(device)
            member.finished = header["finished"][k]
            if not member.finished:
                active.append(member)
                moments.append({name: own[f"optimizer.{name}"].to(device) for name in _MOMENTS})
        lot.active = active
        if active:
            lot._unite(active, moments)
