"""The rules by which stage 1 moves the weights and scores their scales."""

from keras_bayestune.samplers.adam import adam_change, bias_correction
from keras_bayestune.samplers.authors import Authors
from keras_bayestune.samplers.collapsed import Collapsed, shrink_factor
from keras_bayestune.samplers.joint_langevin import JointLangevin
from keras_bayestune.samplers.metric import (
    DECAY,
    SMALLEST_SQUARE,
    IdentityMetric,
    Metric,
    ScalarMetric,
    TensorMetric,
)
from keras_bayestune.samplers.partially_adaptive_metric import (
    PartiallyAdaptiveMetric,
)
from keras_bayestune.samplers.sampler import Sampler, Step

__all__ = [
    "DECAY",
    "SMALLEST_SQUARE",
    "Authors",
    "Collapsed",
    "IdentityMetric",
    "JointLangevin",
    "Metric",
    "PartiallyAdaptiveMetric",
    "Sampler",
    "ScalarMetric",
    "Step",
    "TensorMetric",
    "adam_change",
    "bias_correction",
    "shrink_factor",
]
