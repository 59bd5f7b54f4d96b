"""Tables of every kind as checked rows of numbers, and the scaling between data and network units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gsnn.data.match import as_pair
from gsnn.data.rows import (
    Rows,
)
from gsnn.data.scaling import scaling_of

if TYPE_CHECKING:
    pass


class Prepared:
    """What a network sees of a table that stays where it is: ``table[rows]``, scaled, in dtype and place."""

    def __init__(
        self,
        rows: Rows,
        scale: Callable[[torch.Tensor], torch.Tensor] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._rows, self._scale, self._device, self._dtype = rows, scale, device, dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        values = self._rows[rows]
        if self._scale is not None:
            values = self._scale(values)
        return values.to(self._device, self._dtype)


def prepared(
    rows: Rows,
    scale: Callable[[torch.Tensor], torch.Tensor] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Prepared | torch.Tensor:
    """``rows`` ready for a network: all of them where they are in memory, else batch by batch."""
    table = Prepared(rows, scale, device, dtype)
    return table[:] if rows.in_memory else table


class RowDataset(torch.utils.data.Dataset):
    """Samples (x, y) as ``model`` sees them, for a ``DataLoader``: an edge inferer's, or that of an own loop.

    Takes what ``fit`` takes, matches columns and samples by name in the same way, and reads only the rows of
    a batch from memory maps, sparse matrices, HDF5 and AnnData. Values are float tensors on the CPU in the
    model's dtype, scaled where the model carries a scaling (see ``fit(standardize=True)``)::

        loader = DataLoader(RowDataset(model, x, y), batch_size=64, shuffle=True)
        MagnitudeEdgeInferer(model, model.graph).fit(loader)

    ``dataset[i]`` is one sample, (N_in,) and (N_out,); ``dataset[rows]`` with a slice, a list or a tensor of
    row numbers is a batch. Open HDF5 files cannot be shared with the worker processes of a DataLoader.

    Raises:
        ValueError: wrong shape or columns, different samples in x and y, no sample; on reading, values that
            are not finite (NaN in y means "not measured").
    """

    def __init__(self, model: torch.nn.Module, x: Any, y: Any) -> None:
        xs, ys = as_pair(model, x, y, "x", "y")
        scaling, dtype = scaling_of(model), next(model.parameters()).dtype
        cpu = torch.device("cpu")
        self._x = prepared(xs, None if scaling is None else scaling.scale_x, cpu, dtype)
        self._y = prepared(ys, None if scaling is None else scaling.scale_y, cpu, dtype)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(
        self, rows: int | slice | Sequence[int] | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(rows, slice):
            return self._x[rows], self._y[rows]
        at = torch.as_tensor(rows, dtype=torch.int64)
        if bool(((at < -len(self)) | (at >= len(self))).any()):
            raise IndexError(f"row numbers must be below {len(self)}, got {rows}")
        at = at % len(self)
        x, y = self._x[at.reshape(-1)], self._y[at.reshape(-1)]
        return (x[0], y[0]) if at.ndim == 0 else (x, y)

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What a DataLoader calls: one read for the whole batch, handed over sample by sample."""
        return list(zip(*self[rows], strict=True))
