"""Missing edges mined from a fitted inferer's table, their weights as a graph, and scores joined with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gsnn.optim.edge_table import KeptEdges, Pair
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.magnitudes import MagnitudeScore
from gsnn.stats.moments import LayerAgg
from gsnn.stats.significance import benjamini_hochberg

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Which positives an embedding learns.
Edges = Literal["joint", "inferred", "true"]
EDGES: tuple[Edges, ...] = get_args(Edges)
Strategy = Literal["fdr", "topk_per_target"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def mask_of(kept: KeptEdges, pairs: Iterable[Pair]) -> Mask:
    """(N, N) bool, True at [source, target] of each of `pairs`."""
    number = {name: k for k, name in enumerate(kept.names)}
    mask = np.zeros_like(kept.mask)
    for source, target in pairs:
        mask[number[source], number[target]] = True
    return mask


@dataclass(frozen=True)
class MinedEdges:
    """What an inferer's table says of each pair, and which missing edges were taken from it.

    Attributes:
        columns: `corr, [n_cond], corr_a{p}_g{p+1}..., p_value` -> (N, N), at [source, target].
        found: (N, N) bool, True at the mined edges.
    """

    columns: dict[str, NDArray[Any]]
    found: Mask

    @classmethod
    def of(
        cls,
        mei: MagnitudeEdgeInferer,
        score: MagnitudeScore,
        layer_agg: LayerAgg,
        strategy: Strategy,
        fdr_alpha: float,
        top_k: int,
        excluded: Mask,
    ) -> MinedEdges:
        """Mine the pairs that are neither kept, nor self, nor `excluded`, and have a correlation.

        'fdr' takes those with q <= `fdr_alpha` in the table of all pairs i != j, 'topk_per_target' the
        `top_k` best sources of each target.
        """
        table = mei.evaluate(layer_agg=layer_agg, score=score, exclude_self=False)
        place = (table["src_idx"].to_numpy(), table["dst_idx"].to_numpy())
        columns: dict[str, NDArray[Any]] = {}
        for name in table.columns.drop(["src_func", "dst_func", "src_idx", "dst_idx", "has_edge", "q_value"]):
            values = table[name].to_numpy()
            columns[name] = np.empty((mei.N, mei.N), dtype=values.dtype)
            columns[name][place] = values
        corr = columns["corr"]
        proper = ~np.eye(mei.N, dtype=bool)
        missing = proper & ~(mei.kept.mask | excluded | np.isnan(corr))
        if strategy == "fdr":
            q = np.full(corr.shape, np.nan)
            q[proper] = benjamini_hochberg(columns["p_value"][proper])
            return cls(columns, missing & (q <= fdr_alpha))
        best = np.argsort(np.where(missing, -corr, np.inf), axis=0, kind="stable")[:top_k]
        found = np.zeros_like(missing)
        np.put_along_axis(found, best, True, axis=0)
        return cls(columns, found & missing)

    def walk_weight(self, kept: Mask, weighted: bool, alpha: float, kept_weight: float | None) -> Array:
        """(N, N) weight of each edge if it is walked.

        A mined edge weighs max(corr, 0) ** alpha, or 1 if not `weighted`; a kept one at least
        `kept_weight`, by default as much as the heaviest mined edge (1 without any); all others
        `kept_weight`.
        """
        corr = self.columns["corr"]
        strength = np.nan_to_num(corr).clip(min=0.0) ** alpha if weighted else np.ones_like(corr)
        if kept_weight is None:
            kept_weight = float(strength[self.found].max(initial=0.0)) or 1.0
        return np.where(self.found, strength, np.maximum(strength * kept, kept_weight))

    def fused(self, structure: Array, weight: float) -> Array:
        """(N, N): z(mean correlation over layer pairs) + weight * z(sigmoid(structure)).

        Each z is over the pairs i != j. Pairs without a correlation get 0 for it, the average.
        """
        layers = np.stack([values for name, values in self.columns.items() if name.startswith("corr_a")])
        present = (~np.isnan(layers)).sum(0)
        mean = np.full(structure.shape, np.nan)
        np.divide(np.nansum(layers, axis=0), present, out=mean, where=present > 0)
        return np.nan_to_num(_standardized(mean)) + weight * _standardized(expit(structure))


def _standardized(values: Array) -> Array:
    """(N, N) in standard deviations from the mean of the pairs i != j; all 0 if these are constant."""
    off = values[~np.eye(len(values), dtype=bool) & ~np.isnan(values)]
    spread = off.std() if off.size else 0.0
    return (values - off.mean()) / spread if spread > 0 else np.zeros_like(values)
