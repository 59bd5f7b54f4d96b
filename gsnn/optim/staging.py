"""What staged completion is made of: its settings, its data, its trainings, and edges chosen stage by
stage."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsnn._text import some_names
from gsnn.data.match import as_pair
from gsnn.data.scaling import Scaling
from gsnn.graph.container import HeteroGraph
from gsnn.graph.depth import default_layers
from gsnn.io import container
from gsnn.models.GSNN import GSNN
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.train.loop import fit
from gsnn.train.resume import check_same_run, describe_versions, graph_checksum

KIND = "gsnn_completion"
SCORES = ("omp", "whitened")
Edge = tuple[str, str]


@dataclass(frozen=True)
class CompletionSettings:
    """How networks are built and trained while a graph is completed.

    Attributes
    ----------
    channels, layers, norm, dropout : of the networks; `layers=None` is the longest of the shortest paths from
        an input to an output, within 4 to 12
    batch_size, weight_decay : of every training
    lr, epochs : of the trainings that are compared and kept, with a cosine schedule; `epochs=None` is about
        2,000 steps, in 30 to 400 epochs
    search_lr : constant learning rate while edges are chosen
    base_steps, stage_steps : optimizer steps before the first and between stages, rounded up to whole epochs
    device : where to run, by default on the CPU
    """

    channels: int = 8
    layers: int | None = None
    norm: str = "groupbatch"
    dropout: float = 0.0
    batch_size: int = 64
    weight_decay: float = 1e-2
    lr: float = 3e-3
    epochs: int | None = None
    search_lr: float = 1e-3
    base_steps: int = 640
    stage_steps: int = 128
    device: str | None = None

    @classmethod
    def of(cls, given: Any) -> CompletionSettings:
        """From None, a mapping of some of the fields, or settings."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(
                f"settings must be CompletionSettings or a dict of its fields, got {type(given).__name__}"
            )
        known = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"settings must be among {', '.join(known)}, got {some_names(unknown)}")
        return cls(**given)

    def __post_init__(self) -> None:
        for name in ("batch_size", "base_steps", "stage_steps"):
            check_int(name, getattr(self, name), 1)
        if self.layers is not None:
            check_int("layers", self.layers, 2)

    def model(self, graph: HeteroGraph, seed: int) -> GSNN:
        """An untrained network on `graph`, its weights drawn by `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GSNN(
                graph.edge_index_dict,
                graph.node_names_dict,
                channels=self.channels,
                layers=default_layers(graph) if self.layers is None else self.layers,
                dropout=self.dropout,
                norm=self.norm,
                share_layers=False,
            ).to(self.device)

    def epochs_of(self, steps: int, n: int) -> int:
        """Whole epochs of at least `steps` steps on `n` samples."""
        return math.ceil(steps / math.ceil(n / self.batch_size))

    def final_epochs(self, n: int) -> int:
        """Epochs of the trainings that are compared and kept."""
        return self.epochs or int(np.clip(self.epochs_of(2000, n), 30, 400))


def check_int(name: str, value: Any, least: int) -> None:
    """That an argument is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")


@dataclass(frozen=True)
class Samples:
    """x (n, N_in) and y (n, N_out) in the order of the graph's nodes, NaN in y where nothing was measured.

    `rows` (n,) are their places in the tables that they come from.
    """

    x: Tensor
    y: Tensor
    rows: Tensor

    @classmethod
    def of(cls, model: GSNN, x: Any, y: Any, x_arg: str = "x", y_arg: str = "y") -> Samples:
        """Anything that `gsnn.fit` takes, matched by name; rows of y without a value are left out."""
        xs, ys = as_pair(model, x, y, x_arg, y_arg)
        every = slice(0, len(xs))
        inputs, outputs = xs[every].float(), ys[every].float()
        filled = ~outputs.isnan().all(1)
        if not bool(filled.any()):
            raise ValueError(f"{y_arg} must have at least one measured value, got only NaN")
        return cls(inputs[filled], outputs[filled], filled.nonzero()[:, 0])

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Any) -> Samples:
        """The samples `rows`."""
        at = torch.as_tensor(rows)
        return Samples(self.x[at], self.y[at], self.rows[at])

    def scaled(self, scaling: Scaling) -> Samples:
        """In the units that the network sees."""
        return Samples(scaling.scale_x(self.x), scaling.scale_y(self.y), self.rows)


