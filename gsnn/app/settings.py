"""The options of a run that follow from the graph and the data, and the network that they ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from gsnn.app.options import Options
from gsnn.data.tables import Data
from gsnn.graph.container import HeteroGraph
from gsnn.graph.depth import default_layers
from gsnn.models.GSNN import GSNN
from gsnn.train.defaults import default_epochs


def settle(data: Data, options: Options) -> Options:
    """``options`` with ``layers`` and ``epochs`` filled in (but for "auto") and checked against the data."""
    n = len(data.x)
    if options.folds > n:
        raise ValueError(f"folds must be at most the number of samples, {n}, got {options.folds}")
    if data.groups is not None:
        n_groups, needed = data.groups.nunique(), max(options.folds, 2)
        if n_groups < needed:
            raise ValueError(f"groups must have at least {needed} labels to split by, got {n_groups}")
    layers = default_layers(data.graph) if options.layers is None else options.layers
    if layers < 2:
        raise ValueError(f"layers must be at least 2, as edges are inferred between layers, got {layers}")
    epochs = default_epochs(n, options.batch_size) if options.epochs is None else options.epochs
    options = replace(options, layers=layers, epochs=epochs)
    try:
        new_model(data, options, options.seed).to(options.device)
    except (RuntimeError, AssertionError) as err:  # a build without CUDA asserts
        raise ValueError(f"device {options.device!r} cannot be used: {err}") from None
    return options


def reasons(data: Data, options: Options) -> dict[str, str]:
    """Why ``layers`` and ``epochs`` are what :func:`settle` makes of ``options``: a sentence for each.

    Neither looks at how well anything is predicted, but for ``epochs="auto"``, which :func:`settle` leaves
    to :func:`gsnn.app.training.length`.
    """
    settled = settle(data, options)
    assert settled.epochs is not None
    layers, epochs = f"{settled.layers} layers", f"{settled.epochs} epochs"
    found = {"layers": f"{layers}, as asked for", "epochs": f"{epochs}, as asked for"}
    if options.layers is None:
        path = "function nodes on the longest of the shortest paths from an input to an output"
        found["layers"] = f"{layers}: {path}, within 4 to 12"
    if options.epochs == "auto":
        found["epochs"] = (
            "epochs are chosen inside each training's own samples, by the loss on parts put aside"
        )
    elif options.epochs is None:
        steps = math.ceil(len(data.x) / options.batch_size)
        many = "s" * (steps > 1)
        found["epochs"] = f"{epochs} of {steps} step{many}: about 2,000 steps, in 30 to 400 epochs"
    return found


def new_model(data: Data, options: Options, seed: int, graph: HeteroGraph | None = None) -> GSNN:
    """An untrained GSNN on the graph of ``data``, or on ``graph``."""
    assert options.layers is not None
    graph = data.graph if graph is None else graph
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GSNN(
            graph.edge_index_dict,
            graph.node_names_dict,
            channels=options.channels,
            layers=options.layers,
            dropout=options.dropout,
            norm=options.norm,
            share_layers=False,
        )
