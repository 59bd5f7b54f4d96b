"""Correlation of rows with the weighted means of their groups, without a groups x rows table.

The mathematics of :class:`gsnn.models.PathwayLatentRegularizer.PathwayLatentRegularizer`. A row is the
activation of one function node, or of one of its channels, over the B samples of a batch; a group is a
pathway, or one channel of it. Memberships are a list of E (group, row, weight), so time and memory are
linear in E. Sums over members are bags of an embedding table, each in a fixed order, so that the results
are the same bits on every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        node: (E,) the node of each member.
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
    node: Tensor
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
            row // channels,
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
    if weight is not None and weight.requires_grad and not table.requires_grad:
        table = table.detach().requires_grad_()  # PyTorch 2.4 fails where only the weights have a gradient
    return embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _sums(values: Tensor, starts: Tensor, order: Tensor | None = None) -> Tensor:
    """Sums of consecutive runs of ``values`` (E,), or of ``values[order]``."""
    index = torch.arange(len(values), device=values.device) if order is None else order
    return _bags(values.unsqueeze(1), index, starts).squeeze(1)


def _correlations(
    own: Tensor, group: Tensor, shared: Tensor, share: Tensor, weight: Tensor, leave_one_out: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weighted mean correlation, whether any counts, and the derivatives by the first three.

    Args:
        own: (E,) variance of each member.
        group: (E,) variance of its group's score.
        shared: (E,) covariance of the two.
        share: (E,) weight of the member in the score; 0 where inactive.
        weight: (E,) weight of the membership.
        leave_one_out, eps: as in :func:`similarity`.
    """
    counts = share.abs().sign_()
    if leave_one_out:
        rest = 1 - share.abs()
        counts.mul_(_positive(rest - _RELATIVE_FLOOR))
        rest.clamp_(min=_RELATIVE_FLOOR)
        part = share * own
        floor = part * share * _RELATIVE_FLOOR
        group = torch.addcmul(group, share, part - 2 * shared)
        above = _positive(group - floor)
        group = torch.maximum(group, floor, out=floor).div_(rest).div_(rest)
        shared = (shared - part).div_(rest)
    weight = weight * counts
    total = weight.abs().sum()
    weight.div_(total.clamp(min=torch.finfo(own.dtype).tiny))
    member, score = own.clamp(min=eps), group.clamp(min=eps)
    d_shared = (member * score).rsqrt_().mul_(weight)
    terms = d_shared * shared
    halves = terms * -0.5
    d_own = _positive(own - eps).mul_(halves).div_(member)
    d_group = _positive(group - eps).mul_(halves).div_(score)
    if leave_one_out:
        d_shared.div_(rest)
        d_group.mul_(above).div_(rest).div_(rest)
        pull = d_group * share
        d_own.addcmul_(pull - d_shared, share)
        d_shared.sub_(pull, alpha=2)
    return terms.sum(), (total > 0).to(own), d_own, d_group, d_shared


def _positive(values: Tensor) -> Tensor:
    """1 where positive, else 0, in place; several times faster than a comparison."""
    return values.sign_().clamp_(min=0)


class _Similarity(torch.autograd.Function):
    """Everything of size rows x B is here, in few passes over memory.

    With x a row, s a score and the derivatives d of the result by var(x), var(s) and cov(x, s), which the
    forward pass has already: the gradient of s is ``sum d_cov x + 2 d_var(s) s``, that of x
    ``sum d_cov s + 2 d_var(x) x`` and, through the scores, ``sum share * (gradient of s)``, over B.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, members: Memberships, leave_one_out: bool, min_std: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        samples = rows.shape[1]
        mean = rows.mean(1, keepdim=True)
        variance = torch.linalg.vector_norm(rows - mean, dim=1).square_().div_(samples)
        weight = members.weight.to(rows)
        share = weight
        if min_std > 0:
            active = variance.view(-1, members.channels).mean(1) >= min_std**2
            share = share * active.index_select(0, members.node)
        total = _sums(share.abs(), members.group_starts).clamp_(min=torch.finfo(rows.dtype).tiny)
        share = share / total.index_select(0, members.group)
        with torch.enable_grad():
            share.requires_grad_()
            scores = _bags(rows, members.row, members.group_starts, share)
        centred = scores.detach() - scores.detach().mean(1, keepdim=True)
        # The derivative of <centred, scores> by a weight is the product of member and score.
        shared = torch.autograd.grad(scores, share, centred)[0].div_(samples)
        share = share.detach()
        group = torch.linalg.vecdot(centred, centred).div_(samples).index_select(0, members.group)
        own = variance.index_select(0, members.row)
        result, counts, *slopes = _correlations(own, group, shared, share, weight, leave_one_out, eps)
        ctx.members = members
        ctx.save_for_backward(rows, mean, centred, share, *slopes)
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        return result, counts, centred

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_result: Tensor | None, _: Any, d_scores: Tensor | None
    ) -> tuple[Tensor, None, None, None, None]:
        members: Memberships = ctx.members
        rows, mean, scores, share, d_own, d_group, d_shared = ctx.saved_tensors
        per_sample = (0.0 if d_result is None else d_result) / rows.shape[1]
        d_shared = d_shared * per_sample
        through = _bags(rows, members.row, members.group_starts, d_shared)
        if d_scores is not None:
            through += d_scores
        through -= through.mean(1, keepdim=True)
        through.addcmul_(scores, (_sums(d_group, members.group_starts) * (2 * per_sample)).unsqueeze(1))
        weights = torch.stack([d_shared, share], 1).index_select(0, members.by_row).flatten()
        d_rows = _bags(torch.cat([scores, through]), members.group_by_row, 2 * members.row_starts, weights)
        own = (_sums(d_own, members.row_starts, members.by_row) * (2 * per_sample)).unsqueeze(1)
        d_rows.addcmul_(rows, own).sub_(own * mean)
        return d_rows, None, None, None, None


def similarity(
    rows: Tensor, members: Memberships, leave_one_out: bool = False, min_std: float = 0.0, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean over the memberships of corr(member, score of its group), over the batch.

    A score is the weighted mean of a group's members. The weights are the absolute ones of the memberships,
    and a membership with a negative weight counts with the opposite correlation. Variances are taken to be
    at least ``eps``, so the correlation with a constant is 0, with a finite gradient. It can be
    differentiated once.

    Args:
        rows: (n_rows, B) float32 or float64.
        members: on the same device.
        leave_one_out: correlate each member with the mean of the *other* members, and leave out members
            that have none.
        min_std: nodes whose channels vary with a root mean variance below this are in no group.
        eps: floor of the variances.

    Returns:
        The mean, a scalar between -1 and 1, 0 where no membership counts; 1 where any counts, else 0,
        without gradient; and the scores (n_groups, B) less their means over the batch.
    """
    return _Similarity.apply(rows, members, leave_one_out, min_std, eps)


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
