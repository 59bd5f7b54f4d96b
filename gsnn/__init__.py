"""Graph Structured Neural Networks, and inference of the edges that their graph is missing.

Short names are resolved on first use, so ``import gsnn`` itself loads neither torch nor pandas.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_SHORT_NAMES = {
    "HeteroGraph": "gsnn.graph",
    "GSNN": "gsnn.models.GSNN",
    "FirstOrderEdgeInferer": "gsnn.optim.FirstOrderEdgeInferer",
    "OutputEdgeInferer": "gsnn.optim.OutputEdgeInferer",
    "InputEdgeInferer": "gsnn.optim.InputEdgeInferer",
    "MagnitudeEdgeInferer": "gsnn.optim.MagnitudeEdgeInferer",
    "MagnitudeEdgeRegressor": "gsnn.optim.MagnitudeEdgeRegressor",
    "MagnitudeEdgeKGE": "gsnn.optim.MagnitudeEdgeKGE",
    "GSNNRegressor": "gsnn.estimator",
    "suggest": "gsnn.estimator",
    "complete": "gsnn.optim.complete",
    "complete_cv": "gsnn.optim.complete",
    "verify": "gsnn.optim.verify",
    "PathwayLatentRegularizer": "gsnn.models.PathwayLatentRegularizer",
    "fit": "gsnn.train",
    "predict": "gsnn.train",
    "RowDataset": "gsnn.data.dataset",
    "save": "gsnn.io",
    "load": "gsnn.io",
}

__all__ = ["__version__", *_SHORT_NAMES]


def __getattr__(name: str) -> Any:
    if name in _SHORT_NAMES:
        return getattr(import_module(_SHORT_NAMES[name]), name)
    raise AttributeError(f"module 'gsnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