def squared_errors(model: GSNN, samples: Samples, edge_mask: Tensor | None = None) -> Tensor:
    """(n, N_out) squared errors in float64, NaN where nothing was measured; samples in network units."""
    param = next(model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            parts = [model(x.to(param), edge_mask=edge_mask).cpu() for x in samples.x.split(1024)]
    finally:
        for module, training in modes:
            module.training = training
    return (torch.cat(parts).double() - samples.y.double()).square()


def loss(model: GSNN, samples: Samples) -> float:
    """Mean squared error over what is measured."""
    return float(squared_errors(model, samples).nanmean())


class Stages:
    """Edges chosen stage by stage: score, grow, train on.

    Parameters
    ----------
    graph, data, settings, seed : as `complete` has them
    scaling : between the data's and the network's units
    score, candidates, priors : as `FirstOrderEdgeInferer.greedy`
    watched : samples in network units whose loss is recorded after each stage, or None
    checkpoint : file that keeps the finished stages, or None
    identity : what else the result depends on, for the file
    """

    def __init__(
        self,
        graph: HeteroGraph,
        data: Samples,
        settings: CompletionSettings,
        seed: int,
        scaling: Scaling,
        score: str,
        candidates: Any,
        priors: Any,
        watched: Samples | None = None,
        checkpoint: Path | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.settings, self.seed, self.scaling = data, settings, seed, scaling
        self.scaled = data.scaled(scaling)
        self.score, self.candidates, self.priors = score, candidates, priors
        self.watched, self.checkpoint = watched, checkpoint
        self.losses: list[float] = []  # of the watched samples, after 0, 1, ... stages
        self.rows: list[tuple[int, str, str, float]] = []  # stage, source, target, score
        self.stage = 0
        self.run = (
            {}
            if checkpoint is None
            else {
                **describe_versions(),
                **asdict(settings),
                "seed": seed,
                "score": score,
                "graph": graph_checksum(graph),
                "x": _checksum(data.x),
                "y": _checksum(data.y),
                **(identity or {}),
            }
        )
        self.model = settings.model(graph, seed)
        if not self._resumed():
            self._train(settings.base_steps)
            self._save()

    @property
    def edges(self) -> list[Edge]:
        """The edges chosen so far, in order."""
        return [(source, target) for _, source, target, _ in self.rows]

    def add(self, k: int) -> int:
        """One stage: choose up to `k` edges, grow the network by them, train it on; how many there were."""
        inferer = FirstOrderEdgeInferer(self.model, self.model.graph)
        size = 256
        inferer.fit(
            list(zip(self.scaled.x.split(size), self.scaled.y.split(size), strict=True)), verbose=False
        )
        found = inferer.greedy(
            k,
            score=self.score,
            candidates=self.candidates,
            priors=self.priors,
            one_per_target=self.score != "omp",  # without projection the next best says the same again
        )
        self.stage += 1
        columns = (found[name] for name in ("src_func", "dst_func", "score"))
        new = [(self.stage, str(s), str(t), float(v)) for s, t, v in zip(*columns, strict=True)]
        self.rows += new
        self.model = self.model.grown([(s, t) for _, s, t, _ in new], seed=self.seed + self.stage)
        self._train(self.settings.stage_steps)
        self._save()
        return len(new)

    def _train(self, steps: int) -> None:
        fit(
            self.model,
            self.data.x,
            self.data.y,
            epochs=self.settings.epochs_of(steps, len(self.data)),
            batch_size=self.settings.batch_size,
            lr=self.settings.search_lr,
            weight_decay=self.settings.weight_decay,
            schedule="constant",
            standardize=self.scaling,
            seed=self.seed + self.stage,
            verbose=False,
        )
        if self.watched is not None:
            self.losses.append(loss(self.model, self.watched))

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        weights, ties = container.untied(self.model.state_dict())
        rows = [list(row) for row in self.rows]
        header = {"run": self.run, "stage": self.stage, "rows": rows, "losses": self.losses, "ties": ties}
        container.write_file(self.checkpoint, KIND, header, weights)

    def _resumed(self) -> bool:
        """Whether the file was there; then everything is as it was after its last stage."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        header, tensors = container.read_file(self.checkpoint, KIND)
        what = f"the checkpoint {self.checkpoint}"
        check_same_run(header["run"], self.run, what, "delete it or choose another file")
        self.stage, self.losses = header["stage"], header["losses"]
        self.rows = [(int(a), str(b), str(c), float(d)) for a, b, c, d in header["rows"]]
        if self.rows:
            self.model = self.model.grown(self.edges)
        ties = header["ties"]
        self.model.load_state_dict({**tensors, **{name: tensors[first] for name, first in ties.items()}})
        return True


def _checksum(values: Tensor) -> str:
    return f"sha256:{hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()}"


def trained_anew(
    graph: HeteroGraph,
    data: Samples,
    scaling: Scaling,
    settings: CompletionSettings,
    seed: int,
    layers: int | None = None,
) -> GSNN:
    """A network on `graph` trained from the beginning on `data`, in the way that is compared and kept."""
    if layers is not None:
        settings = CompletionSettings(**{**asdict(settings), "layers": layers})
    model = settings.model(graph, seed)
    fit(
        model,
        data.x,
        data.y,
        epochs=settings.final_epochs(len(data)),
        batch_size=settings.batch_size,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        standardize=scaling,
        seed=seed,
        verbose=False,
    )
    return model


def stage_sizes(budget: int, stages: int) -> list[int]:
    """`budget` edges in at most `stages` stages, the larger ones first."""
    stages = min(stages, budget)
    return [budget // stages + (k < budget % stages) for k in range(stages)]
