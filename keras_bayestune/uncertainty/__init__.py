"""Uncertainty: distributions over deltas, and predictions averaged over them."""

from keras_bayestune.uncertainty.calibration import calibrate
from keras_bayestune.uncertainty.delta_ensemble import ensemble
from keras_bayestune.uncertainty.laplace_approximation import laplace
from keras_bayestune.uncertainty.posterior import DeltaPosterior, Prediction

__all__ = ["DeltaPosterior", "Prediction", "calibrate", "ensemble", "laplace"]
