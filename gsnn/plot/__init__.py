"""Pictures of training, predictions, graphs, pathways and edge inference.

Every function draws on ``ax`` (a new figure where it is None) and returns the Axes. Line styles repeat what
colours say. No global matplotlib setting is read or changed beyond the user's own.
"""

from gsnn.plot.graphs import explanation, layered_graph
from gsnn.plot.inference import held_out_ranks, precision_recall, roc, score_heatmap
from gsnn.plot.pathways import pathway_activations
from gsnn.plot.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from gsnn.plot.training import learning_curve, predicted_vs_measured, r2_by_edges

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "SKY",
    "VERMILLION",
    "explanation",
    "held_out_ranks",
    "layered_graph",
    "learning_curve",
    "pathway_activations",
    "precision_recall",
    "predicted_vs_measured",
    "r2_by_edges",
    "roc",
    "score_heatmap",
]
