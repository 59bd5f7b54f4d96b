"""What staged completion is made of: its settings, its data and its trainings."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gsnn._checks import one_of, whole
from gsnn._modes import evaluation_mode
from gsnn._text import some_names
from gsnn.data.match import as_pair
from gsnn.data.scaling import Scaling, scaling_of
from gsnn.graph.container import EDGE_TYPES, NODE_TYPES, HeteroGraph
from gsnn.graph.depth import default_layers
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import Norm
from gsnn.train.defaults import default_epochs
from gsnn.train.loop import Schedule, fit
from gsnn.train.side_by_side import fit_side_by_side

Score = Literal["omp", "whitened"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True)
class CompletionSettings:
    """How networks are built and trained while a graph is completed.

    Attributes:
        channels, layers, norm, dropout: of the networks; `layers=None` is the longest of the shortest paths
            from an input to an output, within 4 to 12.
        batch_size, weight_decay: of every training.
        lr, epochs: of the trainings that are compared and kept, with a cosine schedule; `epochs=None` is
            about 2,000 steps, in 30 to 400 epochs.
        search_lr: constant learning rate while edges are chosen.
        base_steps, stage_steps: optimizer steps before the first and between stages, rounded up to whole
            epochs.
        device: where to run, by default on the CPU.
    """

    channels: int = 8
    layers: int | None = None
    norm: Norm = "groupbatch"
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
            whole(name, getattr(self, name))
        if self.layers is not None:
            whole("layers", self.layers, at_least=2)

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
        return self.epochs or default_epochs(n, self.batch_size)


def checked(budget: Any, stages: Any, score: Any, seed: Any, settings: Any) -> CompletionSettings:
    """The settings of a completion; refuses arguments of `complete` that are out of range."""
    if isinstance(budget, str):
        if budget != "auto":
            raise ValueError(f"budget must be an int of at least 0 or 'auto', got {budget!r}")
    else:
        whole("budget", budget, at_least=0)
    whole("stages", stages)
    whole("seed", seed, at_least=0)
    one_of("score", score, SCORES)
    return CompletionSettings.of(settings)


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


def outputs(model: GSNN, samples: Samples, edge_mask: Tensor | None = None) -> Tensor:
    """(n, N_out) predictions in float64 and, as the samples, in network units."""
    param = next(model.parameters())
    with evaluation_mode(model), torch.no_grad():
        parts = [model(x.to(param), edge_mask=edge_mask).cpu() for x in samples.x.split(1024)]
    return torch.cat(parts).double()


def squared_errors(model: GSNN, samples: Samples, edge_mask: Tensor | None = None) -> Tensor:
    """(n, N_out) squared errors in float64, NaN where nothing was measured; samples in network units."""
    return (outputs(model, samples, edge_mask) - samples.y.double()).square()


def loss(model: GSNN, samples: Samples) -> float:
    """Mean squared error over what is measured."""
    return float(squared_errors(model, samples).nanmean())


def train_together(
    models: Sequence[GSNN],
    parts: Sequence[Samples],
    seeds: Sequence[int],
    settings: CompletionSettings,
    epochs: Sequence[int],
    *,
    lr: float,
    schedule: Schedule,
    verbose: bool | str = False,
    checkpoint: Path | None = None,
) -> None:
    """Train each network on its part, standardised, as many at once as have equally many epochs.

    `checkpoint` is the file that :func:`gsnn.train.side_by_side.fit_side_by_side` goes on from; where numbers
    of epochs differ, there are several beside it.
    """
    options: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "lr": lr,
        "weight_decay": settings.weight_decay,
        "schedule": schedule,
        "standardize": True,
        "verbose": verbose,
    }
    for number, many in enumerate(sorted(set(epochs))):
        at = [k for k, own in enumerate(epochs) if own == many]
        data = [(parts[k].x, parts[k].y) for k in at]
        if len(at) == 1 and checkpoint is None:
            fit(models[at[0]], *data[0], epochs=many, seed=seeds[at[0]], **options)
            continue
        file = checkpoint
        if checkpoint is not None and number:
            file = checkpoint.with_name(f"{checkpoint.stem}-epochs{many}{checkpoint.suffix}")
        fit_side_by_side(
            [models[k] for k in at],
            data,
            seeds=[seeds[k] for k in at],
            epochs=many,
            checkpoint_path=file,
            checkpoint_every=max(1, many // 20),
            **options,
        )


def trained_anew(
    graphs: Sequence[HeteroGraph],
    data: Samples,
    settings: CompletionSettings,
    seed: int,
    *,
    verbose: bool | str = False,
) -> list[GSNN]:
    """A network on each graph, all trained from the beginning on `data`, as what is compared and kept is."""
    models = [settings.model(graph, seed) for graph in graphs]
    train_together(
        models,
        [data] * len(models),
        [seed] * len(models),
        settings,
        [settings.final_epochs(len(data))] * len(models),
        lr=settings.lr,
        schedule="cosine",
        verbose=verbose,
    )
    return models


def reduced(model: GSNN, graph: HeteroGraph) -> GSNN:
    """A copy of the model on `graph`, its weights without those of the function edges that `graph` lacks."""
    theirs, ours = model.graph.edge_index_dict, graph.edge_index_dict
    same = all(list(model.graph.node_names_dict[k]) == list(graph.node_names_dict[k]) for k in NODE_TYPES)
    for etype in EDGE_TYPES[1:]:
        same = same and torch.equal(theirs[etype].cpu(), ours[etype].cpu())
    if not same:
        raise ValueError(
            "graph must have the model's nodes, inputs and outputs in the same order, got another"
        )
    mine = list(map(tuple, ours[EDGE_TYPES[0]].T.tolist()))
    place = {edge: k for k, edge in enumerate(map(tuple, theirs[EDGE_TYPES[0]].T.tolist()))}
    lost = [edge for edge in mine if edge not in place]
    if lost:
        names = graph.node_names_dict["function"]
        shown = some_names([(names[s], names[t]) for s, t in lost])
        raise ValueError(f"graph must hold edges of the model only, got {len(lost)} others: {shown}")
    if len(mine) == len(place) and mine == list(place):
        return copy.deepcopy(model)
    first = torch.tensor([place[edge] for edge in mine], dtype=torch.long)
    weights = None if model.graph.edge_weight_dict is None else dict(model.graph.edge_weight_dict)
    if weights is not None:
        weights[EDGE_TYPES[0]] = weights[EDGE_TYPES[0]][first]
    with torch.random.fork_rng(devices=[]):
        small = type(model)(
            graph.edge_index_dict, graph.node_names_dict, edge_weight_dict=weights, **model.config
        )
    param = next(model.parameters())
    small.to(param.device, param.dtype)
    state = dict(model.state_dict())
    channels = model.channels
    for name, old in state.items():
        wide = {"values": channels, "bias": 1}.get(name.rpartition(".")[2], 0)
        if ".lin_in.values" in name or ".lin_out." in name:
            if old.dtype == torch.bool:
                raise ValueError("model must not be pruned where it has edges that graph lacks")
            rest = torch.arange(len(place) * wide, len(old))
            at = (first[:, None] * wide + torch.arange(wide)).flatten()
            state[name] = old[torch.cat([at, rest]).to(old.device)]
    small.load_state_dict(state)
    small.scaling = scaling_of(model)
    return small.train(model.training)


def stage_sizes(budget: int, stages: int) -> list[int]:
    """`budget` edges in at most `stages` stages, the larger ones first."""
    stages = min(stages, budget)
    return [budget // stages + (k < budget % stages) for k in range(stages)]
