"""Fitting and predicting."""

from gsnn.data.scaling import Scaling
from gsnn.train.history import History
from gsnn.train.loop import SCHEDULES, fit, predict

__all__ = ["SCHEDULES", "History", "Scaling", "fit", "predict"]
