"""The immutable index plan that turns a wired network into a few dense batched products.

Every function node owns one dense block: its incoming edges times C channels on the way in, C
channels times its outgoing edges on the way out. Nodes with similar degrees are put into one bucket
and padded to its largest degree, so that a bucket is a single batched matrix product on contiguous
memory. The plan is built once, is linear in the number of edges, and does not depend on the batch.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch

# What one more batched product costs, in padded rows of 64 samples: about 10 us a call against about
# 40 ns a row, in the forward pass and twice in the backward pass alike.
LAUNCH_COST = 256


class Bucket(NamedTuple):
    """``nodes`` nodes from place ``start`` of the plan, ``degree`` rows each, ``size`` from ``row`` on."""

    start: int
    nodes: int
    degree: int
    row: int
    size: int


def cut_degrees(degrees: np.ndarray, launch_cost: float = LAUNCH_COST) -> np.ndarray:
    """Bucket of each node: the split of the sorted degrees that costs least.

    A bucket of n nodes padded to degree d costs ``launch_cost + n * d``. The best split into
    consecutive ranges of degree is found exactly, by dynamic programming over distinct degrees.

    Args:
        degrees: (N,) ints.
        launch_cost: cost of one more bucket, in padded rows.

    Returns:
        (N,) bucket numbers, ascending with degree.
    """
    distinct, inverse, counts = np.unique(degrees, return_inverse=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    best = np.zeros(len(distinct) + 1)
    cut = np.zeros(len(distinct) + 1, dtype=np.int64)
    for stop in range(1, len(distinct) + 1):
        costs = best[:stop] + launch_cost + (before[stop] - before[:stop]) * distinct[stop - 1]
        cut[stop] = int(np.argmin(costs))
        best[stop] = costs[cut[stop]]
    bucket = np.zeros(len(distinct), dtype=np.int64)
    stop, number = len(distinct), 0
    while stop > 0:
        bucket[cut[stop] : stop] = number
        stop, number = int(cut[stop]), number + 1
    return (number - 1 - bucket)[inverse]


def _buckets(cell: np.ndarray, degrees: np.ndarray) -> tuple[tuple[Bucket, ...], np.ndarray, int]:
    """Buckets over runs of equal ``cell``, the first row of each node, and the number of rows."""
    edges_of_runs = np.flatnonzero(np.diff(cell)) + 1
    starts = np.concatenate([[0], edges_of_runs])
    stops = np.concatenate([edges_of_runs, [len(cell)]])
    buckets, first_rows, row = [], [], 0
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        degree = int(degrees[start:stop].max())
        nodes = stop - start
        buckets.append(Bucket(start, nodes, degree, row, nodes * degree))
        first_rows.append(row + degree * np.arange(nodes))
        row += nodes * degree
    return tuple(buckets), np.concatenate(first_rows), row


def _slots(owner: np.ndarray, first_row: np.ndarray) -> np.ndarray:
    """Row of each edge: the first row of its owner plus its rank among the owner's edges."""
    by_owner = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(first_row))
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.empty(len(owner), dtype=np.int64)
    slots[by_owner] = first_row[owner[by_owner]] + rank
    return slots


def _invert(slots: np.ndarray, size: int, missing: int) -> np.ndarray:
    inverse = np.full(size, missing, dtype=np.int64)
    inverse[slots] = np.arange(len(slots))
    return inverse


