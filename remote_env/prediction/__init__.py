"""Prediction with verification: a local twin steps at once, and the far simulator confirms each step behind it."""

from remote_env.prediction.differences import Difference
from remote_env.prediction.predictive_env import PredictiveEnv
from remote_env.prediction.statistics import Statistics

__all__ = ["Difference", "PredictiveEnv", "Statistics"]
