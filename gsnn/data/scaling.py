"""The scaling between data and network units, and the one pass over a table that finds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch

from gsnn.data.rows import Rows


@dataclass(frozen=True)
class Scaling:
    """Per-column shifts and scales of a network's data.

    It sees ``(x - x_mean) / x_scale`` and predicts ``(y - y_mean) / y_scale``. Each field holds one float per
    column, in the order of the graph's input or output nodes.
    """

    x_mean: tuple[float, ...]
    x_scale: tuple[float, ...]
    y_mean: tuple[float, ...]
    y_scale: tuple[float, ...]

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> Scaling:
        """Column means and standard deviations of x (B, N_in) and y (B, N_out), gaps (NaN) left out.

        A column without spread gets the scale 1, so that it is only shifted.
        """
        return cls.of_columns(ColumnMoments.of([x]), ColumnMoments.of([y]))

    @classmethod
    def of_columns(cls, x: ColumnMoments, y: ColumnMoments) -> Scaling:
        """The same from moments that were collected block by block."""
        return cls(*x.shift_and_scale(), *y.shift_and_scale())

    def scale_x(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, N_in) in the units the network sees."""
        return (x - x.new_tensor(self.x_mean)) / x.new_tensor(self.x_scale)

    def scale_y(self, y: torch.Tensor) -> torch.Tensor:
        """y (B, N_out) in the units the network predicts."""
        return (y - y.new_tensor(self.y_mean)) / y.new_tensor(self.y_scale)

    def unscale_y(self, yhat: torch.Tensor) -> torch.Tensor:
        """Predictions (B, N_out) back in the units of y."""
        return yhat * yhat.new_tensor(self.y_scale) + yhat.new_tensor(self.y_mean)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, ready for JSON; ``Scaling.from_dict`` is the way back."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, list[float]]) -> Scaling:
        """The scaling that :meth:`to_dict` wrote."""
        return cls(**{f.name: tuple(float(v) for v in data[f.name]) for f in fields(cls)})


class ColumnMoments:
    """Count, mean and sum of squared deviations of each column in float64, NaN left out.

    Blocks of rows are merged as in Chan, Golub & LeVeque (1983), which keeps its digits where the mean is
    large beside the spread.
    """

    def __init__(self) -> None:
        self.count: torch.Tensor | None = None

    @classmethod
    def of(cls, blocks: Iterable[torch.Tensor]) -> ColumnMoments:
        """Moments over the rows of all blocks (b, n)."""
        moments = cls()
        for block in blocks:
            moments.add(block)
        return moments

    def add(self, block: torch.Tensor) -> None:
        """Count the rows of ``block`` (b, n)."""
        block = block.detach().to("cpu", torch.float64)
        count = (~block.isnan()).sum(0, dtype=torch.float64)
        mean = torch.nanmean(block, 0).nan_to_num(0.0)
        spread = torch.nansum((block - mean) ** 2, 0)
        if self.count is None:
            self.count, self.mean, self.spread = count, mean, spread
            return
        total = self.count + count
        step, share = mean - self.mean, count / total.clamp(min=1)
        self.mean = self.mean + step * share
        self.spread = self.spread + spread + step**2 * self.count * share
        self.count = total

    def shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation; 1 instead of a deviation that is 0 or rounding error."""
        if self.count is None:
            raise ValueError("there must be at least one row to standardise by, got none")
        scale = (self.spread / self.count).sqrt()
        flat = ~(scale > 1e-9 * self.mean.abs())  # also true for NaN: a column without any value
        return tuple(self.mean.tolist()), tuple(scale.masked_fill(flat, 1.0).tolist())


@dataclass(frozen=True)
class Survey:
    """What one pass over a table (B, n) finds.

    Attributes:
        filled, measured: (B,) and (n,), the rows and columns with at least one value.
        gaps: whether filled rows have NaN.
        columns: moments, where they were asked for; else of nothing.
        checksum: None where it was not asked for.
    """

    filled: torch.Tensor
    measured: torch.Tensor
    gaps: bool
    columns: ColumnMoments
    checksum: str | None

    @classmethod
    def of(cls, rows: Rows, *, moments: bool = False, checksum: bool = False) -> Survey:
        """Read every row once, block by block, which also checks the values.

        The checksum is over shape, type and values; it does not depend on where the table is kept.
        """
        filled, measured, gaps = [], torch.zeros((), dtype=torch.bool), False
        columns, digest = ColumnMoments(), hashlib.blake2b(digest_size=16)
        for block in rows.blocks():
            seen = ~block.isnan()
            filled.append(seen.any(1))
            measured = measured | seen.any(0)
            gaps = gaps or not bool(seen[filled[-1]].all())
            if moments:
                columns.add(block)
            if checksum:
                digest.update(f"{block.dtype} {block.shape[1]}".encode() if len(filled) == 1 else b"")
                digest.update(block.contiguous().reshape(-1).view(torch.uint8).numpy())
        found = f"blake2b:{digest.hexdigest()}" if checksum else None
        return cls(torch.cat(filled), measured, gaps, columns, found)


def scaling_of(model: torch.nn.Module) -> Scaling | None:
    """``model.scaling``: what ``fit`` or ``gsnn.io.load`` left there; None for a model in plain units."""
    return getattr(model, "scaling", None)


def set_scaling(model: Any, scaling: Scaling | None) -> None:
    """Make ``predict`` and ``gsnn.io.save`` use ``scaling``."""
    model.scaling = scaling
