"""Files from which an interrupted ``fit`` or ``gsnn run`` goes on, with the result it would have had.

A checkpoint is a safetensors file with a JSON header, as a saved model is: no pickle, written in one
step, damage is noticed. It names the run that it belongs to, and another run does not take it up.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import gsnn
from gsnn.io import container

if TYPE_CHECKING:
    import pandas as pd

KIND = "gsnn_checkpoint"


@dataclass
class Progress:
    """What ``fit`` has done so far: one entry per finished epoch, the best weights, if it was stopped."""

    best: dict[str, torch.Tensor]
    best_epoch: int = 0
    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.train_loss)

    @property
    def best_loss(self) -> float:
        """Validation loss of the best epoch; infinite before there is one."""
        return self.val_loss[self.best_epoch - 1] if self.best_epoch else math.inf


class FitCheckpoint:
    """The file of one ``fit``: weights, optimizer, random states and losses after a finished epoch.

    Args:
        path: the file; its folder must be there.
        run: what the result depends on, plain JSON. A file with another ``run`` is refused.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.run = dict(run)

    def resume(
        self, model: torch.nn.Module, opt: torch.optim.Optimizer, rng: torch.Generator, done: Progress
    ) -> None:
        """Put everything back as it was after the last epoch in the file; without a file, do nothing.

        Raises:
            ValueError: the file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return
        header, tensors = container.read_file(self.path, KIND)
        check_same_run(
            header["run"], self.run, f"the checkpoint {self.path}", "delete it or choose another file"
        )
        state = _with_ties(_part(tensors, "model"), header["ties"])
        device = next(model.parameters()).device
        model.load_state_dict(state)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _part(tensors, "optimizer").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        opt.load_state_dict({"state": moments, "param_groups": opt.state_dict()["param_groups"]})
        rng.set_state(tensors["rng.batches"])
        torch.set_rng_state(tensors["rng.dropout"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.dropout_device"], device)
        best = _with_ties(_part(tensors, "best"), header["ties"])
        done.best = {name: value.to(device) for name, value in best.items()}
        done.best_epoch, done.stopped = header["best_epoch"], header.get("stopped", False)
        done.train_loss, done.val_loss, done.lr = tensors["losses"].tolist()

    def save(
        self, model: torch.nn.Module, opt: torch.optim.Optimizer, rng: torch.Generator, done: Progress
    ) -> None:
        """Replace the file by the state now, in one step."""
        weights, ties = container.untied(model.state_dict())
        device = next(model.parameters()).device
        tensors = {
            **{f"model.{name}": value for name, value in weights.items()},
            **{f"best.{name}": value.cpu() for name, value in done.best.items() if name not in ties},
            **{
                f"optimizer.{index}.{key}": value.detach().to("cpu", copy=True).contiguous()
                for index, values in opt.state_dict()["state"].items()
                for key, value in values.items()
            },
            "rng.batches": rng.get_state(),
            "rng.dropout": torch.get_rng_state(),
            "losses": torch.tensor([done.train_loss, done.val_loss, done.lr], dtype=torch.float64),
        }
        if device.type == "cuda":
            tensors["rng.dropout_device"] = torch.cuda.get_rng_state(device)
        header = {"run": self.run, "best_epoch": done.best_epoch, "stopped": done.stopped, "ties": ties}
        container.write_file(self.path, KIND, header, tensors)

    def discard(self) -> None:
        """Delete the file, as nothing can go on from it."""
        self.path.unlink(missing_ok=True)


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], what: str, way_out: str) -> None:
    """Refuse to go on with another run than the one that was interrupted.

    Raises:
        ValueError: naming what differs, with both values where they are short.
    """
    odd = [key for key in [*before, *(k for k in now if k not in before)] if before.get(key) != now.get(key)]
    if odd:
        said = [
            f"{key} differs"
            if _is_checksum(before.get(key)) or _is_checksum(now.get(key))
            else f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in odd
        ]
        raise ValueError(f"{what} belongs to another run: {'; '.join(said)}. To start afresh, {way_out}")


def describe_versions() -> dict[str, str]:
    """Versions that the last bits of a result may depend on."""
    return {"gsnn": gsnn.__version__, "torch": torch.__version__, "numpy": np.__version__}


def describe_model(model: torch.nn.Module) -> dict[str, str]:
    """Checksums of the model's graph, of its settings and of its weights as they are now."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    settings = re.sub(r" at 0x[0-9a-f]+", "", f"{model} {getattr(model, 'config', None)} {trained}")
    weights, ties = container.untied(model.state_dict())
    return {
        "graph": graph_checksum(model.graph),
        "model": text_checksum(settings),
        "initial weights": f"sha256:{container.checksum(repr(ties), weights)}",
    }


def graph_checksum(graph: Any) -> str:
    """Of the node names and, where the graph has them, the edges."""
    edges = {str(etype): index.tolist() for etype, index in getattr(graph, "edge_index_dict", {}).items()}
    return text_checksum(repr((dict(graph.node_names_dict), edges)))


def table_checksum(table: pd.DataFrame) -> str:
    """Of the values, row and column names of a DataFrame."""
    values = table.to_numpy()
    content = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
    names = repr((list(table.index), list(table.columns), values.dtype.str))
    return f"sha256:{hashlib.sha256(names.encode() + content).hexdigest()}"


def text_checksum(text: str) -> str:
    """SHA-256 of a text, in the form by which messages know that it is a checksum."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"(sha256|blake2b):[0-9a-f]+", value) is not None


def _part(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    start = name + "."
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def _with_ties(state: dict[str, torch.Tensor], ties: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return {**state, **{name: state[first] for name, first in ties.items()}}
