"""Files of tensors with a JSON header: safetensors with versions and a checksum, replaced in one step."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as safetensors_bytes

import gsnn

#: Raised when files of this version can no longer be read by older code.
FORMAT_VERSION = 1


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
    data = safetensors_bytes(dict(tensors), metadata={kind: text, "sha256": checksum(text, tensors)})
    with replacing(path) as tmp:
        _write(tmp, data)


def _write(path: Path, data: bytes) -> None:
    """Write a safetensors file with the header's metadata in alphabetical order.

    safetensors writes metadata in an order that differs from process to process. The header may be of any
    length that is a multiple of 8, so that tensors are aligned: they count their places from its end.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[end:])


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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
