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

SCORE = (
    "partial correlation, over samples, of the source's activation magnitude and the target's gradient "
    "magnitude one layer on, given the target's kept parents; largest over layer pairs"
)
CAUTION = (
    "Rank the edges by score; do not read p_value or q_value as the chance that an edge is real. They ask "
    "whether two magnitudes go together in this network. Nodes that share causes pass that test by the "
    "dozen, even when no edge is missing. Treat the top rows as candidates for an experiment."
)

_MOST_EDGES = 100_000  # rows of edges.csv; the pairs of 2,000 function nodes would be 4 million


def rank_edges(model: GSNN, data: Data, *, verbose: bool) -> pd.DataFrame:
    """The function -> function pairs that are no kept edge, best candidate first."""
    samples = RowDataset(model, data.x, data.y)
    # Without a generator of its own a loader draws from the global one.
    batches = DataLoader(samples, batch_size=256, generator=torch.Generator())
    inferer = MagnitudeEdgeInferer(model, data.graph)
    inferer.fit(batches, verbose=verbose)
    n = inferer.N
    top_k = None if n * n <= 4 * _MOST_EDGES else max(1, 2 * _MOST_EDGES // n)
    table = inferer.evaluate(layer_agg="max", score="partial", top_k=top_k)
    table = table[~table["has_edge"]].head(_MOST_EDGES)
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(table) + 1),
            "source": table["src_func"].to_numpy(),
            "target": table["dst_func"].to_numpy(),
            "score": table["corr"].to_numpy(),
            "p_value": table["p_value"].to_numpy(),
            "q_value": table["q_value"].to_numpy(),
        }
    )


def n_pairs(graph: HeteroGraph) -> int:
    """Ordered pairs of two function nodes that are no edge of the graph."""
    n = len(graph.node_names_dict["function"])
    source, target = graph.edge_index_dict[EDGE_TYPES[0]]
    return n * (n - 1) - int((source != target).sum())
