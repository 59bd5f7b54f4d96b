"""Skip-gram with negative sampling (Mikolov et al. 2013) on given (centre, context) couples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, logsigmoid

NO_CONTEXT = -1
_ALL_PAIRS = 16  # scores per score that is needed, up to which computing all of them is faster


def train_epoch(
    tables: Callable[[], tuple[Tensor, Tensor]],
    centre: NDArray[np.integer[Any]],
    context: NDArray[np.integer[Any]],
    unknown: NDArray[np.bool_],
    n_negatives: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> float:
    """One pass over the K couples; the mean over them of -log sigmoid(s) - sum log sigmoid(-s of negatives).

    Args:
        tables: gives the (N, d) embeddings of nodes as centre and as context; asked anew in each step.
        centre, context: (K,) node numbers. A context `NO_CONTEXT` leaves the centre with its negatives alone.
        unknown: (N, N) bool, True at [centre, negative] where a drawn negative must not count.
        n_negatives: nodes drawn uniformly for each couple.
    """
    total = 0.0
    for first in range(0, len(centre), batch_size):
        c, positive = centre[first : first + batch_size], context[first : first + batch_size]
        negative = rng.integers(len(unknown), size=(len(c), n_negatives), dtype=np.int32)
        counts = np.concatenate([positive[:, None] != NO_CONTEXT, ~unknown[c[:, None], negative]], axis=1)
        others = np.concatenate([np.maximum(positive, 0)[:, None], negative], axis=1)
        source, target = tables()
        device = source.device
        logits = scores(source, target, torch.from_numpy(c).to(device), torch.from_numpy(others).to(device))
        sign = logits.new_tensor([1.0] + [-1.0] * n_negatives)
        loss = -(logsigmoid(logits * sign) * torch.from_numpy(counts).to(device)).sum() / len(c)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(c)
    return total / len(centre)


def scores(source: Tensor, target: Tensor, centre: Tensor, others: Tensor) -> Tensor:
    """<source of centre (b,), target of others (b, k)>: (b, k)."""
    n = len(source)
    if n * n <= _ALL_PAIRS * others.numel():  # one product of all pairs is cheaper than gathered rows
        place = centre.unsqueeze(1).long() * n + others
        return (source @ target.T).flatten().index_select(0, place.flatten()).view(others.shape)
    return (embedding(others, target) * embedding(centre, source).unsqueeze(1)).sum(2)
