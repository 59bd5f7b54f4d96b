"""Settings to begin with, and to search over, that suit the graph and the size of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gsnn.data.match import as_pair
from gsnn.graph.container import as_graph
from gsnn.graph.depth import default_layers
from gsnn.models.GSNN import GSNN
from gsnn.train.defaults import default_epochs

_LR = 3e-3


@dataclass(frozen=True)
class Suggestion:
    """Arguments of :class:`gsnn.estimator.regressor.GSNNRegressor`, with reasons.

    ``print`` shows settings and reasons.

    Attributes:
        settings: to begin with: ``GSNNRegressor(graph, **suggestion.settings)``.
        grid: values to try, for ``GridSearchCV`` or ``RandomizedSearchCV``.
        why: a sentence for each setting.
        notes: what the data say about how to validate.
    """

    settings: dict[str, Any]
    grid: dict[str, list[Any]]
    why: dict[str, str]
    notes: tuple[str, ...] = ()

    def ask(self, trial: Any, prefix: str = "") -> dict[str, Any]:
        """A value for each name of the grid from an Optuna trial, for ``set_params`` (extra ``optuna``).

        Args:
            trial: anything with Optuna's ``suggest_categorical`` and ``suggest_float``. Learning rate and
                weight decay are drawn between the grid's ends on a log scale, the others from its values.
            prefix: before each name, such as ``"gsnnregressor__"`` in a pipeline.
        """
        found = {}
        for name, values in self.grid.items():
            if name in ("lr", "weight_decay"):
                found[prefix + name] = trial.suggest_float(prefix + name, min(values), max(values), log=True)
            else:
                found[prefix + name] = trial.suggest_categorical(prefix + name, values)
        return found

    def __str__(self) -> str:
        width = max(map(len, self.settings))
        lines = [
            f"{name:<{width}} = {value!r}, of {self.grid.get(name, [value])}: {self.why[name]}"
            for name, value in self.settings.items()
        ]
        return "\n".join([*lines, *self.notes])


def suggest(graph: Any, x: Any, y: Any) -> Suggestion:
    """Settings for this graph and this much data, a space to search over, and why.

    They are rules of thumb from the number of samples, of measured values and of weights, and look at no
    relation between x and y: nothing is tuned, so they may be used before splitting the data.
    ``benchmarks/defaults.py`` measures them beside the defaults and a search.

    Args:
        graph: a HeteroGraph or what has its dictionaries.
        x, y: (n, N_in) and (n, N_out), as :func:`gsnn.train.loop.fit` takes them; NaN in y was not measured.

    Raises:
        ValueError: tables that do not fit the graph or each other; no measured value.
        TypeError: ``graph`` is none.
    """
    graph = as_graph(graph, warn=False)
    layers = default_layers(graph)
    xs, ys = as_pair(_Named(graph), x, y, "x", "y")
    inputs, targets = xs[:].numpy(), ys[:].numpy()
    seen = ~np.isnan(targets)
    filled = seen.any(1)
    n, measured = int(filled.sum()), int(seen.sum())
    if not n:
        raise ValueError("y must have at least one measured value, got none")

    channels = 8 if n < 2000 else 16
    batch = 64 if n < 20_000 else 256
    steps = math.ceil(n / batch)
    epochs = default_epochs(n, batch)
    members = 5 if n < 500 else 1
    weights = _weights(graph, channels, layers)
    per_value = weights / measured
    decay = 0.01 if per_value < 1 else 0.1
    kept = math.exp(-_LR * decay * steps * epochs / 2)
    settings = {
        "channels": channels,
        "layers": layers,
        "epochs": epochs,
        "batch_size": batch,
        "lr": _LR,
        "weight_decay": decay,
        "dropout": 0.2,
        "n_members": members,
    }
    grid: dict[str, list[Any]] = {
        "channels": [channels // 2, channels, 2 * channels],
        "layers": sorted({max(2, layers - 2), layers, layers + 2}),
        "epochs": sorted({max(1, epochs // 4), epochs // 2 or 1, epochs}),
        "lr": [1e-3, _LR, 1e-2],
        "weight_decay": [0.01, 0.1, 1.0],
        "dropout": [0.0, 0.2],
    }
    why = {
        "channels": f"{n:,} samples with a measured value; 16 from 2,000 on",
        "layers": "function nodes on the longest of the shortest paths from an input to an output, within 4 "
        "to 12: each layer is a hop",
        "epochs": f"about 2,000 steps, in 30 to 400 epochs; these are {steps * epochs:,} steps, and "
        "'auto' tries lengths inside the training samples",
        "batch_size": f"an epoch is {steps} step{'s' * (steps > 1)}; 256 from 20,000 samples on",
        "lr": "with a cosine schedule; 1e-2 where 400 epochs are too few, 1e-3 where the loss is restless",
        "weight_decay": f"{weights:,} weights for {measured:,} measured values; over the training it "
        f"takes {1 - kept:.0%} off a weight that nothing holds",
        "dropout": "as the package's other defaults",
        "n_members": "few samples, so that networks that differ only by chance disagree; five side by side "
        "cost about as much as two where networks are small"
        if members > 1
        else "enough samples that members would agree; take 5 for return_std",
    }
    return Suggestion(settings, grid, why, _notes(inputs[filled]))


class _Named(torch.nn.Module):
    """Stands for a network where only the names of its nodes are asked for."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.graph = graph


def _weights(graph: Any, channels: int, layers: int) -> int:
    with torch.random.fork_rng(devices=[]):
        model = GSNN(
            graph.edge_index_dict,
            graph.node_names_dict,
            channels=channels,
            layers=layers,
            norm="groupbatch",
            share_layers=False,
        )
    return sum(p.numel() for p in model.parameters())


def _notes(x: np.ndarray) -> tuple[str, ...]:
    distinct = len(np.unique(x, axis=0))
    if distinct == len(x):
        return ()
    return (
        f"{len(x):,} samples have {distinct:,} different inputs: give groups and a GroupKFold, so that "
        "replicates of a condition do not stand on both sides of a split",
    )
