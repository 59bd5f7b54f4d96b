"""What all edge inferers share: the kept edges, the table of scored pairs, and how it is judged.

A table has one row per pair (source, target) that an edge could join, best score first, with columns
`src_func, dst_func, src_idx, dst_idx, <score>, has_edge, ..., p_value, q_value`. Mostly both are function
nodes; where the source is an input or the target an output, the columns have the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gsnn._checks import whole
from gsnn._text import some_names
from gsnn.graph.container import EDGE_TYPES, as_graph
from gsnn.graph.types import EdgeType
from gsnn.stats.ranking import auc, average_precision, hits, mrr, ranks

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[str, str]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class KeptEdges:
    """The edges of one type that a graph kept, and the nodes that they could join.

    Attributes:
        sources, targets: names of the S source and the T target nodes; function nodes both by default.
        kinds: their node types.
        index: (2, E) source and target of each kept edge.
        edges: the same as a set of name pairs.
        parents: index of each target -> sorted indices of its kept sources (its S_j).
    """

    sources: list[str]
    targets: list[str]
    kinds: Pair
    index: Index
    edges: set[Pair] = field(repr=False)
    parents: dict[int, list[int]] = field(repr=False)

    @classmethod
    def of(cls, data: Any, etype: EdgeType = EDGE_TYPES[0]) -> KeptEdges:
        """From a graph container."""
        graph = as_graph(data, warn=False)
        sources, targets = (list(graph.node_names_dict[kind]) for kind in (etype[0], etype[2]))
        index = graph.edge_index_dict[etype].cpu().numpy()
        parents: dict[int, list[int]] = {j: [] for j in range(len(targets))}
        for source, target in sorted(index.T.tolist()):
            parents[target].append(source)
        pairs = {(sources[i], targets[j]) for i, j in index.T.tolist()}
        return cls(sources, targets, (etype[0], etype[2]), index, pairs, parents)

    @property
    def names(self) -> list[str]:
        """The N function nodes, of edges between them."""
        return self.sources

    @property
    def shape(self) -> tuple[int, int]:
        """(S, T)."""
        return len(self.sources), len(self.targets)

    @cached_property
    def _codes(self) -> Index:
        """source * T + target of each kept edge, ascending."""
        return np.unique(self.index[0] * len(self.targets) + self.index[1])

    def holds(self, source: Index, target: Index) -> NDArray[np.bool_]:
        """Whether each pair is a kept edge, for (R,) indices; takes no S x T memory, unlike `mask`."""
        codes = source * len(self.targets) + target
        if not len(self._codes):
            return np.zeros(codes.shape, dtype=bool)
        at = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return self._codes[at] == codes

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(S, T) bool, True at [source, target] of each kept edge."""
        out = np.zeros(self.shape, dtype=bool)
        out[self.index[0], self.index[1]] = True
        return out

    @property
    def itself(self) -> NDArray[np.bool_]:
        """(S, T) bool, True where source and target are one node; nowhere for nodes of two types."""
        return np.eye(*self.shape, dtype=bool) & (self.kinds[0] == self.kinds[1])


def all_pairs(kept: KeptEdges, exclude_self: bool) -> tuple[Index, Index]:
    """Sources and targets of all pairs that an edge could join, source by source."""
    source, target = (part.ravel() for part in np.indices(kept.shape, dtype=np.int64))
    if exclude_self:
        keep = ~kept.itself.ravel()
        return source[keep], target[keep]
    return source, target


def edge_table(
    kept: KeptEdges, source: Index, target: Index, score_col: str, columns: Mapping[str, NDArray[Any]]
) -> pd.DataFrame:
    """The table of the pairs (`source`, `target`), in the order that every inferer returns.

    Rows come by descending score, NaN last, ties by source and then target index. `columns` maps column
    name -> (rows,) values and must hold `score_col`, which goes before `has_edge`; the others follow it.
    """
    import pandas as pd

    code = source * len(kept.targets) + target
    order = np.argsort(code) if np.any(code[1:] < code[:-1]) else np.arange(len(code))
    order = order[np.argsort(-columns[score_col][order], kind="stable")]
    has_edge = kept.holds(source, target)[order]  # before pairs are jumbled, they are found faster
    source, target = source[order], target[order]
    table = {
        # Taken from an array that pandas has made, or it would look at the type of every name again.
        "src_func": pd.Series(kept.sources).array.take(source),
        "dst_func": pd.Series(kept.targets).array.take(target),
        "src_idx": source,
        "dst_idx": target,
        score_col: columns[score_col][order],
        "has_edge": has_edge,
    }
    table.update({name: values[order] for name, values in columns.items() if name != score_col})
    return pd.DataFrame(table, copy=False)


