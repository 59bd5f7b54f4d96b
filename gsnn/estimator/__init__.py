"""The network as a scikit-learn estimator."""

from gsnn.estimator.regressor import GSNNRegressor

__all__ = ["GSNNRegressor"]
