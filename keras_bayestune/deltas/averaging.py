"""Predictions averaged over deltas: a posterior, or an ensemble, on one backbone."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.deltas.delta import SparseDelta


def average_predictions(
    model: keras.Model,
    deltas: Iterable[SparseDelta],
    predict: Callable[[keras.Model], Any],
) -> np.ndarray:
    """Mean of what a model predicts under each of several deltas.

    Bayesian model averaging with K draws of the posterior, as for instance in
    Welling & Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics",
    ICML 2011:

    ```
    p(y | x) = (1/K) sum_k p(y | x, theta_k)       theta_k: the model under delta k
    ```

    The mean of probabilities is one; the mean of logits is not their logit. One copy
    of the model is enough: each delta is applied, and reverted bit for bit.

    Args:
        model: The base model of the deltas, with its base values.
        deltas: At least one; `PosteriorDraws` collects them.
        predict: Function of the model that returns an array of the same shape each
            time, such as class probabilities.

    Returns:
        float64, of that shape.

    Raises:
        ValueError: No delta, or the model does not hold the base values of one.

    Example:
        >>> from keras_bayestune import SparseDelta, SparseMask
        >>> from keras_bayestune.deltas import average_predictions
        >>> model = keras.Sequential(
        ...     [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
        ... )
        >>> path = model.weights[0].path
        >>> mask, deltas = SparseMask({path: [0]}, {path: (1, 1)}), []
        >>> for value in (1.0, 2.0):
        ...     model.set_weights([np.full((1, 1), value)])
        ...     base = {path: np.zeros((1, 1), "float32")}
        ...     deltas.append(SparseDelta.from_model(model, mask=mask, base=base))
        >>> model.set_weights([np.zeros((1, 1))])
        >>> x = np.ones((1, 1))
        >>> average_predictions(model, deltas, lambda model: model(x)).tolist()
        [[1.5]]
    """
    total, count = 0.0, 0
    for delta in deltas:
        delta.apply(model)
        try:
            total = total + ops.convert_to_numpy(predict(model)).astype(np.float64)
        finally:
            delta.revert(model)
        count += 1
    if not count:
        raise ValueError(
            "There is nothing to average over: received no delta. Were draws taken "
            "after burn-in?"
        )
    return np.asarray(total) / count
