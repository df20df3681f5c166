"""Rival: the size of the summed gradient."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_bayestune.selectors.gradients import sum_over_gradients
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.steps import check_head_steps, check_steps
from keras_bayestune.selectors.training import Training


class GradientSum(Selector):
    """Absolute value of the gradient at the pre-trained weights, summed over batches.

    SAM, the second-order approximation method of Fu et al., "On the Effectiveness of
    Parameter-Efficient Fine-Tuning", AAAI 2023. To second order, moving scalar `i`
    alone lowers the loss most by `(dL/dtheta_i)^2 / (2 h_i)`, with `h` the diagonal
    of the Hessian; the authors' code (fuzihaofzh/AnalyzeParameterEfficientFinetune,
    `src/runner.py`, "bsearch") takes `h` as constant and ranks by

        | sum_b dL_b/dtheta_i |       L_b: the mean loss of batch b

    so a smaller last batch counts as a full one. Not copied: there dropout is on, each
    batch's gradient is clipped, and each tensor has a budget of its own, which
    `budgets.PerTensor()` gives. With `budgets.PerNeuron()` and a warmed-up head it is
    the rule of GPS (Zhang et al., CVPR 2024).

    Cost: one pass over the data, forward and backward, after `head_steps` batches; 4
    bytes per scalar on the device.

    Args:
        steps: At most so many batches (500 in the authors' code); `None` for one pass
            over the data.
        head_steps: Batches on which what does not compete, such as a fresh head, is
            trained first, by Adam(1e-3). A head of random weights has gradients that
            say little about the task.

    Raises:
        ValueError: if `steps` is not an integer >= 1, or `head_steps` not one >= 0.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = np.random.rand(8, 4), np.random.rand(8, 3)
        >>> scores = GradientSum().scores(model, data, loss="mse", batch_size=4)
        >>> all(np.all(score >= 0) for score in scores.values())
        True
    """

    def __init__(self, steps: int | None = None, head_steps: int = 0):
        self.steps = check_steps("steps", steps)
        self.head_steps = check_head_steps(head_steps)

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return `|sum of gradients|`."""
        training.train_head(variables, self.head_steps)
        sums = sum_over_gradients(_itself, variables, training, self.steps)
        return [np.abs(total) for total in sums]


def _itself(gradient: Any) -> Any:
    return gradient
