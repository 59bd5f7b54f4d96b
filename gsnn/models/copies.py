"""Copies of a GSNN, a GSNN that computes with other tensors than its own, and its parameters in a row."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
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


def layout_of(model: GSNN) -> tuple[list[str], list[torch.Size]]:
    """Names and shapes of the parameters, in the order of the flat vector."""
    named = dict(model.named_parameters())
    return list(named), [param.shape for param in named.values()]


def offsets_of(model: GSNN, layout: tuple[list[str], list[torch.Size]]) -> list[list[int]]:
    """Where each block's :data:`gsnn.kernels._side.WEIGHTS` begin in the flat vector, -1 for none."""
    starts = [0, *accumulate(shape.numel() for shape in layout[1])]
    # By name would miss the weights that later blocks share with the first.
    start_of = {id(param): start for param, start in zip(model.parameters(), starts, strict=False)}
    return [
        [
            -1 if not isinstance(param, torch.nn.Parameter) else start_of[id(param)]
            for param in (
                block.lin_in.values,
                block.lin_in.bias,
                block.norm.weight,
                block.norm.bias,
                block.lin_out.values,
                block.lin_out.bias,
                block.residual_weight,
            )
        ]
        for block in model._blocks
    ]
