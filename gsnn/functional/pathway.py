"""Correlation of rows with the weighted means of their groups, without a groups x rows table.

The mathematics of :class:`gsnn.models.PathwayLatentRegularizer.PathwayLatentRegularizer`. A row is the
activation of one function node, or of one of its channels, over the B samples of a batch; a group is a
pathway, or one channel of it. Memberships are a list of E (group, row, weight), so time and memory are
linear in E. Sums over members are bags of an embedding table, in a fixed order: the results are the same
bits on every call, on a GPU too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag, normalize

# The others' sum of squares comes from a difference; below this share of what was taken off it is rounding.
_RELATIVE_FLOOR = 1e-6


@dataclass(frozen=True)
class Memberships:
    """E memberships of ``n_rows`` rows in ``n_groups`` groups.

    Attributes:
        group: (E,) ascending.
        row: (E,), ascending within a group.
        weight: (E,), finite and not 0.
        n_groups, n_rows: numbers of groups and rows.
        channels: rows ``r * channels ... (r + 1) * channels - 1`` belong to one node, which is active or
            inactive as a whole.
        group_starts: (n_groups + 1,) the first membership of each group.
        by_row: (E,) the memberships in order of their rows.
        row_starts: (n_rows + 1,) the first place of each row in ``by_row``.
        group_by_row: (2 E,) twice the group of each membership ``by_row``, the second time + ``n_groups``.
    """

    group: Tensor
    row: Tensor
    weight: Tensor
    n_groups: int
    n_rows: int
    channels: int
    group_starts: Tensor
    by_row: Tensor
    row_starts: Tensor
    group_by_row: Tensor

    @classmethod
    def of(
        cls, group: Tensor, row: Tensor, weight: Tensor, n_groups: int, n_rows: int, channels: int = 1
    ) -> Memberships:
        """The same memberships for each of ``channels`` channels; ``n_groups`` and ``n_rows`` count nodes."""
        order = torch.argsort(group * n_rows + row)
        group, row, weight = group[order], row[order], weight[order]
        if channels > 1:
            channel = torch.arange(channels, device=group.device)
            group, row = ((one.unsqueeze(1) * channels + channel).flatten() for one in (group, row))
            order = torch.argsort(group, stable=True)
            group, row, weight = group[order], row[order], weight.repeat_interleave(channels)[order]
        n_groups, n_rows = n_groups * channels, n_rows * channels
        by_row = torch.argsort(row, stable=True)
        pair = torch.stack([group[by_row], group[by_row] + n_groups], 1).flatten()
        return cls(
            group,
            row,
            weight,
            n_groups,
            n_rows,
            channels,
            _starts(group, n_groups),
            by_row,
            _starts(row, n_rows),
            pair,
        )


def _starts(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _bags(table: Tensor, index: Tensor, starts: Tensor, weight: Tensor | None = None) -> Tensor:
    """(len(starts) - 1, B): weighted sums of rows of ``table``."""
    return embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _sums(values: Tensor, starts: Tensor, order: Tensor | None = None) -> Tensor:
    """Sums of consecutive runs of ``values`` (E,), or of ``values[order]``."""
    index = torch.arange(len(values), device=values.device) if order is None else order
    return _bags(values.unsqueeze(1), index, starts).squeeze(1)


class Products(NamedTuple):
    """Centred second moments over a batch, one value per membership unless said.

    Attributes:
        scores: (n_groups, B) weighted mean of each group's active members, less its mean over the batch.
        own: variance of the member.
        group: variance of its group's score.
        shared: covariance of the two.
        share: weight over the sum of absolute weights of the active members; 0 where inactive.
    """

    scores: Tensor
    own: Tensor
    group: Tensor
    shared: Tensor
    share: Tensor


class _MemberProducts(torch.autograd.Function):
    """Everything of size rows x B happens here, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, members: Memberships, min_std: float) -> tuple[Tensor, ...]:
        samples = rows.shape[1]
        mean = rows.mean(1, keepdim=True)
        centred = rows - mean  # not kept: the rows are alive anyway
        variance = torch.linalg.vector_norm(centred, dim=1).square_().div_(samples)
        share = members.weight.to(rows)
        if min_std > 0:
            active = variance.view(-1, members.channels).mean(1) >= min_std**2
            active_rows = active.repeat_interleave(members.channels).to(rows)
            share = share * active_rows.index_select(0, members.row)
        total = _sums(share.abs(), members.group_starts).clamp_(min=torch.finfo(rows.dtype).tiny)
        share = share / total.index_select(0, members.group)
        with torch.enable_grad():
            share.requires_grad_()
            scores = _bags(centred, members.row, members.group_starts, share)
        # The derivative of <scores, scores> / 2 by a weight is the product of member and score.
        shared = torch.autograd.grad(scores, share, scores.detach())[0].div_(samples)
        scores, share = scores.detach(), share.detach()
        group = torch.linalg.vecdot(scores, scores).div_(samples)
        ctx.members = members
        ctx.save_for_backward(rows, mean, scores, share)
        ctx.mark_non_differentiable(share)
        own = variance.index_select(0, members.row)
        return scores, own, group.index_select(0, members.group), shared, share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_scores: Tensor, d_own: Tensor, d_group: Tensor, d_shared: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None]:
        members: Memberships = ctx.members
        rows, mean, scores, share = ctx.saved_tensors
        samples = rows.shape[1]
        d_shared = d_shared / samples
        through = _bags(rows, members.row, members.group_starts, d_shared)
        through += d_scores
        through -= through.mean(1, keepdim=True)
        through.addcmul_(scores, _sums(d_group, members.group_starts).mul_(2 / samples).unsqueeze(1))
        weights = torch.stack([d_shared, share], 1).index_select(0, members.by_row).flatten()
        d_rows = _bags(torch.cat([scores, through]), members.group_by_row, 2 * members.row_starts, weights)
        own = _sums(d_own, members.row_starts, members.by_row).mul_(2 / samples).unsqueeze(1)
        d_rows.addcmul_(rows, own).sub_(own * mean)
        return d_rows, None, None


