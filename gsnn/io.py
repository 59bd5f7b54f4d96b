"""Save a model in one file and load it again, without pickle.

The file is safetensors: the tensors of ``state_dict`` and, in the metadata, a JSON header with the
graph, the ordered node names, the constructor's arguments, the data scaling and the versions that
wrote it. A SHA-256 over header and tensors tells a damaged file from a whole one. It guards against
accidents, not against somebody who can also rewrite the checksum; but whatever the file says, loading
it only builds a GSNN and fills in numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

import gsnn
from gsnn.arrays import Scaling, scaling_of, set_scaling
from gsnn.graph import EDGE_TYPES, NODE_TYPES, HeteroGraph, some_names
from gsnn.models.GSNN import GSNN

#: Raised when files of this version can no longer be read by older code.
FORMAT_VERSION = 1


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
        model = GSNN(graph.edge_index_dict, graph.node_names_dict, **config)
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


class replacing:
    """``with replacing(path) as tmp:`` write ``tmp``; it takes the place of ``path`` if all went well.

    The temporary file lies in the same folder, so that the last step is one rename: readers see the
    old file or the new one, never half of either.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        os.close(handle)
        self._tmp = Path(name)
        return self._tmp

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            umask = os.umask(0)
            os.umask(umask)
            self._tmp.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
            os.replace(self._tmp, self._path)
        else:
            self._tmp.unlink(missing_ok=True)


def write_file(
    path: str | os.PathLike[str], kind: str, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write tensors, none of which shares memory with another, and a header, with versions and checksum.

    ``kind`` is the name of the header in the file: ``'gsnn'`` for a model.

    Raises:
        TypeError: the header cannot be written as JSON.
    """
    versions = {"gsnn": gsnn.__version__, "torch": torch.__version__, "safetensors": _version("safetensors")}
    try:
        text = json.dumps({"format_version": FORMAT_VERSION, "versions": versions, **header}, allow_nan=False)
    except (TypeError, ValueError) as err:
        raise TypeError(f"extra must be plain JSON data: {err}") from None
    with replacing(path) as tmp:
        save_file(dict(tensors), tmp, metadata={kind: text, "sha256": checksum(text, tensors)})


def read_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors that :func:`write_file` wrote, if they are whole and of this format version.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a damaged one, or another format version.
    """
    path = Path(path)
    what = "model" if kind == "gsnn" else kind.removeprefix("gsnn_")
    if not path.is_file():
        raise FileNotFoundError(f"no {what} file at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as err:
        raise ValueError(
            f"{path} is not a whole safetensors file ({err}): truncated, or another kind of file"
        ) from None
    if kind not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that gsnn.save wrote: it has no gsnn header"
            if kind == "gsnn"
            else f"{path} is a safetensors file, but no {what} file of gsnn"
        )
    try:
        header = json.loads(metadata[kind])
        written = header["format_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: its gsnn header cannot be read") from None
    if written != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {written}, this gsnn ({gsnn.__version__}) reads version "
            f"{FORMAT_VERSION}; it was written by gsnn {_writer(header)}"
        )
    if metadata.get("sha256") != checksum(metadata[kind], tensors):
        raise ValueError(f"{path} is damaged or was changed after it was saved: its checksum does not match")
    return header, tensors


def _writer(header: dict[str, Any]) -> str:
    versions = header.get("versions")
    return str(versions.get("gsnn", "unknown")) if isinstance(versions, dict) else "unknown"


def untied(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and for the further names of a shared one (``share_layers``) the first name."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first:
            ties[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return tensors, ties


def checksum(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over a text and the names, types, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
