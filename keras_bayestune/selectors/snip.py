"""Rival: the size of weight times gradient."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.selectors.gradients import sum_over_gradients
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.steps import check_head_steps, check_steps
from keras_bayestune.selectors.training import Training


class SNIP(Selector):
    """Absolute pre-trained value times the gradient there, summed over batches.

    Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    ICLR 2019, as a rule for what to tune: to first order, removing scalar `i` changes
    the loss by

        | theta_i sum_b dL_b/dtheta_i |       L_b: the mean loss of batch b

    Scalars that are 0, as fresh biases are, score 0.

    Cost: one pass over the data, forward and backward, after `head_steps` batches; 4
    bytes per scalar on the device.

    Args:
        steps: At most so many batches; `None` for one pass over the data.
        head_steps: Batches on which what does not compete, such as a fresh head, is
            trained first, by Adam(1e-3). A head of random weights has gradients that
            say little about the task.

    Raises:
        ValueError: if `steps` is not an integer >= 1, or `head_steps` not one >= 0.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = np.random.rand(8, 4), np.random.rand(8, 3)
        >>> scores = SNIP().scores(model, data, loss="mse", batch_size=4)
        >>> [bool(np.any(score > 0)) for score in scores.values()]  # kernel, bias of 0
        [True, False]
    """

    def __init__(self, steps: int | None = None, head_steps: int = 0):
        self.steps = check_steps("steps", steps)
        self.head_steps = check_head_steps(head_steps)

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return `|theta0 x sum of gradients|`."""
        training.train_head(variables, self.head_steps)
        sums = sum_over_gradients(lambda g: g, variables, training, self.steps)
        return [
            np.abs(ops.convert_to_numpy(v.value) * total)
            for v, total in zip(variables, sums, strict=True)
        ]