def member_products(rows: Tensor, members: Memberships, min_std: float = 0.0) -> Products:
    """Moments of members and scores over the batch, differentiable in ``rows`` (once).

    Args:
        rows: (n_rows, B) float32 or float64.
        members: on the same device.
        min_std: a node whose channels vary with a root mean variance below this is inactive: it has no
            part in any score.
    """
    return Products(*_MemberProducts.apply(rows, members, min_std))


def similarity(
    products: Products, members: Memberships, leave_one_out: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Weighted mean over the memberships of corr(member, score of its group); between -1 and 1.

    The weights are the absolute ones of the memberships, and a membership with a negative weight counts
    with the opposite correlation. Inactive members do not count. Variances are taken to be at least
    ``eps``, so the correlation with a constant is 0, with a finite gradient.

    Args:
        products: of :func:`member_products`.
        members: what it was given.
        leave_one_out: correlate each member with the mean of the *other* active members, and leave out
            members that have none.
        eps: floor of the variances.

    Returns:
        A scalar, 0 where no membership counts; and 1 where any counts, else 0.
    """
    _, own, group, shared, share = products
    counts = share != 0
    if leave_one_out:
        others = 1 - share.abs()
        counts = counts & (others > _RELATIVE_FLOOR)
        rest = torch.where(counts, others, 1.0)
        part = share * own
        group = group - share * (2 * shared - part)
        group = torch.maximum(group, _RELATIVE_FLOOR * (share * part).detach()) / rest**2
        shared = (shared - part) / rest
    correlation = shared * (own.clamp(min=eps) * group.clamp(min=eps)).rsqrt()
    weight = torch.where(counts, members.weight.to(own), 0.0)
    total = weight.abs().sum()
    mean = (weight * correlation).sum() / total.clamp(min=torch.finfo(own.dtype).tiny)
    return mean, (total > 0).to(own)


def dissimilarity(scores: Tensor, pairs: Tensor, channels: int, eps: float) -> Tensor:
    """Mean over pairs, and over channels, of the squared correlation of two pathways' scores.

    Args:
        scores: (K * channels, B), centred.
        pairs: (n, 2) pathways.
        channels: rows per pathway.
        eps: floor of the variances.
    """
    samples = scores.shape[1]
    unit = normalize(scores, dim=1, eps=(samples * eps) ** 0.5).view(-1, channels * samples)
    one, other = (embedding(side, unit).view(-1, channels, samples) for side in pairs.t())
    return torch.linalg.vecdot(one, other).square().mean()
