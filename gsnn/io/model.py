"""Save a model in one file and load it again, without pickle.

The file is safetensors: the tensors of ``state_dict`` and, in the metadata, a JSON header with the
graph, the ordered node names, the constructor's arguments, the data scaling and the versions that
wrote it. A SHA-256 over header and tensors tells a damaged file from a whole one. It guards against
accidents, not against somebody who can also rewrite the checksum; but whatever the file says, loading
it only builds a GSNN and fills in numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch

import gsnn
from gsnn._text import some_names
from gsnn.data.scaling import Scaling, scaling_of, set_scaling
from gsnn.graph.container import EDGE_TYPES, NODE_TYPES, HeteroGraph
from gsnn.io.container import _writer, read_file, untied, write_file
from gsnn.models.GSNN import GSNN


def save(
    model: GSNN,
    path: str | os.PathLike[str],
    *,
    scaling: Scaling | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` to ``path`` (safetensors), replacing an older file in one step.

    Args:
        scaling: shifts and scales of the data, by default those that ``fit(standardize=True)`` left at
            ``model.scaling``; after :func:`load`, ``predict`` works in the original units again.
        extra: anything else that JSON can hold, such as where the data came from. ``read_header`` shows it.

    Raises:
        TypeError: ``model`` is not a GSNN, or ``extra`` cannot be written as JSON.
        ValueError: the nonlinearity is not an activation class of ``torch.nn``.
    """
    if not isinstance(model, GSNN):
        hint = ": give its ._orig_mod" if hasattr(model, "_orig_mod") else ""
        raise TypeError(f"model must be a GSNN, got {type(model).__name__}{hint}")
    scaling = scaling_of(model) if scaling is None else scaling
    tensors, ties = untied(model.state_dict())
    edge_index = model.graph.edge_index_dict
    weight = model.graph.edge_weight_dict
    header = {
        "config": {**model.config, "nonlin": _nonlin_name(model.config["nonlin"])},
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "node_names": {kind: list(model.graph.node_names_dict[kind]) for kind in NODE_TYPES},
        "edge_index": {"->".join(e[::2]): edge_index[e].tolist() for e in EDGE_TYPES},
        "edge_weight": None
        if weight is None
        else {"->".join(e[::2]): weight[e].tolist() for e in EDGE_TYPES},
        "ties": ties,
        "scaling": None if scaling is None else scaling.to_dict(),
        "extra": dict(extra or {}),
    }
    write_file(path, "gsnn", header, tensors)


def load(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> GSNN:
    """The model that :func:`save` wrote, in eval mode, on the CPU unless ``device`` says otherwise.

    It predicts bit for bit what the saved one did on the same kind of device. ``model.scaling`` is set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a gsnn model, is damaged, or was written in another format version.
    """
    header, tensors = read_file(path, "gsnn")
    try:
        model = _build(header, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as err:
        said = f"no {err}" if isinstance(err, KeyError) else " ".join(str(err).split())
        raise ValueError(
            f"{path} does not describe a model that this gsnn ({gsnn.__version__}) can build; it was written "
            f"by gsnn {_writer(header)}: {said}"
        ) from None
    return model.to(device).eval() if device is not None else model.eval()


def _build(header: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> GSNN:
    for name in ("config", "node_names", "edge_index", "ties"):
        if not isinstance(header[name], dict):
            raise ValueError(f"{name} must be a dict, got {type(header[name]).__name__}")
    known = signature(GSNN).parameters
    strange = [name for name in header["config"] if name not in known]
    if strange:
        raise ValueError(f"unknown arguments of GSNN: {some_names(strange)}")
    state = {**tensors, **{name: tensors[first] for name, first in header["ties"].items()}}
    etypes = {"->".join(e[::2]): e for e in EDGE_TYPES}
    weight = header["edge_weight"]
    graph = HeteroGraph(
        {
            etypes[k]: torch.tensor(v, dtype=torch.int64).reshape(2, -1)
            for k, v in header["edge_index"].items()
        },
        header["node_names"],
        None if weight is None else {etypes[k]: torch.tensor(v) for k, v in weight.items()},
        warn=False,
    )
    config = {**header["config"], "nonlin": _nonlin_class(header["config"]["nonlin"])}
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced at once
        model = GSNN(
            graph.edge_index_dict, graph.node_names_dict, edge_weight_dict=graph.edge_weight_dict, **config
        )
    dtype = getattr(torch, str(header["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must name a type of torch, got {header['dtype']!r}")
    model.to(dtype)
    model.load_state_dict(state)
    set_scaling(model, None if header["scaling"] is None else Scaling.from_dict(header["scaling"]))
    return model


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model file says about itself: versions, node names, edges, arguments, scaling, ``extra``.

    Raises the same errors as :func:`load`.
    """
    return read_file(path, "gsnn")[0]


def _nonlin_name(nonlin: type) -> str:
    name = getattr(nonlin, "__name__", repr(nonlin))
    if getattr(torch.nn.modules.activation, name, None) is not nonlin:
        raise ValueError(f"nonlin must be an activation class of torch.nn to be saved, got {nonlin!r}")
    return name


def _nonlin_class(name: str) -> type[torch.nn.Module]:
    found = getattr(torch.nn.modules.activation, str(name), None)
    if not isinstance(found, type) or found.__module__ != torch.nn.modules.activation.__name__:
        raise ValueError(f"the model file names the nonlinearity {name!r}, which torch.nn does not have")
    return found
