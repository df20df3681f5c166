"""Baseline: the largest pre-trained weights."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.training import Training


class Magnitude(Selector):
    """The absolute pre-trained value, `|theta0|`.

    Magnitude pruning (Han et al., "Learning both Weights and Connections for
    Efficient Neural Networks", NeurIPS 2015) as a rule for what to tune: the baseline
    "MagPruning" of Fu et al., AAAI 2023. Blind to the task. With
    `budgets.PerNeuron()` the rule of NeuroAda (Zhang et al., EMNLP 2025). Cost: no
    pass over the data; 4 bytes per scalar.

    Examples:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]
        ... )
        >>> model.set_weights([np.array([[0.5], [-2.0]])])
        >>> [score.tolist() for score in Magnitude().scores(model).values()]
        [[[0.5], [2.0]]]
    """

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return `|theta0|`."""
        return [np.abs(ops.convert_to_numpy(v.value)) for v in variables]
