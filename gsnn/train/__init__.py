"""Fitting and predicting."""

from gsnn.data.scaling import Scaling
from gsnn.train.callbacks import Callback, EpochState
from gsnn.train.history import History
from gsnn.train.loop import fit, predict
from gsnn.train.rules import SCHEDULES
from gsnn.train.side_by_side import fit_side_by_side
from gsnn.train.uncertainty import fit_ensemble

__all__ = [
    "SCHEDULES",
    "Callback",
    "EpochState",
    "History",
    "Scaling",
    "fit",
    "fit_ensemble",
    "fit_side_by_side",
    "predict",
]
