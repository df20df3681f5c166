"""Rival: how far full fine-tuning moves a scalar."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.steps import check_duration
from keras_bayestune.selectors.training import Training, fresh_copy


class Movement(Selector):
    """Distance from the pre-trained value after full fine-tuning, `|theta - theta0|`.

    Lottery-ticket sparse fine-tuning: Ansell et al., "Composable Sparse Fine-Tuning
    for Cross-Lingual Transfer", ACL 2022, one iteration. The optimizer decides what is
    selected: Adam erases how large each gradient is, plain descent keeps it. Descent
    with a rate that reads like Adam's is `BayesTuneSGLD` without prior and noise:
    `BayesTuneSGLD(lr, noise_scale=0.0, warmup_steps=steps, burn_in_steps=steps)`, with
    `sampler=Collapsed(ScalarMetric())` for one step size for all.

    Cost: the fine-tuning run, with the optimizer's own state; 8 bytes per scalar on
    the host.

    Args:
        optimizer: A Keras optimizer; every call trains with a copy of it.
        epochs: Passes over the data.
        steps: Instead of `epochs`: batches.

    Raises:
        TypeError: if `optimizer` is not a Keras optimizer.
        ValueError: if not exactly one of `epochs` and `steps` is given, >= 1.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = np.random.rand(8, 4), np.random.rand(8, 3)
        >>> selector = Movement(keras.optimizers.SGD(0.1), epochs=2)
        >>> scores = selector.scores(model, data, loss="mse", batch_size=4)
        >>> all(np.any(score > 0) for score in scores.values())
        True
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        epochs: int | None = None,
        steps: int | None = None,
    ):
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(
                "`optimizer` of Movement must be a Keras optimizer such as "
                f"keras.optimizers.Adam(1e-4). Received: {optimizer!r}."
            )
        self.epochs, self.steps = check_duration(epochs, steps)
        self.optimizer = optimizer

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Fine-tune and return `|theta - theta0|`."""
        before = [ops.convert_to_numpy(v.value) for v in variables]
        training.train(fresh_copy(self.optimizer), self.epochs, self.steps)
        return [
            np.abs(ops.convert_to_numpy(v.value) - start)
            for v, start in zip(variables, before, strict=True)
        ]
