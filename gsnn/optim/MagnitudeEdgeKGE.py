"""Missing function -> function edges by link prediction over the kept and the mined ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gsnn._checks import non_negative, one_of, whole, within
from gsnn._checks import positive as check_positive
from gsnn._memory import memory_advice
from gsnn._progress import ProgressBar
from gsnn.optim.edge_table import (
    Pair,
    all_pairs,
    check_missing,
    check_top_k,
    edge_table,
    judge,
    rank_in_targets,
)
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.mining import EDGES, STRATEGIES, Edges, MagnitudeScore, MinedEdges, Strategy, mask_of
from gsnn.optim.skip_gram import NO_CONTEXT, train_epoch
from gsnn.optim.walks import Transitions, random_walks, window_pairs
from gsnn.stats.moments import LayerAgg
from gsnn.stats.ranking import auc
from gsnn.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

_INIT_SD = 0.1  # of an embedding before training: scores start near 0, where no pair is ruled out


class MagnitudeEdgeKGE(nn.Module):
    """Embeds function nodes so that what follows in random walks over kept and mined edges scores high.

    The kept edges of the graph and those that a fitted `MagnitudeEdgeInferer` finds are joined into one
    weighted graph. Every epoch draws new walks on it, p = q = 1 of node2vec (Grover & Leskovec 2016), and
    trains by skip-gram with negative sampling (Mikolov et al. 2013): a node (centre) is to score higher with
    what is at most `window_size` steps from it (contexts) than with `n_negatives` nodes drawn uniformly. At
    the optimum the score is log P(context | centre) plus a constant (Levy & Goldberg 2014), so it keeps the
    continuous strength of the mined edges that set the steps' probabilities, and also says something of pairs
    that were not mined, by the company they share. The noise is uniform, not by frequency: a node that many
    point to is more likely to be pointed to by another.

    Which mode. The symmetric one (`directed=False`, one table, score(i, j) = <e_i, e_j>) is the published
    one; it cannot tell i -> j from j -> i. For missing edges take `directed=True, walk_undirected=False,
    window_size=2`: half of `embedding_dim` is for a node as source and half as target, contexts follow the
    direction of the edges, and score(i, j) = <source_i, target_j>. Both have N * embedding_dim parameters.
    `evaluate(fuse=...)` adds the correlations themselves.

    Hold edges out honestly. Every pair that is not walked may be drawn as a negative. Putting exactly the
    held-out edges into `exclude_edges` uses their labels: they alone are then neither mined nor negative,
    and their scores say nothing of what would have been found. Exclude nothing, or exclude the held-out
    edges together with many random missing pairs (ten for one) and score within that set only.

    Args:
        mei: a fitted `MagnitudeEdgeInferer`; its scores are read once, here.
        embedding_dim: numbers per node, even for `directed`.
        score, layer_agg: of the mined scores, as in `mei.evaluate`.
        mining_strategy: 'fdr' takes the missing edges with q <= `fdr_alpha` (q is too small for 'max'),
            'topk_per_target' the best `top_k_per_target` missing sources of each target.
        exclude_edges: (source name, target name) pairs, missing from the graph, that are unknown: not mined,
            no context and no negative (in symmetric mode in neither direction).
        walks_per_node, walk_length: walks from each node in each epoch, and nodes in a walk.
        window_size: largest number of steps between centre and context.
        n_negatives: nodes drawn for each context.
        walk_undirected: walk each edge in both directions. With `directed`, steps against an edge still give
            contexts in the edge's direction, and paths that change direction give none.
        walk_corr_weighted, walk_alpha: weight of a mined edge in the walks: max(corr, 0) ** walk_alpha, or 1.
        kept_edge_weight: a kept edge weighs at least this, by default as much as the heaviest mined one (1 if
            nothing was mined).
        lr, weight_decay: of AdamW; with few nodes a strong decay (1 to 2) smooths and scores better.
        directed: see above.
        edges: what is walked: 'joint', 'inferred' only or 'true' (kept) only.

    Attributes:
        true_heads, true_tails: (E,) int64, sources and targets of the kept edges.
        inferred_heads, inferred_tails: the same of the mined edges.
        pos_heads, pos_tails: the edges that are walked. To walk others, assign these and call
            `_build_adjacency()`; edges that are neither kept nor mined then weigh like kept ones.
        pos_mask: (N, N) bool, True at [source, target] of each of them.
        N: function nodes.

    Raises:
        TypeError, ValueError: an argument out of its range, or nothing to walk.
        RuntimeError: `mei` is unfitted.
    """

    def __init__(
        self,
        mei: MagnitudeEdgeInferer,
        *,
        embedding_dim: int = 64,
        score: MagnitudeScore = "corr",
        layer_agg: LayerAgg = "max",
        mining_strategy: Strategy = "fdr",
        fdr_alpha: float = 0.05,
        top_k_per_target: int = 5,
        exclude_edges: Iterable[Any] = (),
        walks_per_node: int = 20,
        walk_length: int = 10,
        window_size: int = 5,
        n_negatives: int = 5,
        walk_undirected: bool = True,
        walk_corr_weighted: bool = True,
        walk_alpha: float = 1.0,
        kept_edge_weight: float | None = None,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        directed: bool = False,
        edges: Edges = "joint",
    ) -> None:
        super().__init__()
        if not isinstance(mei, MagnitudeEdgeInferer):
            raise TypeError(f"mei must be a MagnitudeEdgeInferer, got {type(mei).__name__}")
        embedding_dim = whole("embedding_dim", embedding_dim)
        walks_per_node = whole("walks_per_node", walks_per_node)
        window_size = whole("window_size", window_size)
        n_negatives = whole("n_negatives", n_negatives)
        walk_length = whole("walk_length", walk_length, at_least=2)
        if directed and embedding_dim % 2:
            raise ValueError(
                "embedding_dim must be even with directed=True, half of it is for sources and half for "
                f"targets; got {embedding_dim}"
            )
        one_of("mining_strategy", mining_strategy, STRATEGIES)
        one_of("edges", edges, EDGES)
        if mining_strategy == "topk_per_target":  # an option counts only where it is used
            top_k_per_target = whole("top_k_per_target", top_k_per_target)
        else:
            within("fdr_alpha", fdr_alpha, "(0, 1]")
        check_positive("lr", lr)
        non_negative("weight_decay", weight_decay)
        if walk_corr_weighted:
            non_negative("walk_alpha", walk_alpha)
        if kept_edge_weight is not None:
            check_positive("kept_edge_weight", kept_edge_weight)

        self.kept = mei.kept
        self.N = mei.N
        self.walks_per_node, self.walk_length = walks_per_node, walk_length
        self.window_size, self.n_negatives = window_size, n_negatives
        self.walk_undirected, self.directed = walk_undirected, directed
        self.lr, self.weight_decay = lr, weight_decay
        if isinstance(exclude_edges, Iterable) and not isinstance(exclude_edges, str):
            exclude_edges = list(exclude_edges)
        excluded = [] if exclude_edges == [] else check_missing(exclude_edges, self.kept, "exclude_edges")
        self._excluded = frozenset(excluded)
        unknown = mask_of(self.kept, excluded)
        self._mined = MinedEdges.of(
            mei, score, layer_agg, mining_strategy, fdr_alpha, top_k_per_target, unknown
        )
        self._weight = self._mined.walk_weight(
            self.kept.mask, walk_corr_weighted, walk_alpha, kept_edge_weight
        )
        # Pairs that are no candidates, as context or as negative: unknown ones and self.
        self._unknown = unknown | np.eye(self.N, dtype=bool)
        if not directed:
            self._unknown |= self._unknown.T

        self.true_heads, self.true_tails = (torch.from_numpy(part.copy()) for part in self.kept.index)
        self.inferred_heads, self.inferred_tails = (
            torch.from_numpy(part) for part in np.nonzero(self._mined.found)
        )
        parts = {
            "joint": (self.true_heads, self.true_tails, self.inferred_heads, self.inferred_tails),
            "true": (self.true_heads, self.true_tails),
            "inferred": (self.inferred_heads, self.inferred_tails),
        }[edges]
        self.pos_heads, self.pos_tails = torch.cat(parts[::2]), torch.cat(parts[1::2])
        self.pos_mask = torch.zeros(self.N, self.N, dtype=torch.bool)
        self.pos_mask[self.pos_heads, self.pos_tails] = True
        self._build_adjacency()

        self.embedding = nn.Parameter(torch.zeros(self.N, embedding_dim))
        self.fitted: Tensor  # travels with the embedding in the state_dict
        self.register_buffer("fitted", torch.tensor(False))
        self._best: Tensor | None = None

    def _build_adjacency(self) -> None:
        """Make the walks follow exactly the edges `pos_heads` -> `pos_tails`."""
        heads, tails = (torch.as_tensor(part).cpu().numpy() for part in (self.pos_heads, self.pos_tails))
        weight = np.zeros((self.N, self.N))
        if heads.shape != tails.shape or heads.ndim != 1:
            raise ValueError(
                f"pos_heads and pos_tails must be of one shape (E,), got {heads.shape} and {tails.shape}"
            )
        if heads.size and not (min(heads.min(), tails.min()) >= 0 and max(heads.max(), tails.max()) < self.N):
            raise ValueError(f"pos_heads and pos_tails must be in [0, {self.N})")
        weight[heads, tails] = self._weight[heads, tails]
        if not weight.any():
            raise ValueError(
                f"pos_heads must hold at least one edge of positive weight, got {len(heads)} edges and none "
                "of them: mine more (a larger fdr_alpha, or mining_strategy='topk_per_target') or walk "
                "edges='joint'"
            )
        self._edge = weight > 0  # (N, N), which steps go along an edge
        if self.walk_undirected:
            weight = np.maximum(weight, weight.T)
        source, target = np.nonzero(weight)
        self._transitions = Transitions.of(source, target, weight[source, target], self.N)

    def fit(
        self,
        n_epochs: int = 100,
        batch_size: int = 2048,
        validation_edges: Iterable[Any] | None = None,
        verbose: bool = True,
        seed: int = 0,
    ) -> dict[str, list[float]]:
        """Train from a new random start; the same seed gives the same embedding.

        Args:
            n_epochs: each on newly drawn walks.
            batch_size: contexts per step; the step size falls linearly to 0 over the epochs.
            validation_edges: (source name, target name) pairs missing from the graph. They train nothing:
                after each epoch their AUC is taken as in `evaluate_against`, and the best state is kept.
            verbose: show progress with epoch, pairs, loss and validation AUC.
            seed: of this fit's own generator; global generators are neither read nor changed.

        Returns:
            A history with 'train_loss', the mean over the epoch's contexts, each with its negatives, and,
            given validation edges, 'val_auc'; one number per epoch each. The last state stays; `load_best`
            goes to the best.
        """
        n_epochs, batch_size = whole("n_epochs", n_epochs), whole("batch_size", batch_size)
        positive = None
        if validation_edges is not None:
            pairs = check_missing(validation_edges, self.kept, "validation_edges")
            self._warn_of_a_leak(pairs, "validation_edges")
            positive = mask_of(self.kept, pairs)
            pool = ~(self.kept.mask | np.eye(self.N, dtype=bool))
            if positive.sum() == pool.sum():
                raise ValueError("validation_edges must leave at least one missing pair, got them all")
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            start = rng.normal(scale=_INIT_SD, size=tuple(self.embedding.shape))
            self.embedding.copy_(torch.from_numpy(start))
        self._best = None
        optimizer = torch.optim.AdamW([self.embedding], lr=self.lr, weight_decay=self.weight_decay)
        history: dict[str, list[float]] = {"train_loss": []}
        if positive is not None:
            history["val_auc"] = []
        best = -math.inf
        with (
            torch.enable_grad(),
            closing(ProgressBar(n_epochs, "epochs", verbose, leave=False)) as bar,
        ):
            for epoch in range(n_epochs):
                optimizer.param_groups[0]["lr"] = self.lr * (1.0 - epoch / n_epochs)
                centre, context = self._pairs(rng)
                loss = train_epoch(
                    self._tables, centre, context, self._unknown, self.n_negatives, batch_size, optimizer, rng
                )
                history["train_loss"].append(loss)
                shown: dict[str, float] = {"pairs": len(centre), "loss": loss}
                if positive is not None:
                    scores = self._scores()
                    history["val_auc"].append(auc(scores[pool], positive[pool]))
                    shown["val_auc"] = history["val_auc"][-1]
                    if history["val_auc"][-1] > best:
                        best = history["val_auc"][-1]
                        self._best = self.embedding.detach().clone()
                bar.update(**shown)
        self.embedding.grad = None
        self.fitted.fill_(True)
        return history

    def _warn_of_a_leak(self, pairs: list[Pair], argument: str) -> None:
        """Edges that were excluded are neither learnt nor drawn as negatives, and stand out by that alone."""
        if self._excluded.issuperset(pairs):
            warnings.warn(
                f"all {len(pairs)} {argument} are exclude_edges: they alone were never negatives, which sets "
                "them apart, true or not, so the figures mean nothing. Exclude none, or exclude ten times as "
                "many random missing pairs with them and rank within these",
                stacklevel=3,
            )

    def _pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Centres and contexts of one epoch's walks, in random order.

        A node that no walk leaves still is a centre, as often as the others on average, of negatives alone:
        nothing follows it. Left untrained it would score about 0 with all, more than most pairs end with.
        """
        starts = np.repeat(np.arange(self.N, dtype=np.int32), self.walks_per_node)
        walks = random_walks(self._transitions, starts, self.walk_length - 1, rng)
        if self.directed and self.walk_undirected:
            here, there = walks[:, :-1], walks[:, 1:]  # -1 is read as the last node, and not used
            found = [window_pairs(walks, self.window_size, self._edge[here, there])]
            found.append(window_pairs(walks, self.window_size, self._edge[there, here])[::-1])
        else:
            found = [window_pairs(walks, self.window_size)]
            if not self.directed:
                found.append(found[0][::-1])
        centre, context = (np.concatenate(part) for part in zip(*found, strict=True))
        known = ~self._unknown[centre, context]
        centre, context = centre[known], context[known]
        never = np.bincount(centre, minlength=self.N) == 0
        share = max(1, len(centre) // max(1, self.N - int(never.sum())))
        alone = np.repeat(np.flatnonzero(never), share)
        centre = np.concatenate([centre, alone.astype(centre.dtype)])
        context = np.concatenate([context, np.full(len(alone), NO_CONTEXT, dtype=context.dtype)])
        order = rng.permutation(len(centre))
        return centre[order], context[order]

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Embeddings of nodes as centre or source, and as context or target."""
        if not self.directed:
            return self.embedding, self.embedding
        half = self.embedding.shape[1] // 2
        return self.embedding[:, :half], self.embedding[:, half:]

    def _scores(self) -> np.ndarray:
        source, target = (part.detach().double() for part in self._tables())
        return (source @ target.T).cpu().numpy()

    def load_best(self) -> None:
        """Go to the state of the best validation AUC of the last `fit`."""
        if self._best is None:
            raise RuntimeError("no best state to load: call fit(validation_edges=...) first")
        with torch.no_grad():
            self.embedding.copy_(self._best)

    @memory_advice("this scores all pairs of function nodes, FirstOrderEdgeInferer.best does not")
    def evaluate(self, exclude_self: bool = True, fuse: float | None = None) -> pd.DataFrame:
        """Score every ordered pair of function nodes.

        Args:
            exclude_self: leave out i -> i.
            fuse: None gives the embedding's score(i, j). A weight w >= 0 gives structure and magnitudes
                together: z(mean over layer pairs of the mined correlation) + w * z(sigmoid(score(i, j))),
                each standardized over all pairs i != j. The sigmoid is the probability that j is a context of
                i and no noise; without it the pairs that are ruled out most would set the scale. A pair
                without a correlation gets 0, the average, for it. 1 is a good start.

        Returns:
            DataFrame by descending `score`, ties by index, with `src_func, dst_func, src_idx, dst_idx, score,
            has_edge, [n_cond], corr_a{p}_g{p+1} for each pair, p_value, q_value`. All after `has_edge` is of
            the mined correlations, p too small for 'max': an embedding has no significance of its own.
        """
        if fuse is not None:
            non_negative("fuse", fuse)
        if not self.fitted:
            raise RuntimeError("nothing to evaluate yet: call fit() first")
        scores = self._scores()
        if fuse is not None:
            scores = self._mined.fused(scores, fuse)
        source, target = all_pairs(self.kept, exclude_self)
        columns = {"score": scores[source, target]}
        columns |= {name: v[source, target] for name, v in self._mined.columns.items() if name != "corr"}
        columns["q_value"] = benjamini_hochberg(columns["p_value"])
        return edge_table(self.kept, source, target, "score", columns)

    def evaluate_against(
        self,
        positive_edges: Iterable[Any],
        *,
        top_k: Iterable[int] = (1, 3, 5),
        filtered: bool = False,
        fuse: float | None = None,
    ) -> dict[str, Any]:
        """How well the table finds `positive_edges`, (source name, target name) pairs missing from the graph.

        Returns what :func:`gsnn.optim.edge_table.judge_scores` does; `fuse` as in `evaluate`. Warns
        (UserWarning) when all positives are `exclude_edges`, as they then stand out whether they are true or
        not; `fit` does the same for its validation edges.
        """
        pairs = check_missing(positive_edges, self.kept)
        self._warn_of_a_leak(pairs, "positive_edges")
        ks = check_top_k(top_k)
        return judge(self.evaluate(fuse=fuse), self.kept, pairs, "score", ks, filtered)

    evaluate_target_ranking = staticmethod(rank_in_targets)
