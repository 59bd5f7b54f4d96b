"""Why a network predicts what it does: attributions, the subgraph that carries a prediction, contrasts."""

from gsnn.explain.attribution import attribute, contrast
from gsnn.explain.subnetwork import Subgraph, subgraph

__all__ = ["Subgraph", "attribute", "contrast", "subgraph"]
