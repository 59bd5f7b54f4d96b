"""First-order weighted random walks, all walkers at once.

A walk at node i goes to j with probability w_ij / sum_k w_ik. Each step of each walker costs a constant
number of table look-ups, whatever the degree: Walker's alias method (Walker 1977), one table per row of a
CSR matrix. The tables of all rows are built together, by the sweep of Hübschle-Schneider & Sanders 2019
("Parallel weighted random sampling"), which needs only prefix sums and one sorted search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int = NDArray[np.int32]
Float = NDArray[np.float64]
DEAD_END = -1
_WALKERS = 4096  # walkers that take a step together: their temporary arrays stay in cache


@dataclass(frozen=True)
class Transitions:
    """Where a walker goes from each of N nodes, over E edges of positive weight in CSR order.

    A step from node i picks one of its `degree[i]` slots uniformly. Slot e holds two edges: its own with
    probability `keep[e]`, else another one of the same row.

    Attributes:
        start, degree: (N,) first slot and number of slots of each node; degree 0 is a dead end.
        keep: (E,) probability of the slot's own edge.
        node: (2 E,) target nodes of the slots' own (2 e) and other (2 e + 1) edges.
    """

    start: Int
    degree: Int
    keep: Float
    node: Int

    @classmethod
    def of(cls, source: ArrayLike, target: ArrayLike, weight: ArrayLike, n: int) -> Transitions:
        """From E edges in any order, weights >= 0; an edge of weight 0 is never walked, parallel edges add.

        Raises ValueError where the three are not of one length, an end is not in [0, n), a weight is
        negative or not finite, or there are 2**30 edges or more.
        """
        source, target = np.asarray(source), np.asarray(target)
        weight = np.asarray(weight, dtype=np.float64)
        if not source.shape == target.shape == weight.shape or weight.ndim != 1:
            raise ValueError(
                "source, target and weight must be of one shape (E,), got "
                f"{source.shape}, {target.shape} and {weight.shape}"
            )
        if weight.size >= 2**30:  # places in `node` are numbers of 32 bits
            raise ValueError(f"source must have fewer than 2**30 edges to walk on, got {weight.size}")
        if weight.size and not (np.isfinite(weight).all() and weight.min() >= 0):
            raise ValueError("weight must be non-negative and finite")
        for name, ends in (("source", source), ("target", target)):
            if ends.size and not (
                np.issubdtype(ends.dtype, np.integer) and ends.min() >= 0 and ends.max() < n
            ):
                raise ValueError(f"{name} must be integers in [0, {n})")
        order = np.lexsort((target, source))
        order = order[weight[order] > 0]
        source, target, weight = source[order].astype(np.int64), target[order].astype(np.int32), weight[order]
        degree = np.bincount(source, minlength=n)
        start = np.cumsum(degree) - degree
        keep, other = _alias(weight, source, start, degree)
        node = np.stack([target, target[other]], axis=1).ravel()
        return cls(start.astype(np.int32), degree.astype(np.int32), keep, node)


def _alias(
    weight: Float, row: NDArray[np.int64], start: NDArray[np.int64], degree: NDArray[np.int64]
) -> tuple[Float, NDArray[np.int64]]:
    """Alias tables of all rows: probability of each slot's own edge, and the slot of its other edge.

    Weights are scaled to mean 1 in each row. Light edges (below 1) leave room in their slot, heavy ones fill
    it: in row order, room and surplus are laid side by side as two subdivisions of one line, so the heavy
    edge that fills a slot is found by searching one in the other. A heavy edge whose surplus ends within a
    slot leaves room in its own slot, which the next heavy edge fills.
    """
    # Dividing by the largest first keeps the sum finite and above 0 for weights of any size.
    largest = np.maximum.reduceat(weight, start[degree > 0]) if weight.size else weight
    scaled = weight / np.repeat(largest, degree[degree > 0])
    scaled *= (degree / np.maximum(np.bincount(row, scaled, len(degree)), 1.0))[row]
    keep, other = np.ones(len(weight)), np.arange(len(weight))
    light, heavy = np.flatnonzero(scaled < 1.0), np.flatnonzero(scaled >= 1.0)
    # Positions are counted from each row's own piece of the line, which is longer than its room.
    room = _within_rows(1.0 - scaled[light], row[light]) + start[row[light]]
    surplus = _within_rows(scaled[heavy] - 1.0, row[heavy]) + start[row[heavy]]
    count = np.bincount(row[heavy], minlength=len(degree))
    first = np.cumsum(count) - count  # first heavy edge of each row
    last = first + count - 1
    used = count[row[light]] > 0  # a row without one is uniform up to rounding: every slot keeps its own
    light, room = light[used], room[used]
    begin = np.where(np.diff(row[light], prepend=-1) > 0, start[row[light]], np.roll(room, 1))
    filler = np.searchsorted(surplus, begin, side="right")
    filler = np.clip(filler, first[row[light]], last[row[light]])
    keep[light], other[light] = scaled[light], heavy[filler]
    # The light slot within which a heavy edge's surplus ends, if one of its row does.
    at = np.flatnonzero(np.arange(len(heavy)) < last[row[heavy]])
    ends = np.searchsorted(room, surplus[at], side="right")
    inside = ends < len(light)
    at, ends = at[inside], ends[inside]
    inside = (row[light[ends]] == row[heavy[at]]) & (filler[ends] <= at)
    at, ends = at[inside], ends[inside]
    keep[heavy[at]] = np.clip(1.0 + surplus[at] - room[ends], 0.0, 1.0)
    other[heavy[at]] = heavy[at + 1]
    return keep, other


def _within_rows(values: Float, row: NDArray[np.int64]) -> Float:
    """Prefix sums that start again at each row."""
    total = np.cumsum(values)
    new = np.flatnonzero(np.diff(row, prepend=-1))
    before = np.concatenate([[0.0], total])[new]
    return total - np.repeat(before, np.diff(np.append(new, len(row))))


def random_walks(table: Transitions, starts: ArrayLike, steps: int, rng: np.random.Generator) -> Int:
    """One walk from each of `starts` (W,): (W, steps + 1) int32, column 0 the start.

    A walk ends at a node without outgoing edges; what would follow is -1. The same table, starts and
    generator state give the same walks, bit for bit.
    """
    begin = np.asarray(starts)
    walks = np.full((len(begin), steps + 1), DEAD_END, dtype=np.int32)
    for first in range(0, len(begin), _WALKERS):
        rows = walks[first : first + _WALKERS]
        here = begin[first : first + _WALKERS].astype(np.int32)
        rows[:, 0] = here
        alive: slice | NDArray[np.int64] = slice(None)
        for step in range(1, steps + 1):
            degree = table.degree[here]
            if not degree.all():
                moving = np.flatnonzero(degree)
                alive = np.arange(len(rows))[alive][moving]
                here, degree = here[moving], degree[moving]
                if not moving.size:
                    break
            # One uniform number gives the slot and, by what is left of it, the choice in the slot.
            at = rng.random(len(here)) * degree
            slot = at.astype(np.int32)
            at -= slot
            slot += table.start[here]
            slot = 2 * slot + (at >= table.keep[slot])
            here = table.node[slot]
            rows[alive, step] = here
    return walks


def window_pairs(
    walks: Int, window: int, along: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Every (earlier, later) couple of nodes at most `window` steps apart in a walk: two (K,) arrays.

    walks is (W, steps + 1) as `random_walks` gives it. With `along`, (W, steps) bool, only couples with no
    step between them where it is False; what it says of steps after the end of a walk does not matter.
    """
    earlier, later = [], []
    joined = np.ones((len(walks), walks.shape[1] - 1), dtype=bool) if along is None else along
    for apart in range(1, min(window, walks.shape[1] - 1) + 1):
        if apart > 1:
            joined = joined[:, :-1] if along is None else joined[:, :-1] & along[:, apart - 1 :]
        first, second = walks[:, :-apart], walks[:, apart:]
        taken = joined & (second != DEAD_END)
        earlier.append(first[taken])
        later.append(second[taken])
    if not earlier:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    return np.concatenate(earlier), np.concatenate(later)
