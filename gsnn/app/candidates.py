"""The function -> function pairs that the graph lacks, as the rows of edges.csv."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from gsnn.data.dataset import RowDataset
from gsnn.data.tables import Data
from gsnn.graph.container import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.stats.significance import benjamini_hochberg, fisher_p

SCORE = (
    "partial correlation, over samples, of the source's activation magnitude and the target's gradient "
    "magnitude one layer on, given the target's kept parents; largest over layer pairs"
)
CAUTION = (
    "Rank the edges by score; do not read p_value or q_value as the chance that an edge is real. They ask "
    "whether two magnitudes go together in this network. Nodes that share causes pass that test by the "
    "dozen, even when no edge is missing. Treat the top rows as candidates for an experiment."
)

NO_SIGNAL = "no signal reaches the source"
NO_GRADIENT = "no gradient comes back to the target"
TOO_FEW = "too few samples for the target's kept parents"
DETERMINED = "the target's kept parents determine it"

# A correlation given k parents has n - 3 - k degrees of freedom. With a handful it is near 1 for any source.
_LEAST_FREEDOM = 10
_MOST_EDGES = 100_000  # rows of edges.csv; the pairs of 2,000 function nodes would be 4 million


def rank_edges(model: GSNN, data: Data, *, verbose: bool) -> pd.DataFrame:
    """The function -> function pairs that are no kept edge, best candidate first.

    Pairs that cannot be scored come last, without a rank and with a ``reason``: no signal varies at the
    source, no gradient comes back to the target, fewer than ten degrees of freedom are left by the target's
    kept parents, or these determine it. p counts samples with equal inputs as one. It is that of the largest
    correlation over pairs of layers as if there were one pair, and so too small where these differ.
    """
    samples = RowDataset(model, data.x, data.y)
    # Without a generator of its own a loader draws from the global one.
    batches = DataLoader(samples, batch_size=256, generator=torch.Generator())
    inferer = MagnitudeEdgeInferer(model, data.graph)
    inferer.fit(batches, verbose=verbose)
    n = inferer.N
    top_k = None if n * n <= 4 * _MOST_EDGES else max(1, 2 * _MOST_EDGES // n)
    table = inferer.evaluate(layer_agg="max", score="partial", top_k=top_k)
    plain = inferer.evaluate(layer_agg="max", top_k=top_k)
    plain = plain[plain["corr"].notna()]
    table = table[~table["has_edge"]]
    free = inferer.n - 3 - table["n_cond"].to_numpy()
    score = np.where(free < _LEAST_FREEDOM, np.nan, table["corr"].to_numpy())
    distinct = len(data.x.drop_duplicates())
    p, q = table["p_value"].to_numpy(), table["q_value"].to_numpy()
    if distinct < inferer.n:  # samples with the same inputs are one draw, not many
        p = fisher_p(score, distinct, table["n_cond"].to_numpy())
        # The best of each target alone are no family to adjust by: they were chosen for their scores.
        q = benjamini_hochberg(p) if top_k is None else np.full(len(p), np.nan)
    reason = np.select(
        [
            ~np.isnan(score),
            ~table["src_func"].isin(plain["src_func"]),
            ~table["dst_func"].isin(plain["dst_func"]),
            free < _LEAST_FREEDOM,
        ],
        ["", NO_SIGNAL, NO_GRADIENT, TOO_FEW],
        DETERMINED,
    )
    order = np.argsort(-score, kind="stable")[:_MOST_EDGES]  # NaN last
    n_scored = int((~np.isnan(score[order])).sum())
    rank = pd.array([*range(1, n_scored + 1), *[pd.NA] * (len(order) - n_scored)], dtype="Int64")
    return pd.DataFrame(
        {
            "rank": rank,
            "source": table["src_func"].to_numpy()[order],
            "target": table["dst_func"].to_numpy()[order],
            "score": score[order],
            "p_value": np.where(np.isnan(score), np.nan, p)[order],
            "q_value": np.where(np.isnan(score), np.nan, q)[order],
            "reason": reason[order],
        }
    )


def n_pairs(graph: HeteroGraph) -> int:
    """Ordered pairs of two function nodes that are no edge of the graph."""
    n = len(graph.node_names_dict["function"])
    source, target = graph.edge_index_dict[EDGE_TYPES[0]]
    return n * (n - 1) - int((source != target).sum())
