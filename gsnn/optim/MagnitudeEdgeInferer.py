"""Missing function -> function edges from the magnitudes that a trained model shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gsnn._checks import non_negative, one_of
from gsnn._memory import memory_advice
from gsnn.optim.batch_scale import Crit, device_of
from gsnn.optim.edge_table import check_missing, check_top_k, edge_table, judge, rank_in_targets
from gsnn.optim.gradient_pass import Batch, over_batches
from gsnn.optim.magnitudes import MagnitudeScore
from gsnn.optim.streamed import StreamedInferer
from gsnn.stats.moments import LayerAgg, aggregate, partial_correlation
from gsnn.stats.processes import group_of, merged_fit
from gsnn.stats.ranking import best_rows
from gsnn.stats.samples import Collector, Statistics, joined
from gsnn.stats.significance import benjamini_hochberg, fisher_p

if TYPE_CHECKING:
    import pandas as pd

_BLOCK_ELEMENTS = {"corr": 2**24, "partial": 2**27}  # values per temporary array of `evaluate`
_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda z: z.abs().sum(1, dtype=torch.float64),
    "l2": lambda z: z.double().square().sum(1).sqrt_(),
}


class MagnitudeEdgeInferer(StreamedInferer[Statistics]):
    """Scores every pair i -> j by how the activation of i goes with the gradient at j, one layer on.

    If j misses its edge from i, the loss would like z_j^(p+1) to move where i is active. Over samples,
    then, x_i = ||z_i^p|| and y_j = ||g_j^(p+1)|| are correlated, for the P = L - 1 pairs of adjacent layers.
    Magnitudes carry no sign: the score says that an edge would matter, not which way it acts. The p-values
    say that two magnitudes go together, not that an edge is missing.

    Args:
        model: a trained GSNN, or any module with the same captures.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        reduction: norm over a node's C channels, 'l1' or 'l2'.
        use_pre_norm: read activations right after `lin_in`; False reads them after the nonlinearity, which is
            possible for the norms batch, groupbatch and none.

    Attributes:
        n: samples seen since the statistics were last reset.
        N, L, n_pairs: function nodes, layers, layer pairs P.
        function_nodes: the N names.
        edges: set of (source name, target name), the kept function -> function edges.
        parents_by_target: index of each target -> sorted list of the indices of its kept sources, S_j.

    Raises:
        TypeError, ValueError: what `LayerCaptures` and the graph refuse: `checkpoint=True`, one layer, no
            captures, other function nodes than the graph's; an unknown reduction.

    Memory: 16 P N min(n, N) bytes for the statistics: the magnitudes themselves while there are fewer samples
    than function nodes, their moments from then on. `evaluate(top_k=k)` adds 16 N^2 bytes to it. They are
    where the model is while it is fitted, on a GPU too. Source of GSNN: Evans et al. 2024,
    doi 10.1101/2024.02.28.582164.

    >>> from gsnn.models.GSNN import GSNN
    >>> from gsnn.simulate.scenarios import converging_tiers
    >>> scenario = converging_tiers(4)
    >>> x, _, y, _ = (torch.tensor(a).float() for a in scenario.sample(64, 0, seed=0))
    >>> graph = scenario.partial
    >>> model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=4, layers=3)
    >>> inferer = MagnitudeEdgeInferer(model, graph)
    >>> inferer.fit([(x, y)], verbose=False)
    64
    >>> inferer.evaluate()[["src_func", "dst_func", "corr"]].shape
    (56, 3)
    """

    def __init__(
        self, model: nn.Module, data: Any, reduction: Literal["l1", "l2"] = "l1", use_pre_norm: bool = True
    ) -> None:
        if reduction not in _NORMS:
            raise ValueError(f"reduction must be 'l1' or 'l2', got {reduction!r}")
        super().__init__(model, data, use_pre_norm)
        self.reduction = reduction
        self.use_pre_norm = use_pre_norm
        self.n_pairs = self.L - 1

    def reset_stats(self) -> None:
        """Forget every sample seen."""
        super().reset_stats()
        self._eps = 0.0  # coarsest machine precision among the captures read

    def fit(
        self,
        dataloader: Iterable[Any],
        crit: Crit | None = None,
        device: torch.device | str | None = None,
        verbose: bool = True,
        process_group: Any = None,
    ) -> int:
        """Take the statistics of every sample of `dataloader`, in place of any that were taken before.

        The model runs in eval mode, one forward and one backward pass per batch. Its mode, its parameters'
        `.grad` and its captures are left as they were, also when something fails, and then the statistics
        are too.

        Args:
            dataloader: yields (x, y), x (B, N_in) and y (B, N_out) for the default loss, in the units that
                the model was trained in. After `fit(..., standardize=True)` give a `RowDataset(model, x, y)`:
                raw values give wrong ranks without an error.
            crit: loss crit(yhat, y) -> scalar. By default the squared error, averaged over outputs, where a
                NaN in y is a missing measurement: it adds nothing, and a sample without any measurement is
                not counted. Gradients of a loss that averages over the batch shrink with the batch, so they
                are scaled back by B; which kind a loss is, is found once, by doubling the first batch. A loss
                that divides by some other number (of measured values in the batch, say) is only approximately
                independent of how the data is cut.
            device: where to run; by default where the model is. The model returns from it afterwards.
            verbose: show progress.
            process_group: None fits in this process alone. True (all processes of `torch.distributed`) or a
                process group: every rank of it calls `fit` with its own share of the samples, which may be of
                any size, also empty, and has the statistics of all of them afterwards. It is never switched
                on by itself: a script that fits on rank 0 only would wait for the others for ever. A sample
                that two ranks are given counts twice, so shard without padding.

        Returns:
            Number of samples that this call has counted, those of all ranks together.

        Raises:
            TypeError, ValueError: a batch is no (x, y) pair, the loss is no scalar or neither a mean nor a
                sum over samples, an activation or gradient is not finite, or there was no sample.
            RuntimeError: the fit failed on another rank, or `process_group` is none that can be used.
        """
        seen, eps = self._statistics(dataloader, crit, device, verbose, process_group)
        # Only a pass that has gone through takes the place of what was there.
        self._seen, self._eps = seen, eps
        return seen.n

    def partial_fit(
        self,
        dataloader: Iterable[Any],
        crit: Crit | None = None,
        device: torch.device | str | None = None,
        verbose: bool = True,
        process_group: Any = None,
    ) -> int:
        """Add the samples of `dataloader` to those seen; arguments, result and errors as in `fit`.

        Meant for data that comes in parts. The weights must not have changed since the first part, as the
        statistics would then be of two models.
        """
        seen, eps = self._statistics(dataloader, crit, device, verbose, process_group)
        count = seen.n
        self._seen = seen if self._seen is None else joined(self._seen, seen)
        self._eps = max(self._eps, eps)
        return count

    def _statistics(
        self,
        dataloader: Iterable[Any],
        crit: Crit | None,
        device: torch.device | str | None,
        verbose: bool,
        process_group: Any,
    ) -> tuple[Statistics, float]:
        """Those of one pass, by all ranks together, and the coarsest machine precision of the captures."""
        group = group_of(process_group)
        away = device_of(self.model) if device is None else torch.device(device)
        seen: Statistics | None = None
        eps = 0.0
        failure: Exception | None = None
        try:
            seen, eps = self._pass_over(dataloader, crit, away, verbose)
        except Exception as error:
            if group is None:
                raise
            failure = error  # the other ranks are waiting to hear of it
        if group is not None:
            seen, eps = merged_fit(seen, eps, failure, self.n_pairs, self.N, away, group)
        if seen is None:
            raise ValueError("dataloader must yield at least one sample with a measured output, got none")
        return seen, eps

    def _pass_over(
        self,
        dataloader: Iterable[Any],
        crit: Crit | None,
        device: torch.device,
        verbose: bool,
    ) -> tuple[Statistics | None, float]:
        """The statistics of `dataloader`, None if it has no sample, and the captures' machine precision."""
        collector, eps = Collector(), 0.0

        def take(batch: Batch) -> None:
            nonlocal eps
            x, y, precision = self._magnitudes(batch)
            collector.add(x, y)
            eps = max(eps, precision)

        over_batches(self.model, self._captures, dataloader, take, crit, device, verbose)
        return collector.result(), eps

    def _magnitudes(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """x = ||z^p|| and y = ||g^(p+1)|| of one batch, both (P, B, N) in float64, and z's precision."""
        captured = self._captures.tensors()
        grads = batch.gradients(captured[1:])
        x = torch.stack([self._norm(t.detach()) for t in captured[:-1]])
        y = torch.stack([self._norm(g) for g in grads])
        batch.check_finite(x, "activation", "function node", self.function_nodes, 0)
        batch.check_finite(y, "gradient", "function node", self.function_nodes, 1)
        precision = max(torch.finfo(t.dtype).eps for t in captured)
        return batch.counted(x), batch.counted(y) * batch.scale, precision

    def _norm(self, captured: Tensor) -> Tensor:
        """(B, N*C) -> (B, N), in float64 so that tiny gradients neither underflow nor lose digits."""
        if captured.device.type == "mps":  # it has no float64
            captured = captured.cpu()
        # Samples innermost, as GSNN keeps them; torch.linalg.vector_norm is four times slower.
        nodes = self._captures.by_node(captured).permute(1, 2, 0)  # (N, C, B)
        return _NORMS[self.reduction](nodes).T

    @memory_advice("the table of all pairs takes the most of it, evaluate(top_k=) makes a smaller one")
    def evaluate(
        self,
        layer_agg: LayerAgg = "mean",
        exclude_self: bool = True,
        score: MagnitudeScore = "corr",
        ridge: float = 1e-8,
        top_k: int | None = None,
    ) -> pd.DataFrame:
        """Score every ordered pair of function nodes.

        Args:
            layer_agg: aggregation over the P layer pairs, 'mean' or 'max' (the signed value of largest
                magnitude); pairs without a value are left out.
            exclude_self: leave out i -> i.
            score: 'corr' is corr(x_i^p, y_j^(p+1)); 'partial' the same given x_s^p of all s in S_j, the kept
                parents of j.
            ridge: for 'partial', added to the diagonal of the parents' correlation matrix.
            top_k: only the best k sources of each target, as the full table has them, without building the
                table of all N**2 pairs. `q_value` is still that of the full table: the pairs that are not
                shown were tested too.

        Returns:
            DataFrame by descending `corr`, NaN last, ties by index, with `src_func, dst_func, src_idx,
            dst_idx, corr, has_edge, [n_cond], corr_a{p}_g{p+1} for each pair, p_value, q_value`. `n_cond` =
            |S_j| for 'partial'. A correlation is NaN where either magnitude is constant (a standard deviation
            of at most 8 machine precisions of its root mean square), and a partial one also where i is in
            S_j, where S_j determines either side, or where n - 3 - |S_j| leaves no degree of freedom.
            `p_value` is one-sided (corr > 0) by Fisher's z with n - 3 - |S_j| degrees, `q_value` Benjamini &
            Hochberg's over the rows.

        Under independence p is uniform for one layer pair, or pairs that agree. Where they differ it is too
        large for 'mean' and too small, by up to the factor P, for 'max', the largest of P being no average
        one; and a little too small for few samples of skewed magnitudes (.065 at .05 for n = 20).

        Raises:
            RuntimeError: before `fit`.
            ValueError: fewer than 3 samples, or an option out of its range.
        """
        one_of("layer_agg", layer_agg, ("mean", "max"))
        one_of("score", score, ("corr", "partial"))
        non_negative("ridge", ridge)
        if top_k is not None:
            (top_k,) = check_top_k((top_k,))
        if self._seen is None:
            raise RuntimeError("nothing to evaluate yet: call fit(dataloader) first")
        if self.n < 3:
            raise ValueError(f"evaluate needs at least 3 samples, got {self.n}: call fit with more")

        n_candidates = self.N - 1 if exclude_self else self.N
        per_target = n_candidates if top_k is None else min(top_k, n_candidates)
        parts: list[dict[str, np.ndarray]] = []
        family = np.empty(0 if top_k is None else self.N * n_candidates)  # every p-value, NaN for no test
        filled = 0
        for targets, parents in self._blocks(score):
            r = partial_correlation(self._seen, targets, parents, ridge, self._eps)  # (P, N, T)
            counts = (parents >= 0).sum(1)
            r[:, :, self.n - 3 - counts <= 0] = torch.nan  # saturated: any source would fit
            best = aggregate(r, layer_agg).cpu().numpy()  # (N, T)
            n_cond = counts.cpu().numpy()
            p = fisher_p(best, self.n, n_cond)
            target = targets.cpu().numpy()
            if top_k is None:
                source = np.broadcast_to(np.arange(per_target)[:, None], (per_target, len(target)))
                source = source + (exclude_self & (source >= target))  # skips the target itself
            else:
                pairs = np.ones(p.shape, dtype=bool)
                pairs[target, np.arange(len(target))] = not exclude_self
                source = best_rows(best, per_target, pairs)
                tested = p[pairs]
                family[filled : filled + len(tested)] = tested
                filled += len(tested)
            part = {
                "source": source,
                "target": np.broadcast_to(target, source.shape),
                "corr": np.take_along_axis(best, source, 0),
            }
            if score == "partial":
                part["n_cond"] = np.broadcast_to(n_cond, source.shape)
            for pair, values in enumerate(r.cpu().numpy()):
                part[f"corr_a{pair}_g{pair + 1}"] = np.take_along_axis(values, source, 0)
            part["p_value"] = np.take_along_axis(p, source, 0)
            parts.append({name: values.ravel() for name, values in part.items()})
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns["q_value"] = benjamini_hochberg(columns["p_value"], None if top_k is None else family)
        return edge_table(self.kept, columns.pop("source"), columns.pop("target"), "corr", columns)

    def _blocks(self, score: MagnitudeScore) -> Iterator[tuple[Tensor, Tensor]]:
        """Targets (T,) and what they are conditioned on (T, k), in blocks that bound temporary arrays.

        Those that are conditioned on fewer have -1 at the end.
        """
        assert self._seen is not None
        device = self._seen.mean_x.device
        given = self.parents_by_target if score == "partial" else {}
        counts = np.array([len(given.get(j, ())) for j in range(self.N)])
        step = max(1, _BLOCK_ELEMENTS[score] // (self.N * self.n_pairs))
        for some in (np.flatnonzero(counts == 0), np.flatnonzero(counts)):
            # Of similar numbers, as the fewer are filled up.
            some = some[np.argsort(counts[some], kind="stable")]
            for start in range(0, len(some), step):
                block = some[start : start + step]
                parents = np.full((len(block), counts[block].max()), -1)
                for row, j in zip(parents, block.tolist(), strict=True):
                    row[: counts[j]] = given.get(j, ())
                yield torch.from_numpy(block).to(device), torch.from_numpy(parents).to(device)

    def evaluate_against(
        self,
        positive_edges: Iterable[Any],
        *,
        top_k: Iterable[int] = (1, 3, 5),
        filtered: bool = False,
        layer_agg: LayerAgg = "mean",
        score: MagnitudeScore = "corr",
        ridge: float = 1e-8,
    ) -> dict[str, Any]:
        """How well the table finds `positive_edges`, (source name, target name) pairs missing from the graph.

        Returns what :func:`gsnn.optim.edge_table.judge_scores` does; `layer_agg`, `score`, `ridge` as in
        `evaluate`.
        """
        pairs, ks = check_missing(positive_edges, self.kept), check_top_k(top_k)
        res = self.evaluate(layer_agg=layer_agg, score=score, ridge=ridge)
        return judge(res, self.kept, pairs, "corr", ks, filtered)

    @staticmethod
    def evaluate_target_ranking(
        res: pd.DataFrame,
        positive_edges: Iterable[Any],
        score_col: str = "corr",
        top_k: Iterable[int] = (1, 3, 5),
        filtered: bool = False,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Rank of each positive edge's source among all sources of its target: (detail, summary).

        See :func:`gsnn.optim.edge_table.rank_in_targets`.
        """
        return rank_in_targets(res, positive_edges, score_col, top_k, filtered)