def check_pairs(edges: Iterable[Any], argument: str = "positive_edges") -> list[Pair]:
    """`edges` as a list of at least one (source name, target name); an error where they are no pairs."""
    if isinstance(edges, (str, bytes)) or not isinstance(edges, Iterable):
        raise TypeError(f"{argument} must be (source, target) name pairs, got {edges!r}")
    pairs: list[Pair] = []
    for edge in edges:
        if isinstance(edge, str) or not isinstance(edge, Iterable) or len(tuple(edge)) != 2:
            raise TypeError(f"{argument} must be (source, target) name pairs, got the item {edge!r}")
        source, target = edge
        pairs.append((str(source), str(target)))
    if not pairs:
        raise ValueError(f"{argument} must hold at least one edge, got none")
    return pairs


def check_edges(edges: Iterable[Any], names: Iterable[str], argument: str = "positive_edges") -> list[Pair]:
    """`check_pairs`, each pair once; an error where one names an unknown node."""
    pairs = list(dict.fromkeys(check_pairs(edges, argument)))
    known = set(names)
    unknown = sorted({name for pair in pairs for name in pair} - known)
    if unknown:
        raise ValueError(
            f"{argument} must name function nodes, got {len(unknown)} unknown: {some_names(unknown)}"
        )
    return pairs


def check_missing(edges: Iterable[Any], kept: KeptEdges, argument: str = "positive_edges") -> list[Pair]:
    """`check_edges`, and that each edge joins two nodes and is missing from the graph."""
    if kept.kinds[0] == kept.kinds[1]:
        pairs = check_edges(edges, kept.names, argument)
    else:
        pairs = list(dict.fromkeys(check_pairs(edges, argument)))
        for side, known in enumerate((kept.sources, kept.targets)):
            unknown = sorted({pair[side] for pair in pairs} - set(known))
            if unknown:
                raise ValueError(
                    f"{argument} must name {kept.kinds[side]} nodes as {('sources', 'targets')[side]}, "
                    f"got {len(unknown)} unknown: {some_names(unknown)}"
                )
    bad = [pair for pair in pairs if pair in kept.edges]
    if bad:
        raise ValueError(
            f"{argument} must be missing from the graph, got {len(bad)} kept edges: {some_names(bad)}"
        )
    loops = [pair for pair in pairs if pair[0] == pair[1] and kept.kinds[0] == kept.kinds[1]]
    if loops:
        raise ValueError(f"{argument} must join two nodes, got self edges: {some_names(loops)}")
    return pairs


def check_top_k(top_k: Iterable[int]) -> tuple[int, ...]:
    """`top_k` as a tuple of positive ints."""
    ks = tuple(top_k) if isinstance(top_k, Iterable) else (top_k,)
    try:
        if ks:
            return tuple(whole("top_k", k) for k in ks)
    except ValueError:
        pass  # said of all of them below
    raise ValueError(f"top_k must be positive ints, got {top_k!r}")


