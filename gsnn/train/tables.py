"""The tables of a fit, matched with the model's nodes, checked and scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gsnn._memory import memory_advice
from gsnn._text import some_names
from gsnn.data.dataset import Prepared, prepared
from gsnn.data.match import as_pair, as_weights, node_names
from gsnn.data.rows import Rows
from gsnn.data.scaling import Scaling, Survey
from gsnn.train.resume import text_checksum

Table = Prepared | torch.Tensor


@dataclass(frozen=True)
class Tables:
    """What a fit reads.

    Attributes:
        x, y: rows to train on, as the network sees them.
        weight: of the rows of x, 1 on average, or None where all count alike.
        val: the rows put aside, or None.
        val_weight: of the rows put aside; 1 each where these were given without.
        gaps: whether y has NaN.
        scaling: between the data and the network's units, or None.
        checksums: of the tables, where asked for.
    """

    x: Table
    y: Table
    weight: torch.Tensor | None
    val: tuple[Table, Table] | None
    val_weight: torch.Tensor | None
    gaps: bool
    scaling: Scaling | None
    checksums: dict[str, str | None]

    def weights_of(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Of these rows of x, or None."""
        return None if self.weight is None else self.weight[rows]


@memory_advice("memory maps, sparse matrices, HDF5 and AnnData are read batch by batch instead")
def prepare(
    model: torch.nn.Module,
    x: Any,
    y: Any,
    validation: tuple[Any, Any] | float | None,
    standardize: bool | Scaling,
    rng: torch.Generator,
    checksum: bool,
    device: torch.device,
    dtype: torch.dtype,
    *,
    sample_weight: Any = None,
) -> Tables:
    """The tables of one call of :func:`gsnn.train.loop.fit`, whose arguments these are.

    Args:
        rng: draws the rows put aside where ``validation`` is a fraction.
        checksum: whether to compute checksums of the tables.
        sample_weight: of the rows of x, or None.

    Raises:
        ValueError: what :func:`gsnn.train.loop.fit` says of tables.
    """
    xs, ys = as_pair(model, x, y, "x", "y")
    weight = None if sample_weight is None else as_weights(sample_weight, x, len(xs))
    sums = {} if weight is None else {"sample_weight": text_checksum(repr(weight.tolist()))}
    if weight is not None and not bool((weight > 0).all()):
        counted = (weight > 0).nonzero()[:, 0]
        xs, ys, weight = xs.take(counted), ys.take(counted), weight[counted]
    aside: tuple[Rows, Rows] | None = None
    val_weight = None
    if isinstance(validation, tuple):
        aside = as_pair(model, *validation, "x_val", "y_val")
    elif validation is not None:
        n_val = max(1, round(validation * len(xs)))
        if n_val >= len(xs):
            raise ValueError(f"validation={validation} leaves no sample of {len(xs)} to train on")
        order = torch.randperm(len(xs), generator=rng)
        held, rest = order[:n_val].sort().values, order[n_val:].sort().values
        aside = xs.take(held), ys.take(held)
        xs, ys = xs.take(rest), ys.take(rest)
        if weight is not None:
            val_weight, weight = weight[held], weight[rest]
    of_x, of_y = (Survey.of(t, moments=standardize is True, checksum=checksum) for t in (xs, ys))
    if not bool(of_y.measured.all()):
        seen = zip(node_names(model, "output"), of_y.measured.tolist(), strict=True)
        names = [name for name, measured in seen if not measured]
        raise ValueError(f"y has no measured value to train on for {some_names(names)}")
    of_val = () if aside is None else tuple(Survey.of(table, checksum=checksum) for table in aside)
    if of_val and not bool(of_val[1].filled.any()):
        raise ValueError("validation data must have at least one measured target, got only NaN")
    scaling = Scaling.of_columns(of_x.columns, of_y.columns) if standardize is True else standardize or None

    def mean_one(weight: torch.Tensor | None, filled: torch.Tensor) -> torch.Tensor | None:
        return None if weight is None else (weight[filled] / weight[filled].mean()).to(device, dtype)

    def ready(x: Rows, y: Rows, filled: torch.Tensor) -> tuple[Table, Table]:
        if not bool(filled.all()):
            x, y = x.take(filled.nonzero()[:, 0]), y.take(filled.nonzero()[:, 0])
        return (
            prepared(x, None if scaling is None else scaling.scale_x, device, dtype),
            prepared(y, None if scaling is None else scaling.scale_y, device, dtype),
        )

    if weight is not None and aside is not None and val_weight is None:
        val_weight = torch.ones(len(aside[0]), dtype=weight.dtype)
    surveys = zip(("x", "y", "x_val", "y_val"), (of_x, of_y, *of_val), strict=False)
    return Tables(
        *ready(xs, ys, of_y.filled),
        mean_one(weight, of_y.filled),
        None if aside is None else ready(*aside, of_val[1].filled),
        None if aside is None else mean_one(val_weight, of_val[1].filled),
        of_y.gaps,
        scaling,
        {**{name: survey.checksum for name, survey in surveys}, **sums},
    )
