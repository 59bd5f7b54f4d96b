"""Where the rows, nodes, weights and arguments of networks lie that run side by side."""

import ctypes
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from gsnn.kernels import compiled as native
from gsnn.kernels.form import Form
from gsnn.kernels.plan import Plan

Tensor = torch.Tensor

#: A block's parameters, in the order of the offsets; -1 where a block has none.
WEIGHTS = ("in_values", "in_bias", "scale", "shift", "out_values", "out_bias", "residual")
#: What is worked out for given numbers of samples is kept for so many of them; a training has two.
KEPT = 16
#: Field of the passes' arguments -> its place in a table.
COLUMN = {field[0]: k for k, field in enumerate(native.BlockArguments._fields_)}


class Side:
    """Where everything lies: the rows, nodes and weights of K networks of L blocks each.

    The state is (R, W), R the rows of all networks in turn and W at least the number of samples of each,
    a multiple of :data:`gsnn.kernels.compiled.LANES`.

    Args:
        plans: the plan of each network.
        channels: C.
        offsets: (K, L, 7) int, where in its network's flat vector each of :data:`WEIGHTS` of a block
            begins, -1 for none.
        learnt: whether the residual scalars are among the weights; if not, every gate is ``gate``.
        gate: 1 for a residual that is not learnt, 0 for none.
        shared: whether all blocks have the same weights.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        channels: int,
        offsets: np.ndarray,
        learnt: bool,
        gate: float,
        shared: bool,
    ) -> None:
        self.plans = tuple(plans)
        self.channels, self.offsets, self.learnt, self.gate = channels, offsets, learnt, gate
        self.shared = shared
        self.layers = offsets.shape[1]
        self.rows = [0, *accumulate(plan.n_rows for plan in plans)]
        self.nodes = [0, *accumulate(plan.n_nodes for plan in plans)]

    def __getstate__(self) -> dict[str, Any]:
        made = ("entries", "work", "row_starts", "_tables")  # when asked for, with addresses of this process
        return {name: value for name, value in vars(self).items() if name not in made}

    @cached_property
    def _tables(self) -> dict[tuple[Any, ...], np.ndarray]:
        return {}

    @cached_property
    def entries(self) -> list[int]:
        """Address of each plan as the compiled passes read it."""
        # Held by the plans themselves; the addresses live as long as these.
        return [ctypes.addressof(native._of(plan).arguments) for plan in self.plans]

    @cached_property
    def work(self) -> list[int]:
        """Multiplications of a block of each network, for one channel and sample."""
        return [native._of(plan).work for plan in self.plans]

    @cached_property
    def row_starts(self) -> np.ndarray:
        """(K, 1) first row of each network."""
        return np.array(self.rows[:-1])[:, None]

    def places(self, sizes: Sequence[int]) -> np.ndarray:
        """(K, L, 7) where the gradient of each weight lies if those of all networks lie in turn.

        Blocks that share their weights each write one, L pieces of memory as long as all networks' weights.
        """
        begin = np.array([0, *accumulate(sizes)])
        copies = np.arange(self.layers) * begin[-1] if self.shared else np.zeros(self.layers, np.int64)
        return begin[:-1, None, None] + copies[:, None] + self.offsets

    def table(self, form: Form, dtype: torch.dtype, width: int, samples: Sequence[int]) -> np.ndarray:
        """(K, L, fields) arguments of the passes, sizes and fixed gates filled in; the caller's to change."""
        key = form.dims, form.centre, dtype, width, tuple(samples)
        made = self._tables.get(key)
        if made is None:
            made = np.zeros((len(self.plans), self.layers, len(COLUMN)), np.int64)
            for name, value in (
                ("is_double", dtype == torch.float64),
                ("channels", self.channels),
                ("samples", np.array(samples)[:, None]),
                ("width", width),
                ("norm", native.NORMS[form.dims]),
                ("centre", form.centre),
            ):
                made[..., COLUMN[name]] = value
            made.view(np.float64)[..., COLUMN["gate"]] = self.gate
            if len(self._tables) >= KEPT:
                self._tables.clear()
            self._tables[key] = made
        return made.copy()

    def order_of_statistics(self, per_node: int) -> Tensor:
        """(S,) for the statistics of all networks, blocks and nodes in the given order, where they lie.

        That is among those of all blocks and all networks' nodes in plan order, ``per_node`` to a node.
        """
        each = torch.arange(per_node)
        return torch.cat(
            [
                ((block * self.nodes[-1] + start + plan.rank)[:, None] * per_node + each).reshape(-1)
                for plan, start in zip(self.plans, self.nodes, strict=False)
                for block in range(self.layers)
            ]
        )


def union_plan(side: Side, edges: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> tuple[Plan, Tensor]:
    """How all networks are fed and read, over the rows of ``side``.

    Args:
        side: where everything lies.
        edges: (2, E_k) flat edges of each network.
        sizes: the numbers of function, input and output nodes of each.

    Returns:
        A plan of which only ``input_of_row`` and what :func:`gsnn.kernels.bucketed.read_outputs` reads
        hold, and the rows that the inputs feed, in the order of ``input_of_row``. Inputs and outputs are
        those of all networks in turn.
    """
    n_function, n_input, n_output = (sum(column) for column in zip(*sizes, strict=True))
    flat, rows, begin = [], [], [0, n_function, n_function + n_input]
    for edge_index, size, plan, row in zip(edges, sizes, side.plans, side.rows, strict=False):
        # Flat numbers count function, input and output nodes in turn, here and in the union.
        own = [0, size[0], size[0] + size[1]]
        shift = torch.cat([torch.full((n,), b - o) for n, b, o in zip(size, begin, own, strict=True)])
        flat.append(edge_index + shift[edge_index])
        rows.append(plan.row_of_edge + row)
        begin = [b + n for b, n in zip(begin, size, strict=True)]
    source, target = edge_index = torch.cat(flat, 1)
    row_of_edge = torch.cat(rows)
    union = Plan(edge_index, n_function, n_input, n_output)
    union.n_rows = side.rows[-1]
    padding = torch.tensor([union.n_rows - 1])  # the last network's zero row
    union.read_rows = torch.cat([row_of_edge, padding])[union.edge_of_row[union.read_rows]]
    into_output = target >= n_function + n_input
    union.output_of_row = torch.full((union.n_rows,), n_output)
    union.output_of_row[row_of_edge[into_output]] = target[into_output] - n_function - n_input
    return union, row_of_edge[(source >= n_function) & (source < n_function + n_input)]
