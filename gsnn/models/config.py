"""The arguments of a GSNN but for its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from gsnn._checks import one_of, whole, within
from gsnn.kernels.scatter import Backend, check_backend
from gsnn.models.norms import NORMS, Norm
from gsnn.models.signs import EdgeSigns
from gsnn.models.SparseLinear import INITS, Init


@dataclass(frozen=True)
class Config:
    """What :class:`gsnn.models.GSNN.GSNN` is built with, checked by itself; there stands what each means.

    Raises:
        ValueError, TypeError, ImportError: as GSNN says.
    """

    channels: int
    layers: int
    dropout: float = 0.0
    nonlin: Callable[[], torch.nn.Module] = torch.nn.ELU
    bias: bool = True
    share_layers: bool = True
    add_function_self_edges: bool = True
    norm: Norm = "layer"
    init: Init = "degree_normalized"
    checkpoint: bool = False
    residual: bool = True
    norm_first: bool = True
    node_mlp: bool = False
    node_mlp_hidden: int = 16
    learn_residual: bool = True
    affine: bool = True
    backend: Backend = "bucketed"
    edge_signs: EdgeSigns = "free"
    context: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "node_mlp_hidden"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        within("dropout", self.dropout, "[0, 1)")
        one_of("norm", self.norm, NORMS)
        one_of("init", self.init, INITS)
        check_backend(self.backend)
        if not callable(self.nonlin) or isinstance(self.nonlin, torch.nn.Module):
            raise TypeError(f"nonlin must be a module class such as torch.nn.ELU, got {self.nonlin!r}")

    def arguments(self) -> dict[str, Any]:
        """By name, as GSNN takes them again; ``context`` as a list."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**given, "context": list(self.context)}