def rank_in_targets(
    res: pd.DataFrame,
    positive_edges: Iterable[Any],
    score_col: str = "score",
    top_k: Iterable[int] = (1, 3, 5),
    filtered: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rank of each positive edge's source among all sources that `res` scores for its target.

    Args:
        res: a table as every inferer returns it; only `src_func`, `dst_func` and `score_col` are needed.
        positive_edges: (source name, target name) pairs; one that is given twice counts once.
        score_col: the column to rank by, larger is better.
        top_k: the k of the reported top@k.
        filtered: leave the target's other known sources (kept edges, so `has_edge` is needed, and other
            positive edges) out of the competition. By default the rank is raw: they compete.

    Returns:
        Two. The detail has one row per positive edge, sorted by name: `src_func, dst_func, score, rank,
        n_candidates, reciprocal_rank, top@k...`. Ties get the mean of the best and the worst rank they could
        have. A pair that `res` lacks, or whose score is NaN, has rank NaN and reciprocal rank 0, and is no
        candidate in the ranking of others. The summary has `n_positives`, `mrr` and `top@k` (the share of
        positives with rank <= k).
    """
    import pandas as pd

    ks = check_top_k(top_k)
    needed = ["src_func", "dst_func", score_col, *(["has_edge"] if filtered else [])]
    absent = [name for name in needed if name not in res.columns]
    if absent:
        raise ValueError(f"res must have the column {absent[0]!r}, got {', '.join(map(str, res.columns))}")
    pairs = sorted(set(check_pairs(positive_edges)))
    wanted: dict[str, list[str]] = {}
    for source, target in pairs:
        wanted.setdefault(target, []).append(source)
    scored = res.loc[res["dst_func"].isin(list(wanted)) & res[score_col].notna(), needed]
    by_target = {str(name): group for name, group in scored.groupby("dst_func", sort=False)}
    rows: dict[Pair, tuple[float, float, int]] = {}
    for target, sources in wanted.items():
        if target not in by_target:
            rows.update({(source, target): (np.nan, np.nan, 0) for source in sources})
            continue
        group = by_target[target]
        names = pd.Index(group["src_func"])
        values = group[score_col].to_numpy(dtype=np.float64)
        at = names.get_indexer(sources)
        known = np.zeros(len(values), dtype=bool)
        if filtered:
            known |= group["has_edge"].to_numpy(dtype=bool)
            known[at[at >= 0]] = True
        for source, position in zip(sources, at, strict=True):
            if position < 0:
                rows[source, target] = (np.nan, np.nan, int((~known).sum()))
                continue
            others = known.copy()
            others[position] = False
            (rank,) = ranks(values[None], np.array([position]), others[None])
            rows[source, target] = (float(values[position]), float(rank), int((~others).sum()))
    detail = pd.DataFrame(
        [(*pair, *rows[pair]) for pair in pairs],
        columns=["src_func", "dst_func", "score", "rank", "n_candidates"],
    )
    detail["reciprocal_rank"] = (1.0 / detail["rank"]).fillna(0.0)
    summary: dict[str, Any] = {"n_positives": len(pairs), "mrr": float(detail["reciprocal_rank"].mean())}
    for k in ks:
        detail[f"top@{k}"] = detail["rank"] <= k
        summary[f"top@{k}"] = float(detail[f"top@{k}"].mean())
    return detail, summary


def judge(
    res: pd.DataFrame,
    kept: KeptEdges,
    positive_edges: Iterable[Any],
    score_col: str,
    top_k: Iterable[int] = (1, 3, 5),
    filtered: bool = False,
) -> dict[str, Any]:
    """`judge_scores` of the full table `res`."""
    scores = np.full(kept.mask.shape, np.nan)
    scores[res["src_idx"].to_numpy(), res["dst_idx"].to_numpy()] = res[score_col].to_numpy(dtype=np.float64)
    return judge_scores(scores, kept, positive_edges, top_k, filtered)


def judge_scores(
    scores: NDArray[np.float64],
    kept: KeptEdges,
    positive_edges: Iterable[Any],
    top_k: Iterable[int] = (1, 3, 5),
    filtered: bool = False,
) -> dict[str, Any]:
    """How well `scores` (S, T), source by target, find `positive_edges`, none of which may be a kept edge.

    Returns a dict: `auc` and `average_precision` of the positives against every other pair that is neither a
    kept edge nor self (`n_negatives` of them); `n_positives`, `mrr` and `top@k` of the rank of each source
    among all sources of its target: raw, or `filtered` of the target's other known sources.
    """
    pairs = check_missing(positive_edges, kept)
    ks = check_top_k(top_k)
    row, column = ({name: k for k, name in enumerate(names)} for names in (kept.sources, kept.targets))
    source, target = np.array([(row[s], column[t]) for s, t in pairs]).T
    positive = np.zeros_like(kept.mask)
    positive[source, target] = True
    itself = kept.itself
    pool = ~(kept.mask | itself)
    if pool.sum() == len(pairs):
        raise ValueError("positive_edges must leave at least one missing pair as a negative, got them all")
    known = itself | kept.mask | positive if filtered else itself
    rank = ranks(scores.T[target], source, known.T[target])
    return {
        "auc": auc(scores[pool], positive[pool]),
        "average_precision": average_precision(scores[pool], positive[pool]),
        "n_negatives": int(pool.sum()) - len(pairs),
        "n_positives": len(pairs),
        "mrr": mrr(rank),
        **{f"top@{k}": hits(rank, k) for k in ks},
    }
