"""The network as a scikit-learn estimator, settings to begin with, and how long to train."""

from gsnn.estimator.regressor import GSNNRegressor
from gsnn.estimator.stopping import EpochChoice, choose_epochs
from gsnn.estimator.suggestion import Suggestion, suggest

__all__ = ["EpochChoice", "GSNNRegressor", "Suggestion", "choose_epochs", "suggest"]
