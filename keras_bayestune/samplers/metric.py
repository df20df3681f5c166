"""Metrics: how a learning rate becomes the step size of each weight tensor."""

from typing import Any

import keras
from keras import ops

Tensor = Any  # a backend tensor

DECAY = 0.999  # of the running mean square of the gradient
EPSILON = 1e-5


class Metric:
    """Abstract rule that turns a learning rate into one step size per tensor.

    With `g` the gradient of the mean minibatch loss and V weight tensors:

        q_t = pool(sum of g^2, number of scalars)            shape (V,)
        s_t = 0.999 s_(t-1) + 0.001 q_t                      kept by the optimizer
        h_t = step_size(learning rate, s_t / (1 - 0.999^t))  shape (V,)

    A metric may multiply h by a factor for each scalar, see `initial_slots`.
    """

    def pool(self, squares: Tensor, sizes: Tensor) -> Tensor:
        """Mean square of the gradient that each tensor is measured by.

        Args:
            squares: float32 `(V,)`, sum of the squared gradient of each tensor.
            sizes: float32 `(V,)`, number of scalars of each tensor.
        """
        raise NotImplementedError

    def step_size(self, learning_rate: Tensor, mean_square: Tensor) -> Tensor:
        """Step size h of each tensor, float32 `(V,)`."""
        raise NotImplementedError

    def initial_slots(self, shape: tuple[int, ...]) -> dict[str, float]:
        """Running means of the metric's own, of a weight's shape: none.

        `"gradient_square"`, if there, is the running mean square v of each scalar's
        gradient, and h is multiplied by `factor(v / s)`.
        """
        return {}

    def is_factored(self, shape: tuple[int, ...]) -> bool:
        """Whether `factor` is asked for the rows and columns of a weight: no."""
        return False

    def factor(self, relative_square: Tensor) -> Tensor:
        """What h is multiplied by, from mean squares of the gradient in units of s."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Metric":
        """Rebuild from `get_config()`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class ScalarMetric(Metric):
    """One normaliser for all weights: `h = lr / (sqrt(s) + 1e-5)`.

    The learning rate is then the root-mean-square displacement per scalar and step,
    as with Adam, but how large each gradient is beside the others survives, and
    that is what selection lives on.
    """

    def pool(self, squares: Tensor, sizes: Tensor) -> Tensor:
        """Mean over all scalars, the same for each tensor."""
        return ops.ones_like(squares) * (ops.sum(squares) / ops.sum(sizes))

    def step_size(self, learning_rate: Tensor, mean_square: Tensor) -> Tensor:
        """`h = lr / (sqrt(s) + 1e-5)`."""
        return learning_rate / (ops.sqrt(mean_square) + EPSILON)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class TensorMetric(ScalarMetric):
    """One normaliser per weight tensor, otherwise as `ScalarMetric`."""

    def pool(self, squares: Tensor, sizes: Tensor) -> Tensor:
        """Mean over the scalars of each tensor."""
        return squares / sizes


@keras.saving.register_keras_serializable(package="keras_bayestune")
class IdentityMetric(ScalarMetric):
    """No normaliser: `h = lr`, plain stochastic-gradient Langevin dynamics."""

    def step_size(self, learning_rate: Tensor, mean_square: Tensor) -> Tensor:
        """`h = lr`."""
        return learning_rate * ops.ones_like(mean_square)


def check_positive(name: str, value: float, owner: str) -> float:
    """Return `value` if it is a number above 0."""
    if isinstance(value, str) or not 0.0 < value < float("inf"):
        raise ValueError(
            f"`{name}` of {owner} must be a finite number above 0. "
            f"Received: {name}={value!r}."
        )
    return float(value)