class Plan:
    """Row layout of the edge state and the gathers between its two sides.

    The state of a batch is held edge-major, (R, B). Its rows are the padded rows of the edges out of
    function nodes (grouped by source, so that ``lin_out`` writes whole buckets), then the edges out
    of input nodes, then one row that is always zero and that padding reads.

    Args:
        edge_index: (2, E) flat edges, nodes ordered function, input, output.
        n_function: N, the number of function nodes.
        n_input: the number of input nodes.
        n_output: the number of output nodes.

    Attributes:
        order, rank: function node at each place of the plan, and place of each function node.
        in_counts, out_counts: edges into and out of the node at each place.
        natural: whether plan order is the given order, so that no rows need to be permuted.
        in_buckets, out_buckets: the batched products of the two sides.
        in_edges, out_edges: flat edges into and out of function nodes, ascending: the rows of the
            weight tables.
    """

    order: torch.Tensor
    rank: torch.Tensor
    in_counts: torch.Tensor
    out_counts: torch.Tensor
    in_edges: torch.Tensor
    out_edges: torch.Tensor
    in_slots: torch.Tensor
    in_weight_rows: torch.Tensor
    in_rows: torch.Tensor
    in_rows_back: torch.Tensor
    out_slots: torch.Tensor
    out_weight_rows: torch.Tensor
    row_of_edge: torch.Tensor
    edge_of_row: torch.Tensor
    bias_rows: torch.Tensor
    input_of_row: torch.Tensor
    read_rows: torch.Tensor
    read_back: torch.Tensor
    output_of_row: torch.Tensor
    read_degree: torch.Tensor

    def __init__(self, edge_index: torch.Tensor, n_function: int, n_input: int, n_output: int) -> None:
        source, target = edge_index.cpu().numpy()
        n_edges = len(source)
        in_edges = np.flatnonzero(target < n_function)
        out_edges = np.flatnonzero(source < n_function)
        fed_edges = np.flatnonzero((source >= n_function) & (source < n_function + n_input))
        in_degree = np.bincount(target[in_edges], minlength=n_function)
        out_degree = np.bincount(source[out_edges], minlength=n_function)

        # Out-buckets are cut inside each in-bucket: both sides then see contiguous nodes, and no
        # permutation of the (N, C, B) activations is needed between the two products.
        in_cell = cut_degrees(in_degree)
        out_cell = np.zeros(n_function, dtype=np.int64)
        for number in range(in_cell.max() + 1):
            members = in_cell == number
            out_cell[members] = cut_degrees(out_degree[members])
        order = np.lexsort((out_cell, in_cell))
        rank = _invert(order, n_function, 0)
        cell = in_cell * (out_cell.max() + 1) + out_cell
        self.in_buckets, first_in, self.n_in_slots = _buckets(in_cell[order], in_degree[order])
        self.out_buckets, first_out, self.n_out_slots = _buckets(cell[order], out_degree[order])
        self.natural = bool((order == np.arange(n_function)).all())
        self.n_nodes = n_function
        self.n_rows = self.n_out_slots + len(fed_edges) + 1

        in_slots = _slots(rank[target[in_edges]], first_in)
        out_slots = _slots(rank[source[out_edges]], first_out)
        row_of_edge = np.empty(n_edges, dtype=np.int64)
        row_of_edge[out_edges] = out_slots
        row_of_edge[fed_edges] = self.n_out_slots + np.arange(len(fed_edges))

        in_rows = np.full(self.n_in_slots, self.n_rows - 1, dtype=np.int64)
        in_rows[in_slots] = row_of_edge[in_edges]
        # Rows that no function node reads get their gradient from one slot more, which is zero.
        in_rows_back = np.full(self.n_rows, self.n_in_slots, dtype=np.int64)
        in_rows_back[row_of_edge[in_edges]] = in_slots
        in_weight_rows = _invert(in_slots, self.n_in_slots, 0)

        read_edges = np.flatnonzero(target >= n_function + n_input)
        read_node = target[read_edges] - n_function - n_input
        read_degree = np.bincount(read_node, minlength=n_output)
        read_cell = cut_degrees(read_degree)
        read_order = np.argsort(read_cell, kind="stable")
        self.read_buckets, first_read, n_read = _buckets(read_cell[read_order], read_degree[read_order])
        read_back = _invert(read_order, n_output, 0)
        read_rows = np.full(n_read, self.n_rows - 1, dtype=np.int64)
        read_rows[_slots(read_back[read_node], first_read)] = row_of_edge[read_edges]

        output_of_row = np.full(self.n_rows, n_output, dtype=np.int64)
        output_of_row[row_of_edge[read_edges]] = read_node

        tensors = {
            "order": order,
            "rank": rank,
            "in_counts": in_degree[order],
            "out_counts": out_degree[order],
            "in_edges": in_edges,
            "out_edges": out_edges,
            "in_slots": in_slots,
            "in_weight_rows": in_weight_rows,
            "in_rows": in_rows,
            "in_rows_back": in_rows_back,
            "out_slots": out_slots,
            "out_weight_rows": _invert(out_slots, self.n_out_slots, 0),
            "row_of_edge": row_of_edge,
            "edge_of_row": _invert(row_of_edge, self.n_rows, n_edges),
            "bias_rows": _invert(row_of_edge, self.n_rows, 0),
            "input_of_row": source[fed_edges] - n_function,
            "read_rows": read_rows,
            "read_back": read_back,
            "output_of_row": output_of_row,
            "read_degree": np.maximum(read_degree, 1),
        }
        for name, array in tensors.items():
            setattr(self, name, torch.from_numpy(array))

    def to(self, device: torch.device) -> "Plan":
        """The plan with its indices on ``device``; itself where they are there already."""
        if self.order.device == device:
            return self
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def to_nodes(self, per_node: torch.Tensor) -> torch.Tensor:
        """Rows of a per-node tensor in plan order."""
        return per_node if self.natural else per_node.index_select(0, self.order)

    def from_nodes(self, per_node: torch.Tensor) -> torch.Tensor:
        """Rows of a per-node tensor in plan order, back in the given order."""
        return per_node if self.natural else per_node.index_select(0, self.rank)
