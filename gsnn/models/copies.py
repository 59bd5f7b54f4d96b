"""Copies of a GSNN, and a GSNN that computes with other tensors than its own."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gsnn._text import some_names
from gsnn.models.GSNN import GSNN


def check_alike(models: Sequence[Any]) -> None:
    """Refuse models that cannot stand side by side.

    Raises:
        TypeError: something else than GSNNs.
        ValueError: no models, or models whose arguments, dtype, device or modes differ; frozen parameters.
    """
    if not models:
        raise ValueError("models must hold at least one GSNN, got none")
    for model in models:
        if not isinstance(model, GSNN):
            raise TypeError(f"models must be GSNNs, got {type(model).__name__}")
    first = models[0]
    for k, model in enumerate(models):
        odd = [name for name, value in first.config.items() if model.config[name] != value]
        if odd:
            raise ValueError(f"models must have equal arguments, but model {k} differs in {some_names(odd)}")
        params, wanted = next(model.parameters()), next(first.parameters())
        for what in ("dtype", "device"):
            if getattr(params, what) != getattr(wanted, what):
                raise ValueError(
                    f"models must have one {what}, got {getattr(wanted, what)} and, in model {k}, "
                    f"{getattr(params, what)}"
                )
        modes = {module.training for module in model.modules()}
        if modes != {first.training}:
            raise ValueError(f"models must all be in training or all in eval mode, but model {k} is not")
        frozen = [name for name, param in model.named_parameters() if not param.requires_grad]
        if frozen:
            raise ValueError(f"models must have no frozen parameters, but model {k} has {some_names(frozen)}")


def fresh(model: GSNN, seed: int) -> GSNN:
    """Another model like ``model``: its graph, arguments, dtype and device, weights drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = GSNN(
            model.graph.edge_index_dict,
            model.graph.node_names_dict,
            edge_weight_dict=model.graph.edge_weight_dict,
            **model.config,
        )
    param = next(model.parameters())
    return new.to(param.device, param.dtype)


def copied(model: GSNN) -> GSNN:
    """A model of its own, without captures or hooks."""
    new = fresh(model, 0)
    new.load_state_dict(model.state_dict())
    new.checkpoint = model.checkpoint
    if hasattr(model, "scaling"):
        new.scaling = model.scaling
    return new.train(model.training)


@contextlib.contextmanager
def with_parameters(model: GSNN, state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let ``model`` compute with other tensors. Unlike ``functional_call`` this knows shared submodules."""
    places = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in state}
    before = {name: module._parameters[key] for name, (module, key) in places.items()}
    try:
        for name, (module, key) in places.items():
            module._parameters[key] = state[name]  # type: ignore[assignment]
        yield
    finally:
        for name, (module, key) in places.items():
            module._parameters[key] = before[name]
