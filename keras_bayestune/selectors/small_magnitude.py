"""Baseline: the smallest pre-trained weights."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.training import Training


class SmallMagnitude(Selector):
    """The absolute pre-trained value, smallest first: `-|theta0|`.

    PaFi: Liao et al., "Parameter-Efficient Fine-Tuning without Introducing New
    Latency", ACL 2023: large pre-trained weights carry what the model knows, so the
    small ones are moved. Blind to the task. Not copied: there each matrix has a budget
    of its own, which `budgets.PerTensor()` gives. Cost: no pass over the data; 4 bytes
    per scalar.

    Examples:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]
        ... )
        >>> model.set_weights([np.array([[0.5], [-2.0]])])
        >>> [score.tolist() for score in SmallMagnitude().scores(model).values()]
        [[[-0.5], [-2.0]]]
    """

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return `-|theta0|`."""
        return [-np.abs(ops.convert_to_numpy(v.value)) for v in variables]
