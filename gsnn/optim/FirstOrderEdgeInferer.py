"""Missing function -> function edges from the first-order effect that they would have on the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnn._modes import evaluation_mode
from gsnn._progress import progress
from gsnn.optim.batch_scale import BatchScale, Crit
from gsnn.optim.candidates import pair_weights
from gsnn.optim.edge_table import (
    KeptEdges,
    all_pairs,
    check_missing,
    check_top_k,
    edge_table,
    judge,
    rank_in_targets,
)
from gsnn.optim.layer_captures import LayerCaptures
from gsnn.stats.moments import aggregate
from gsnn.stats.pursuit import GroupMoments, Pursuit, largest
from gsnn.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("omp", "whitened", "gradient")


class FirstOrderEdgeInferer:
    """Scores every pair i -> j by how steeply a new edge between them would lower the loss.

    With h_i^p the activation that `lin_out` reads and g_j^(p+1) the gradient of a sample's loss, the effect
    of a new edge's weights W (C, C) is tr(M_ij' W), M_ij = E[h_i^p g_j^(p+1)'], to first order. Its largest
    singular value is the steepest decrease by weights of rank one, which is what one edge has.

    Parameters
    ----------
    model : a trained GSNN, or any module with the same captures
    data : the graph it was built from (HeteroGraph or anything with the same two dictionaries)

    Attributes
    ----------
    n : samples seen since the statistics were last reset
    N, L, n_pairs : function nodes, layers, layer pairs P
    function_nodes : the N names
    edges : set of (source name, target name), the kept function -> function edges
    parents_by_target : index of each target -> sorted list of the indices of its kept sources, S_j

    Raises
    ------
    TypeError, ValueError : what `LayerCaptures` and the graph refuse

    Memory: 16 P (N C)^2 bytes, where the model is: for networks of some hundred nodes. Source of GSNN: Evans
    et al. 2024, doi 10.1101/2024.02.28.582164.
    """

    def __init__(self, model: nn.Module, data: Any) -> None:
        self.kept = KeptEdges.of(data)
        self._captures = LayerCaptures(model, self.kept.names)
        self.model = model
        self.N = self._captures.N
        self.L = self._captures.L
        self.n_pairs = self.L - 1
        self.function_nodes = self.kept.names
        self.edges = self.kept.edges
        self.parents_by_target = self.kept.parents
        self.reset_stats()

    @property
    def n(self) -> int:
        """Samples seen since the statistics were last reset."""
        return 0 if self._seen is None else self._seen.n

    def reset_stats(self) -> None:
        """Forget every sample seen."""
        self._seen: GroupMoments | None = None

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

        Parameters
        ----------
        dataloader : yields (x, y), x (B, N_in) and y (B, N_out) in the units that the model was trained in;
            after `gsnn.fit(..., standardize=True)` give a `RowDataset`. NaN in y is a missing measurement.
        crit : loss crit(yhat, y) -> scalar, a mean or a sum over samples; by default the squared error
        device : where to run; by default where the model is. The model returns from it afterwards.
        verbose : show a progress bar

        Returns
        -------
        Number of samples counted.

        Raises
        ------
        TypeError, ValueError : a batch is no (x, y) pair, the loss is neither a mean nor a sum over samples,
            an activation or gradient is not finite, or there was no sample
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
        home = next(self.model.parameters()).device
        away = home if device is None else torch.device(device)
        scale_of = BatchScale(crit)
        seen: GroupMoments | None = None
        with ExitStack() as stack:
            if away != home:
                stack.callback(self.model.to, home)
                self.model.to(away)
            stack.enter_context(evaluation_mode(self.model))
            stack.enter_context(self._captures.recording())
            stack.enter_context(torch.enable_grad())
            for number, batch in enumerate(progress(dataloader, "samples", verbose)):
                h, g = self._channels(batch, scale_of, number)
                if seen is None:
                    seen = GroupMoments(len(h), self.N, h.shape[3], h.device)
                seen.add(h, g)
        if seen is None or seen.n == 0:
            raise ValueError("dataloader must yield at least one sample with a measured output, got none")
        return seen

    def _channels(self, batch: Any, scale_of: BatchScale, number: int) -> tuple[Tensor, Tensor]:
        """h^p and g^(p+1) of one batch, both (P, B, N, C) in float64."""
        parts = tuple(batch)[:2] if isinstance(batch, (tuple, list)) else ()
        if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(f"dataloader must yield (x, y) pairs of tensors, got a {type(batch).__name__}")
        inputs, target = (part.to(next(self.model.parameters())) for part in parts)
        prediction = self.model(inputs.detach().requires_grad_())
        loss, keep, scale = scale_of(prediction, target)
        needed = self._captures.tensors()[1:]
        if not loss.requires_grad:
            raise ValueError("crit must return a loss that depends on the model's output, got one without")
        grads = torch.autograd.grad(loss, needed, allow_unused=True)
        after = self._captures.activations()[:-1]
        h = torch.stack([self._captures.by_node(t.detach()).double() for t in after])
        g = torch.stack(
            [
                self._captures.by_node(torch.zeros_like(t) if d is None else d).double()
                for d, t in zip(grads, needed, strict=True)
            ]
        )
        for values, kind, first_layer in ((h, "activation", 0), (g, "gradient", 1)):
            if not bool(values.isfinite().all()):
                pair, _, node, _ = (~values.isfinite()).nonzero()[0].tolist()
                raise ValueError(
                    f"the {kind} of function node {self.function_nodes[node]!r} in block "
                    f"{pair + first_layer} is not finite (batch {number}): check the data and the loss for "
                    "NaN and infinity"
                )
        if keep is not None:
            h, g = h[:, keep], g[:, keep]
        return h, g * scale

    def effects(self) -> Tensor:
        """M (P, N, N, C, C), float64: M[p, i, j] = E[h_i^p g_j^(p+1)'].

        RuntimeError before `fit`.
        """
        return self._moments().effects()

    def _moments(self) -> GroupMoments:
        if self._seen is None:
            raise RuntimeError("nothing to evaluate yet: call fit(dataloader) first")
        return self._seen

    def evaluate(
        self, layer_agg: str = "mean", exclude_self: bool = True, score: str = "omp", ridge: float = 0.05
    ) -> pd.DataFrame:
        """Score every ordered pair of function nodes.

        Parameters
        ----------
        layer_agg : aggregation over the P layer pairs, 'mean' or 'max'
        exclude_self : leave out i -> i
        score : the largest singular value of M_ij where h_i is 'gradient': as it is; 'whitened': centred and
            whitened; 'omp': centred, whitened and projected off the kept parents of j, which is the first
            step of orthogonal matching pursuit (kept edges have no score then)
        ridge : of that projection, against a variance of 1

        Returns
        -------
        DataFrame by descending `score`, NaN last, ties by index: `src_func, dst_func, src_idx, dst_idx,
        score, has_edge, n_cond, sv_a{p}_g{p+1} for each pair, p_value, q_value`. `n_cond` is the number of
        parents projected off. `p_value` is of the score test of E[h_i g_j'] = 0, of what is left of both;
        smallest of the pairs times P. It asks whether the network is stationary, which one trained for a
        finite time never is: see :func:`gsnn.optim.verify.verify` for a test of what an edge is worth.

        Raises
        ------
        RuntimeError : before `fit`. ValueError : an option out of its range.
        """
        if layer_agg not in ("mean", "max"):
            raise ValueError(f"layer_agg must be 'mean' or 'max', got {layer_agg!r}")
        _check_score(score, ridge)
        moments = self._moments()
        pursuit = Pursuit(moments, ridge)
        pairs = torch.empty(self.n_pairs, self.N, self.N, dtype=torch.float64)
        p = np.empty((self.N, self.N))
        n_cond = np.zeros((self.N, self.N), dtype=np.int64)
        plain = largest(self.effects()).cpu() if score == "gradient" else None
        for j, parents in self.parents_by_target.items():
            given = parents if score == "omp" else []
            pairs[:, :, j] = pursuit.scores(j, given).cpu() if plain is None else plain[:, :, j]
            p[:, j] = pursuit.p_values(j, given)
            pairs[:, given, j], p[given, j] = torch.nan, np.nan
            n_cond[:, j] = len(given)
        best = aggregate(pairs, layer_agg).numpy()
        source, target = all_pairs(self.N, exclude_self)
        columns: dict[str, NDArray[Any]] = {"score": best[source, target], "n_cond": n_cond[source, target]}
        for pair, values in enumerate(pairs.numpy()):
            columns[f"sv_a{pair}_g{pair + 1}"] = values[source, target]
        columns["p_value"] = p[source, target]
        columns["q_value"] = benjamini_hochberg(columns["p_value"])
        return edge_table(self.kept, source, target, "score", columns)

    def greedy(
        self,
        k: int,
        *,
        score: str = "omp",
        ridge: float = 0.05,
        candidates: Any = None,
        priors: Any = None,
        one_per_target: bool = False,
    ) -> pd.DataFrame:
        """The next `k` edges to add, best first.

        With `score='omp'` every chosen source is projected off what its target may still take, so that the
        next edge brings something else; the other scores rank pairs one by one.

        Parameters
        ----------
        k : a positive int; fewer rows come back where there are fewer candidates
        score, ridge : as in `evaluate`, means over layer pairs
        candidates : the (source, target) name pairs to choose from, or a table with columns `source` and
            `target` (or `src_func`, `dst_func`); all missing pairs by default. Pairs that the graph has, or
            that name other nodes than its function nodes, are passed over.
        priors : (source, target) -> weight, or a table with a column `weight` too: scores are multiplied by
            it, 1 for pairs without one. A weight of 0 excludes the pair.
        one_per_target : a target gets another edge only once every other has as many

        Returns
        -------
        DataFrame `order` (from 1), `src_func`, `dst_func`, `score`.

        Raises
        ------
        RuntimeError : before `fit`. TypeError, ValueError : `k`, `candidates` or `priors` are not what is
            described above, or no candidate is left.
        """
        import pandas as pd

        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k must be a positive int, got {k!r}")
        _check_score(score, ridge)
        weight = pair_weights(self.kept, candidates, priors)
        moments = self._moments()
        pursuit = Pursuit(moments, ridge)
        plain = largest(self.effects()).mean(0).cpu().numpy() if score == "gradient" else None
        open_ = weight > 0
        given = {j: list(parents) for j, parents in self.parents_by_target.items()}
        values = np.full((self.N, self.N), -np.inf)

        def refresh(j: int) -> None:
            if plain is not None:
                column = plain[:, j]
            else:
                column = pursuit.scores(j, given[j] if score == "omp" else []).mean(0).cpu().numpy()
            values[:, j] = np.where(open_[:, j], column * weight[:, j], -np.inf)

        for j in np.flatnonzero(open_.any(0)).tolist():
            refresh(j)
        taken = np.zeros(self.N, dtype=np.int64)
        rows: list[tuple[int, str, str, float]] = []
        while len(rows) < k and open_.any():
            allowed = values
            if one_per_target:
                level = taken[open_.any(0)].min()
                allowed = np.where(taken[None, :] == level, values, -np.inf)
            i, j = divmod(int(np.argmax(allowed)), self.N)
            rows.append((len(rows) + 1, self.function_nodes[i], self.function_nodes[j], float(values[i, j])))
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
        layer_agg: str = "mean",
        score: str = "omp",
        ridge: float = 0.05,
    ) -> dict[str, Any]:
        """How well the table finds `positive_edges`, (source name, target name) pairs missing from the graph.

        Returns what :func:`gsnn.optim.edge_table.judge` does; `layer_agg`, `score`, `ridge` as in `evaluate`.
        """
        pairs = check_missing(positive_edges, self.kept)
        ks = check_top_k(top_k)
        return judge(self.evaluate(layer_agg, True, score, ridge), self.kept, pairs, "score", ks, filtered)

    @staticmethod
    def evaluate_target_ranking(
        res: pd.DataFrame,
        positive_edges: Iterable[Any],
        score_col: str = "score",
        top_k: Iterable[int] = (1, 3, 5),
        filtered: bool = False,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Rank of each positive edge's source among all sources of its target: (detail, summary).

        See :func:`gsnn.optim.edge_table.rank_in_targets`.
        """
        return rank_in_targets(res, positive_edges, score_col, top_k, filtered)


def _check_score(score: str, ridge: float) -> None:
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be a positive number, got {ridge!r}")
