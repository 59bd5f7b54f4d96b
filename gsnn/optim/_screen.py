"""First-order scores of big graphs: all pairs are screened roughly, the most promising ones scored exactly.

The moments of all pairs take (N C)^2 numbers. Here the samples themselves are kept, as many layer pairs at a
time as fit into the memory that is given, so that the data are gone through several times. What makes the
projection off the kept parents S_j cheap is that it may be taken on either side: the moment of g_j with h_i
less its ridge regression on h_S is that of h_i with g_j less K'h_S, K = (Cov(h_S) + ridge)^-1 Cov(h_S, g_j).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gsnn._progress import ProgressBar
from gsnn.optim.batch_scale import Crit
from gsnn.optim.edge_table import edge_table
from gsnn.optim.gradient_pass import Batch, over_batches
from gsnn.stats.moments import LayerAgg, aggregate
from gsnn.stats.pursuit import largest, whitener

if TYPE_CHECKING:
    import pandas as pd

    from gsnn.optim.first_order import FirstOrderInferer, Score

#: Whitened directions of a source, those of largest variance, and directions of a target's gradient that the
#: screen looks at.
_SOURCE_DIRECTIONS, _TARGET_DIRECTIONS = 4, 1
_BLOCK = 2**23  # values of a temporary array


@dataclass(frozen=True)
class Screen:
    """How the best pairs of a big graph are found; see :meth:`FirstOrderEdgeInferer.best`."""

    top_k: int
    looked_at: int
    score: Score
    layer_agg: LayerAgg
    exclude_self: bool
    ridge: float
    memory: int


class Place:
    """What sources show and targets want in one layer pair: h and g, (N, C, n), in the model's precision.

    Afterwards E[h_i g_j'] is what `score` takes the largest singular value of: h is whitened and g less its
    regression on what the kept parents show, as far as the score asks for it.
    """

    def __init__(self, h: Tensor, g: Tensor, parents: dict[int, list[int]], score: Score, ridge: float):
        self.h, self.g, self.n = h, g, h.shape[2]
        self._shown: Tensor | None = None
        centred = score != "gradient"
        for shown, wanted in zip(self._parts(h), self._parts(g), strict=True):
            exact = shown.double()
            mean = exact.mean(2, keepdim=True) * centred
            exact -= mean
            wanted -= wanted.mean(2, keepdim=True) * centred
            cov = exact @ exact.mT / self.n
            # Turned to its main directions where it is not whitened, which changes no singular value.
            turn = whitener(cov, mean[..., 0])[0] if centred else torch.linalg.eigh(cov)[1].mT
            shown.copy_(turn @ exact)
        if score == "omp":
            for j, given in parents.items():
                if given:
                    self._project(j, given, ridge)

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        """Blocks of nodes that bound temporary arrays."""
        return values.split(max(1, _BLOCK // (self.h.shape[1] * self.n)))

    def _project(self, j: int, given: Sequence[int], ridge: float) -> None:
        shown = self.h[torch.tensor(given, device=self.h.device)].flatten(0, 1)  # (k C, n)
        inner = (shown @ shown.mT).double() / self.n
        inner.diagonal().add_(ridge)
        cross = (shown @ self.g[j].mT).double() / self.n
        self.g[j] -= torch.linalg.solve(inner, cross).to(shown.dtype).mT @ shown

    def rough(self, add: Tensor, agg: LayerAgg, count: int) -> None:
        """Add to (N targets, N sources) what the leading directions of h and g have in common."""
        n_nodes, channels, n = self.h.shape
        h = self.h[:, -min(_SOURCE_DIRECTIONS, channels) :]  # whitened ones come by rising variance
        directions = h.shape[1]
        cov = torch.cat([part @ part.mT for part in self._parts(self.g)]).double()
        _, vectors = torch.linalg.eigh(cov)
        main = vectors[:, :, -_TARGET_DIRECTIONS:].to(self.g.dtype)  # (N, C, D)
        flat = h.reshape(n_nodes * directions, n)
        for targets in torch.arange(n_nodes).split(max(1, _BLOCK // (n_nodes * directions))):
            g = (main[targets].mT @ self.g[targets]).flatten(0, 1)  # (T D, n)
            found = (g @ flat.mT).div_(n).square_()
            found = found.view(len(targets), -1, n_nodes, directions).sum((1, 3)).sqrt_().float().cpu()
            if agg == "mean":
                add[targets] += found / count
            else:
                add[targets] = torch.maximum(add[targets], found)

    def exact(self, j: int, sources: Tensor) -> Tensor:
        """(R,) scores of the sources (R,) for target j, in float64."""
        if self._shown is None or len(self._shown) != len(sources):  # new pages each time take as long
            self._shown = self.h.new_empty(len(sources), self.h[0].numel())
        shown = torch.index_select(self.h.flatten(1), 0, sources, out=self._shown).view(-1, self.n)
        return largest((shown @ self.g[j].mT).double().unflatten(0, (len(sources), -1)) / self.n)


def best_pairs(
    inferer: FirstOrderInferer,
    dataloader: Iterable[Any],
    screen: Screen,
    crit: Crit | None,
    device: torch.device | str | None,
    verbose: bool,
) -> pd.DataFrame:
    """The table of the best sources of every target; see :meth:`FirstOrderEdgeInferer.best`."""
    count, n = len(inferer.places), _samples(dataloader)
    n_nodes = len(inferer.kept.targets)
    item = torch.finfo(next(inferer.model.parameters()).dtype).bits // 8
    channels = len(inferer._captures.blocks[0].channel_groups) // n_nodes
    at_a_time = max(1, screen.memory // (2 * n * n_nodes * channels * item))
    groups = [list(range(p, min(p + at_a_time, count))) for p in range(0, count, at_a_time)]

    def places(group: Sequence[int]) -> Iterator[tuple[int, Place]]:
        collected = _collect(inferer, dataloader, n, group, crit, device, verbose)
        for p in group:
            h, g = collected.pop(0)
            yield p, Place(h, g, inferer.parents_by_target, screen.score, screen.ridge)

    rough = torch.zeros(n_nodes, n_nodes)
    held: list[tuple[int, Place]] = []
    for group in groups:
        held.clear()  # before the next ones are collected
        for p, place in places(group):
            place.rough(rough, screen.layer_agg, count)
            held.append((p, place))
    if screen.score == "omp":
        rough[inferer.kept.index[1], inferer.kept.index[0]] = -torch.inf
    if screen.exclude_self:
        rough.fill_diagonal_(-torch.inf)
    looked_at = min(screen.looked_at, n_nodes)
    promising = [torch.topk(part, looked_at).indices for part in rough.split(max(1, _BLOCK // n_nodes))]
    sources = torch.cat(promising).sort(1).values  # (N, R)
    allowed = rough.gather(1, sources) > -torch.inf
    del rough, promising
    values = torch.full((count, n_nodes, looked_at), torch.nan, dtype=torch.float64)
    with_bar = ProgressBar(count * n_nodes, "pairs", verbose)
    for group in reversed(groups):
        # Those of the last pass are still here.
        for p, place in held or places(group):
            for j in range(n_nodes):
                values[p, j] = place.exact(j, sources[j].to(place.h.device)).cpu()
                with_bar.update()
        held.clear()
    with_bar.close()
    values[:, ~allowed] = torch.nan
    return _table(inferer, sources.numpy(), values, allowed.numpy(), screen)


def _table(
    inferer: FirstOrderInferer, sources: np.ndarray, values: Tensor, allowed: np.ndarray, screen: Screen
) -> pd.DataFrame:
    best = aggregate(values, screen.layer_agg).numpy()
    order = np.argsort(-np.where(np.isnan(best), -np.inf, best), axis=1, kind="stable")[:, : screen.top_k]
    target = np.broadcast_to(np.arange(len(best))[:, None], order.shape)
    shown = np.take_along_axis(allowed, order, 1)

    def chosen(of_pairs: np.ndarray) -> np.ndarray:
        return np.take_along_axis(of_pairs, order, 1)[shown]

    n_cond = np.array([len(inferer.parents_by_target[j]) * (screen.score == "omp") for j in range(len(best))])
    columns = {"score": chosen(best), "n_cond": n_cond[target[shown]]}
    for place, of_place in zip(inferer.places, values.numpy(), strict=True):
        columns[f"sv_{place}"] = chosen(of_place)
    columns["p_value"] = columns["q_value"] = np.full(int(shown.sum()), np.nan)
    return edge_table(inferer.kept, chosen(sources), target[shown], "score", columns)


def _samples(dataloader: Iterable[Any]) -> int:
    """How many samples there are; ValueError where they can be gone through only once."""
    if iter(dataloader) is dataloader:
        raise ValueError(
            "dataloader must be one that can be gone through several times, as a list of batches or a "
            "DataLoader, got an iterator"
        )
    return max(1, sum(len(batch[0]) for batch in dataloader))


def _collect(
    inferer: FirstOrderInferer,
    dataloader: Iterable[Any],
    n: int,
    places: Sequence[int],
    crit: Crit | None,
    device: torch.device | str | None,
    verbose: bool,
) -> list[tuple[Tensor, Tensor]]:
    """h and g of the places, (N, C, m), of the m <= n samples that count."""
    captures, found, seen = inferer._captures, [], 0  # type: ignore[var-annotated]

    def take(batch: Batch) -> None:
        nonlocal seen
        shown = [captures.activations()[p].detach() for p in places]
        wanted = batch.gradients([captures.pre_norms()[p + 1] for p in places])
        for k, (p, h, g) in enumerate(zip(places, shown, wanted, strict=True)):
            pair = [captures.by_node(values)[None] for values in (h, g)]
            batch.check_finite(pair[0], "activation", "function node", inferer.function_nodes, p)
            batch.check_finite(pair[1], "gradient", "function node", inferer.function_nodes, p + 1)
            (of_h,), (of_g,) = map(batch.counted, pair)
            if k == len(found):  # all of their memory at once: parts to be joined would take it twice
                found.append(tuple(of_h.new_empty(*of_h.shape[1:], n) for _ in range(2)))
            here = slice(seen, seen + len(of_h))
            found[k][0][..., here] = of_h.permute(1, 2, 0)
            found[k][1][..., here] = of_g.permute(1, 2, 0).mul(batch.scale)
        seen += len(of_h)

    over_batches(inferer.model, captures, dataloader, take, crit, device, verbose)
    if seen == 0:
        raise ValueError("dataloader must yield at least one sample with a measured output, got none")
    return [(h[..., :seen].contiguous(), g[..., :seen].contiguous()) for h, g in found]
