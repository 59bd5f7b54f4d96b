"""Several processes as one: what `torch.distributed` needs to give every rank the whole result.

A `process_group` argument is None or False (this process alone), True (all processes) or a group of
`torch.distributed`. It is never guessed from the environment: every rank of the group must make the same
call, and a script that looks at its results on rank 0 only would otherwise wait for ever.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsnn.stats.moments import CoMoments
from gsnn.stats.samples import Samples, Statistics, as_moments


def group_of(process_group: Any) -> Any:
    """The group that a `process_group` argument means, None for this process alone.

    Raises:
        TypeError: it is neither None, a bool nor a process group.
        RuntimeError: `torch.distributed` has not been initialised, or this process is not in the group.
    """
    if process_group is None or process_group is False:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"process_group={process_group!r} needs torch.distributed: call "
            "torch.distributed.init_process_group first"
        )
    group = dist.group.WORLD if process_group is True else process_group
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise RuntimeError("process_group must contain this process, got a group without it")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"process_group must be None, True or a process group, got {process_group!r}")
    return group


def gathered(values: Tensor, group: Any) -> Tensor:
    """`values` (..., B) of every rank side by side, in order of rank; only B may differ between them."""
    if group is None:
        return values
    size = torch.tensor([values.shape[-1]], device=values.device)
    sizes = [torch.empty_like(size) for _ in range(group.size())]
    dist.all_gather(sizes, size, group)
    counts = [int(s) for s in sizes]
    mine = values.new_zeros(*values.shape[:-1], max(counts))
    mine[..., : values.shape[-1]] = values
    parts = [torch.empty_like(mine) for _ in counts]
    dist.all_gather(parts, mine, group)
    return torch.cat([part[..., :count] for part, count in zip(parts, counts, strict=True)], -1)


def summed(*tensors: Tensor, group: Any) -> None:
    """Replace each tensor by its sum over the ranks; nothing to do without a group."""
    for tensor in tensors if group is not None else ():
        dist.all_reduce(tensor, group=group)


def from_first(values: Tensor, group: Any) -> None:
    """Overwrite `values` with those of the group's first rank; nothing to do without a group."""
    if group is not None:
        dist.broadcast(values, dist.get_global_rank(group, 0), group)


def merged_fit(
    state: Statistics | None,
    eps: float,
    failure: Exception | None,
    pairs: int,
    features: int,
    device: torch.device,
    group: Any,
) -> tuple[Statistics | None, float]:
    """`merged`, None if no rank has a sample, and the largest `eps`, once each rank has said how it went.

    Raises `failure` on the rank that has one, and a RuntimeError that names this rank on all others.
    """
    if device.type == "mps":  # it has no float64, so statistics are kept on the CPU
        device = torch.device("cpu")
    count = 0 if state is None else state.n
    mine = torch.tensor([count, eps, failure is not None], dtype=torch.float64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group)
    table = torch.stack(everyone).tolist()
    if failure is not None:
        raise failure
    failed = [rank for rank, row in enumerate(table) if row[2]]
    if failed:
        raise RuntimeError(f"fit failed on rank {failed[0]} of the process group, which says why")
    counts = [int(row[0]) for row in table]
    everything = merged(state, counts, pairs, features, device, group) if sum(counts) else None
    return everything, max(row[1] for row in table)


def merged(
    state: Statistics | None, counts: list[int], pairs: int, features: int, device: torch.device, group: Any
) -> Statistics:
    """The statistics of the samples of all ranks, the same on each of them.

    `state` is this rank's, None where it has none; it is overwritten. `counts` are the samples of each rank,
    at least one in all. Few samples are exchanged as they are; moments are summed about the common mean, as
    in `gsnn.stats.moments.merge`.
    """
    total = sum(counts)
    if total < features:
        if state is not None and not isinstance(state, Samples):
            raise TypeError("state must be Samples where there are fewer of them than features")
        return _all_samples(state, counts, pairs, features, device, group)
    if state is None:
        state = CoMoments.empty(pairs, features, device)
    local = as_moments(state)
    mean_x, mean_y = (mean * (local.n / total) for mean in (local.mean_x, local.mean_y))
    summed(mean_x, mean_y, group=group)
    dx, dy = local.mean_x - mean_x, local.mean_y - mean_y
    local.m_x += local.n * dx.square()
    local.m_y += local.n * dy.square()
    for pair in range(pairs):
        local.m_xy[pair].addr_(dx[pair], dy[pair], alpha=local.n)
        local.m_xx[pair].addr_(dx[pair], dx[pair], alpha=local.n)
    summed(local.m_x, local.m_y, *local.m_xy, *local.m_xx, group=group)
    return CoMoments(total, mean_x, mean_y, local.m_x, local.m_y, local.m_xy, local.m_xx)


def _all_samples(
    state: Samples | None, counts: list[int], pairs: int, features: int, device: torch.device, group: Any
) -> Samples:
    """Each rank's samples, sent to all others straight into the place that they get."""
    me = group.rank()
    owner = next(rank for rank, count in enumerate(counts) if count)
    shifts = [torch.empty(pairs, features, dtype=torch.float64, device=device) for _ in range(2)]
    if state is not None and me == owner:
        shifts = [state.shift_x, state.shift_y]
    for shift in shifts:
        dist.broadcast(shift, dist.get_global_rank(group, owner), group)
    mine = None if state is None else state.shifted_to(shifts[0], shifts[1])
    both: list[Tensor] = []
    for name in ("x", "y"):
        out = torch.empty(pairs, sum(counts), features, dtype=torch.float64, device=device)
        start = 0
        for rank, count in enumerate(counts):
            if rank == me and mine is not None:
                torch.cat(getattr(mine, name), 1, out=out[:, start : start + count])
            for pair in range(pairs if count else 0):
                dist.broadcast(out[pair, start : start + count], dist.get_global_rank(group, rank), group)
            start += count
        both.append(out)
    return Samples(shifts[0], shifts[1], both[:1], both[1:])


@torch.no_grad()
def average_running_statistics(model: nn.Module, process_group: Any = True) -> None:
    """Replace the running means and variances of a model's norms by their averages over the processes.

    For norms over the batch (`groupbatch`, `batch`, torch.nn.BatchNorm): in training each rank normalises
    with its own batch and keeps running statistics of its own shard. Averages are what equal shards give
    together: the running mean exactly, the running variance (an unbiased estimate on every rank) in
    expectation. Call it on every rank, before evaluating or saving a model whose DistributedDataParallel did
    not broadcast buffers (by default it makes them rank 0's). Other buffers stay as they are.

    Raises RuntimeError, TypeError : as `group_of`.
    """
    group = group_of(process_group)
    if group is None:
        return
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in ("running_mean", "running_var"):
            dist.all_reduce(buffer, group=group)
            buffer /= group.size()
