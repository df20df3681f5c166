"""Diagnostics of chains, of the selections they lead to, and of predictions."""

from keras_bayestune.diagnostics.calibration import (
    Reliability,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from keras_bayestune.diagnostics.chain_statistics import (
    MINIMUM_DRAWS,
    effective_sample_size,
    r_hat,
)
from keras_bayestune.diagnostics.stability import (
    overlap_matrix,
    selection_frequency,
    selection_probability,
)

__all__ = [
    "MINIMUM_DRAWS",
    "Reliability",
    "brier_score",
    "effective_sample_size",
    "expected_calibration_error",
    "negative_log_likelihood",
    "overlap_matrix",
    "r_hat",
    "reliability",
    "selection_frequency",
    "selection_probability",
]
