"""What the inferers share that score an edge by the first-order effect it would have on the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnn._checks import one_of, positive, whole
from gsnn._text import some_names
from gsnn.optim.batch_scale import Crit
from gsnn.optim.candidates import pair_weights
from gsnn.optim.edge_table import (
    all_pairs,
    check_missing,
    check_top_k,
    edge_table,
    judge,
    rank_in_targets,
)
from gsnn.optim.gradient_pass import Batch, over_batches
from gsnn.optim.streamed import StreamedInferer
from gsnn.stats.moments import LayerAgg, aggregate
from gsnn.stats.pursuit import GroupMoments, Pursuit, largest
from gsnn.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

Score = Literal["omp", "whitened", "gradient"]
SCORES: tuple[Score, ...] = get_args(Score)

_CURVATURE_RIDGE = 0.1  # of the mean curvature: a target that the outputs hardly depend on is no bargain


class FirstOrderInferer(StreamedInferer[GroupMoments], ABC):
    """Statistics over samples, the table and the greedy order; a member says what sources show, targets want.

    With h_i (C,) what a new edge out of i would carry and g_j (D,) the gradient of a sample's loss with
    respect to what it would add to at j, the effect of the edge's weights W (C, D) is tr(M_ij' W),
    M_ij = E[h_i g_j'], to first order.

    Args:
        model: a trained GSNN, or any module with the same captures.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        curvature: take g_j in units of what the outputs change by as j does, g_j K_j^(-1/2) with K_j =
            E[J_j' J_j], J_j the derivative of the outputs: then a score squared is by how much the squared
            error falls to second order (Gauss-Newton), not how steeply it begins to. For squared errors.

    Raises:
        TypeError, ValueError: what `LayerCaptures` and the graph refuse.
    """

    def __init__(self, model: nn.Module, data: Any, *, curvature: bool = False) -> None:
        self.curvature = curvature
        super().__init__(model, data)

    @property
    @abstractmethod
    def places(self) -> list[str]:
        """One name for each place in the network where an edge acts, as in the columns `sv_<place>`."""

    @abstractmethod
    def _contributions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """h (P, B, S, C) and g (P, B, T, D) of one batch at its P places, in float64, checked as finite."""

    def fit(
        self,
        dataloader: Iterable[Any],
        crit: Crit | None = None,
        device: torch.device | str | None = None,
        verbose: bool = True,
    ) -> int:
        """Accumulate the statistics of every sample of `dataloader`, from the beginning.

        The model runs in eval mode, one forward and one backward pass per batch. Its mode, its parameters'
        `.grad` and its captures are left as they were, also when something fails, and then the statistics
        are too.

        Args:
            dataloader: yields (x, y), x (B, N_in) and y (B, N_out) in the units that the model was trained
                in; after `gsnn.fit(..., standardize=True)` give a `RowDataset`. NaN in y is a missing
                measurement.
            crit: loss crit(yhat, y) -> scalar, a mean or a sum over samples; by default the squared error.
            device: where to run; by default where the model is. The model returns from it afterwards.
            verbose: show a progress bar.

        Returns:
            Number of samples counted.

        Raises:
            TypeError, ValueError: a batch is no (x, y) pair, the loss is neither a mean nor a sum over
                samples, an activation or gradient is not finite, or there was no sample.
        """
        seen = self._pass_over(dataloader, crit, device, verbose)
        self._seen = seen
        return seen.n

    def partial_fit(
        self,
        dataloader: Iterable[Any],
        crit: Crit | None = None,
        device: torch.device | str | None = None,
        verbose: bool = True,
    ) -> int:
        """As `fit`, but add to what was seen."""
        seen = self._pass_over(dataloader, crit, device, verbose)
        if self._seen is None:
            self._seen = seen
        else:
            self._seen.merge(seen)
        return seen.n

    def _pass_over(
        self, dataloader: Iterable[Any], crit: Crit | None, device: torch.device | str | None, verbose: bool
    ) -> GroupMoments:
        seen: GroupMoments | None = None

        generator = torch.Generator().manual_seed(0)

        def take(batch: Batch) -> None:
            nonlocal seen
            slopes = None
            if self.curvature:
                slopes = batch.counted(self._contributions(batch.probe(generator))[1])
            h, g = self._contributions(batch)
            if seen is None:
                seen = GroupMoments(len(h), h.shape[2], h.shape[3], h.device, (g.shape[2], g.shape[3]))
            seen.add(batch.counted(h), batch.counted(g) * batch.scale, slopes)

        over_batches(self.model, self._captures, dataloader, take, crit, device, verbose)
        if seen is None or seen.n == 0:
            raise ValueError("dataloader must yield at least one sample with a measured output, got none")
        return seen

    def _check_ends(self, kind: str, names: list[str]) -> None:
        """That the model's input or output nodes are the graph's, where the model tells their names."""
        place = getattr(self.model, f"{kind}_node_mask", None)
        known: Any = getattr(self.model, "homo_names", None)
        if place is None or known is None:
            return
        its = [known[k] for k in place.nonzero().flatten().tolist()]
        if its != names:
            raise ValueError(
                f"data must have the model's {len(its)} {kind} nodes in the same order, got "
                f"{some_names(names)}"
            )

    def _nodes(self, captured: Iterable[Tensor]) -> Tensor:
        """(P, B, N, C) in float64 of P captures."""
        return torch.stack([self._captures.by_node(t.detach()).double() for t in captured])

    def effects(self) -> Tensor:
        """M (P, S, T, C, D), float64: M[p, i, j] = E[h_i g_j'] at place p.

        RuntimeError before `fit`.
        """
        return self._moments().effects()

    def _moments(self) -> GroupMoments:
        if self._seen is None:
            raise RuntimeError("nothing to evaluate yet: call fit(dataloader) first")
        return self._seen.in_units_of_curvature(_CURVATURE_RIDGE) if self.curvature else self._seen

    def evaluate(
        self, layer_agg: LayerAgg = "mean", *, score: Score = "omp", ridge: float = 0.05
    ) -> pd.DataFrame:
        """Score every pair of a source and a target.

        Args:
            layer_agg: aggregation over the places where an edge acts, 'mean' or 'max'.
            score: the largest singular value of M_ij where h_i is 'gradient': as it is; 'whitened': centred
                and whitened; 'omp': centred, whitened and projected off the kept sources of j, which is the
                first step of orthogonal matching pursuit (kept edges have no score then).
            ridge: of that projection, against a variance of 1.

        Returns:
            DataFrame by descending `score`, NaN last, ties by index, with `src_func, dst_func, src_idx,
            dst_idx, score, has_edge, n_cond, sv_<place> for each place, p_value, q_value`. `n_cond` is the
            number of sources projected off. `p_value` is of the score test of E[h_i g_j'] = 0, of what is
            left of both; smallest of the places times their number. It asks whether the network is
            stationary, which one trained for a finite time never is. In one that is, p is uniform for one
            place and many samples, and too large for few or for several places.

        Raises:
            RuntimeError: before `fit`.
            ValueError: an option out of its range.
        """
        return self._table(layer_agg, False, score, ridge)

    def _table(self, layer_agg: LayerAgg, exclude_self: bool, score: Score, ridge: float) -> pd.DataFrame:
        one_of("layer_agg", layer_agg, ("mean", "max"))
        check_score(score, ridge)
        moments = self._moments()
        pursuit = Pursuit(moments, ridge)
        shape = self.kept.shape
        pairs = torch.empty(len(self.places), *shape, dtype=torch.float64)
        p = np.empty(shape)
        n_cond = np.zeros(shape, dtype=np.int64)
        plain = largest(self.effects()).cpu() if score == "gradient" else None
        for j, parents in self.parents_by_target.items():
            given = parents if score == "omp" else []
            pairs[:, :, j] = pursuit.scores(j, given).cpu() if plain is None else plain[:, :, j]
            p[:, j] = pursuit.p_values(j, given)
            pairs[:, given, j], p[given, j] = torch.nan, np.nan
            n_cond[:, j] = len(given)
        best = aggregate(pairs, layer_agg).numpy()
        source, target = all_pairs(self.kept, exclude_self)
        columns: dict[str, NDArray[Any]] = {"score": best[source, target], "n_cond": n_cond[source, target]}
        for place, values in zip(self.places, pairs.numpy(), strict=True):
            columns[f"sv_{place}"] = values[source, target]
        columns["p_value"] = p[source, target]
        columns["q_value"] = benjamini_hochberg(columns["p_value"])
        return edge_table(self.kept, source, target, "score", columns)

    def greedy(
        self,
        k: int,
        *,
        score: Score = "omp",
        ridge: float = 0.05,
        candidates: Any = None,
        priors: Any = None,
        one_per_target: bool = False,
    ) -> pd.DataFrame:
        """The next `k` edges to add, best first.

        With `score='omp'` every chosen source is projected off what its target may still take, so that the
        next edge brings something else; the other scores rank pairs one by one.

        Args:
            k: a positive int; fewer rows come back where there are fewer candidates.
            score, ridge: as in `evaluate`, means over layer pairs.
            candidates: the (source, target) name pairs to choose from, or a table with columns `source` and
                `target` (or `src_func`, `dst_func`); all missing pairs by default. Pairs that the graph has,
                or that name nodes of other types, are passed over.
            priors: (source, target) -> weight, or a table with a column `weight` too: scores are multiplied
                by it, 1 for pairs without one. A weight of 0 excludes the pair.
            one_per_target: a target gets another edge only once every other has as many.

        Returns:
            DataFrame `order` (from 1), `src_func`, `dst_func`, `score`.

        Raises:
            RuntimeError: before `fit`.
            TypeError, ValueError: `k`, `candidates` or `priors` are not what is described above, or no
                candidate is left.
        """
        import pandas as pd

        k = whole("k", k)
        check_score(score, ridge)
        weight = pair_weights(self.kept, candidates, priors)
        moments = self._moments()
        pursuit = Pursuit(moments, ridge)
        plain = largest(self.effects()).mean(0).cpu().numpy() if score == "gradient" else None
        open_ = weight > 0
        given = {j: list(parents) for j, parents in self.parents_by_target.items()}
        values = np.full(self.kept.shape, -np.inf)

        def refresh(j: int) -> None:
            if plain is not None:
                column = plain[:, j]
            else:
                column = pursuit.scores(j, given[j] if score == "omp" else []).mean(0).cpu().numpy()
            values[:, j] = np.where(open_[:, j], column * weight[:, j], -np.inf)

        for j in np.flatnonzero(open_.any(0)).tolist():
            refresh(j)
        taken = np.zeros(len(self.kept.targets), dtype=np.int64)
        rows: list[tuple[int, str, str, float]] = []
        while len(rows) < k and open_.any():
            allowed = values
            if one_per_target:
                level = taken[open_.any(0)].min()
                allowed = np.where(taken[None, :] == level, values, -np.inf)
            i, j = divmod(int(np.argmax(allowed)), len(self.kept.targets))
            rows.append((len(rows) + 1, self.kept.sources[i], self.kept.targets[j], float(values[i, j])))
            open_[i, j] = False
            given[j] = [*given[j], i]
            taken[j] += 1
            refresh(j)
        return pd.DataFrame(rows, columns=["order", "src_func", "dst_func", "score"])

    def evaluate_against(
        self,
        positive_edges: Iterable[Any],
        *,
        top_k: Iterable[int] = (1, 3, 5),
        filtered: bool = False,
        layer_agg: LayerAgg = "mean",
        score: Score = "omp",
        ridge: float = 0.05,
    ) -> dict[str, Any]:
        """How well the table finds `positive_edges`, (source name, target name) pairs missing from the graph.

        Returns what :func:`gsnn.optim.edge_table.judge_scores` does; `layer_agg`, `score`, `ridge` as in
        `evaluate`.
        """
        pairs, ks = check_missing(positive_edges, self.kept), check_top_k(top_k)
        return judge(self._table(layer_agg, True, score, ridge), self.kept, pairs, "score", ks, filtered)

    evaluate_target_ranking = staticmethod(rank_in_targets)


def has_residuals(blocks: Sequence[Any]) -> bool:
    """Whether the blocks carry their state on, as relu(residual_weight) x; TypeError if they do not tell."""
    if not all(hasattr(block, "residual_weight") for block in blocks):
        raise TypeError("model must have ResBlocks with residual_weight, a scalar tensor or None, got none")
    return blocks[0].residual_weight is not None


def residual_gates(blocks: Sequence[Any]) -> Tensor:
    """(L,) what each block multiplies its state by as it carries it on: relu(r), 0 without residuals."""
    if not has_residuals(blocks):
        return torch.zeros(len(blocks))
    return torch.stack([block.residual_weight.detach().relu() for block in blocks])


def check_score(score: Score, ridge: float) -> None:
    """Refuse a score that is none, or a ridge that is not above 0."""
    one_of("score", score, SCORES)
    positive("ridge", ridge)
