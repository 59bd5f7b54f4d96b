"""Missing function -> function edges from the first-order effect that they would have on the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsnn._checks import one_of, whole
from gsnn.optim._screen import Screen, best_pairs
from gsnn.optim.batch_scale import Crit
from gsnn.optim.edge_table import check_top_k
from gsnn.optim.first_order import FirstOrderInferer, Score, check_score
from gsnn.optim.gradient_pass import Batch
from gsnn.stats.moments import LayerAgg

if TYPE_CHECKING:
    import pandas as pd


class FirstOrderEdgeInferer(FirstOrderInferer):
    """Scores every pair i -> j by how steeply a new edge between them would lower the loss.

    With h_i^p the activation that `lin_out` reads and g_j^(p+1) the gradient of a sample's loss, the effect
    of a new edge's weights W (C, C) is tr(M_ij' W), M_ij = E[h_i^p g_j^(p+1)'], to first order. Its largest
    singular value is the steepest decrease by weights of rank one, which is what one edge has.

    Args:
        model: a trained GSNN, or any module with the same captures.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        curvature: as in :class:`gsnn.optim.first_order.FirstOrderInferer`.

    Attributes:
        n: samples seen since the statistics were last reset.
        N, L, n_pairs: function nodes, layers, layer pairs P.
        function_nodes: the N names.
        edges: set of (source name, target name), the kept function -> function edges.
        parents_by_target: index of each target -> sorted list of the indices of its kept sources, S_j.

    Raises:
        TypeError, ValueError: what `LayerCaptures` and the graph refuse.

    Memory: 16 P (N C)^2 bytes, where the model is: for networks of some hundred nodes. For larger ones there
    is :meth:`best`, which needs no `fit`. Source of GSNN: Evans et al. 2024, doi 10.1101/2024.02.28.582164.
    """

    @property
    def n_pairs(self) -> int:
        """P."""
        return self.L - 1

    @property
    def places(self) -> list[str]:
        """`a0_g1` for an edge that reads the activation of block 0 and feeds block 1, and so on."""
        return [f"a{pair}_g{pair + 1}" for pair in range(self.n_pairs)]

    def _contributions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        gradients = batch.gradients(self._captures.pre_norms()[1:])
        h, g = self._nodes(self._captures.activations()[:-1]), self._nodes(gradients)
        batch.check_finite(h, "activation", "function node", self.function_nodes, 0)
        batch.check_finite(g, "gradient", "function node", self.function_nodes, 1)
        return h, g

    def evaluate(
        self,
        layer_agg: LayerAgg = "mean",
        exclude_self: bool = True,
        score: Score = "omp",
        ridge: float = 0.05,
    ) -> pd.DataFrame:
        """Score every ordered pair of function nodes.

        Args:
            layer_agg: aggregation over the P layer pairs, 'mean' or 'max'.
            exclude_self: leave out i -> i.
            score: the largest singular value of M_ij where h_i is 'gradient': as it is; 'whitened': centred
                and whitened; 'omp': centred, whitened and projected off the kept parents of j, which is the
                first step of orthogonal matching pursuit (kept edges have no score then).
            ridge: of that projection, against a variance of 1.

        Returns:
            DataFrame by descending `score`, NaN last, ties by index, with `src_func, dst_func, src_idx,
            dst_idx, score, has_edge, n_cond, sv_a{p}_g{p+1} for each pair, p_value, q_value`. `n_cond` is the
            number of parents projected off. `p_value` is of the score test of E[h_i g_j'] = 0, of what is
            left of both; smallest of the pairs times P. It asks whether the network is stationary, which one
            trained for a finite time never is: see :func:`gsnn.optim.verify.verify` for a test of what an
            edge is worth. In one that is, p is uniform for one pair and many samples, and too large for few
            or for several pairs.

        Raises:
            RuntimeError: before `fit`.
            ValueError: an option out of its range.
        """
        return self._table(layer_agg, exclude_self, score, ridge)

    def best(
        self,
        dataloader: Iterable[Any],
        top_k: int = 50,
        *,
        looked_at: int | None = None,
        layer_agg: LayerAgg = "mean",
        exclude_self: bool = True,
        score: Score = "omp",
        ridge: float = 0.05,
        memory: int = 3 * 2**30,
        crit: Crit | None = None,
        device: torch.device | str | None = None,
        verbose: bool = True,
    ) -> pd.DataFrame:
        """The best sources of every target, without the moments of all pairs that `fit` keeps.

        All pairs are screened by what the main directions of g_j have in common with those of h_i; of each
        target the `looked_at` best ones are then scored as `evaluate` scores them. A pair that is shown has
        the score that `evaluate` gives it; one that the screen misses is not shown.

        Args:
            dataloader: yields (x, y), as for `fit`. The data are gone through several times, so no iterator:
                as often as the samples of all layer pairs exceed `memory`, twice less one.
            top_k: rows for each target, where there are as many.
            looked_at: pairs of each target that are scored exactly, at least `top_k`; 2 `top_k` by default.
                N is as good as no screen.
            layer_agg: as in `evaluate`.
            exclude_self: as in `evaluate`.
            score: as in `evaluate`.
            ridge: as in `evaluate`.
            memory: bytes for the samples of a pass, 2 n N C numbers in the model's precision for each layer
                pair and one at least; 3 GiB by default. N^2 numbers in single precision come on top.
            crit: as for `fit`.
            device: as for `fit`.
            verbose: show progress.

        Returns:
            A table as of `evaluate`, of the pairs that are shown; `p_value` and `q_value` are NaN, as nothing
            is tested.

        Raises:
            TypeError, ValueError: as for `fit`; an iterator as dataloader, an option out of its range, an
                inferer made with `curvature`, which the screen does not know.
        """
        if self.curvature:
            raise ValueError("curvature must be False for best(), which does not know it, got True")
        one_of("layer_agg", layer_agg, ("mean", "max"))
        check_score(score, ridge)
        (top_k,) = check_top_k((top_k,))
        looked_at = 2 * top_k if looked_at is None else whole("looked_at", looked_at)
        if looked_at < top_k:
            raise ValueError(f"looked_at must be at least top_k, {top_k}, got {looked_at}")
        screen = Screen(top_k, looked_at, score, layer_agg, exclude_self, ridge, whole("memory", memory))
        return best_pairs(self, dataloader, screen, crit, device, verbose)
