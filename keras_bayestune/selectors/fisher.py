"""Rival: the diagonal of the empirical Fisher information."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bayestune.selectors.gradients import sum_over_gradients
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.steps import check_head_steps, check_steps
from keras_bayestune.selectors.training import Training


class Fisher(Selector):
    """Sum of the squared gradients of single examples at the pre-trained weights.

    FISH mask: Sung et al., "Training Neural Networks with Fixed Sparse Masks",
    NeurIPS 2021, with the labels of the data (the empirical Fisher information):

        sum_n (dL_n/dtheta_i)^2       L_n: the loss of example n

    `L` is the loss as the model trains it, weight regularisers included. Theirs is the
    mean, which ranks alike.

    Cost: one pass over the data, forward and backward, one example at a time, which
    takes longer than in batches, after `head_steps` batches; 4 bytes per scalar on the
    device.

    Args:
        steps: At most so many examples, the first ones; `None` for all.
        per_example: `False` squares the gradient of each batch's mean loss instead:
            as fast as `GradientSum`, and what Adam's second moment averages, but the
            larger the batch, the more it is the square of the mean gradient and the
            less the mean of the squares. `steps` then counts batches.
        head_steps: Batches on which what does not compete, such as a fresh head, is
            trained first, by Adam(1e-3). A head of random weights has gradients that
            say little about the task.

    Raises:
        ValueError: if `steps` is not an integer >= 1, or `head_steps` not one >= 0.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = np.random.rand(8, 4), np.random.rand(8, 3)
        >>> scores = Fisher().scores(model, data, loss="mse")
        >>> all(np.all(score >= 0) for score in scores.values())
        True
    """

    def __init__(
        self, steps: int | None = None, per_example: bool = True, head_steps: int = 0
    ):
        self.steps = check_steps("steps", steps)
        self.head_steps = check_head_steps(head_steps)
        self.per_example = per_example

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return the sum of squared gradients."""
        training.train_head(variables, self.head_steps)
        return sum_over_gradients(
            ops.square, variables, training, self.steps, self.per_example
        )
