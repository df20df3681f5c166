"""Metrics: how a learning rate becomes the step size of each weight tensor."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bayestune.arguments import show_arguments

Tensor = Any  # a backend tensor

DECAY = 0.999  # of the running mean square of the gradient
EPSILON = 1e-5
SMALLEST_SQUARE = 1e-30  # a mean square, as a divisor


class Metric:
    """Abstract rule that turns a learning rate into step sizes.

    With `g` the gradient of the mean minibatch loss, clipped, and one mean square s
    for all weights under a prior, or one per weight tensor:

        q_t = pool(sums of g^2, numbers of scalars)          float32 () or (V,)
        s_t = 0.999 s_(t-1) + 0.001 q_t                      kept by the optimizer
        h_t = step_size(learning rate, s_t / (1 - 0.999^t))  as s

    A metric may keep more for a weight, of which `factors` of h follow: see
    `initial_state`. All arrays are float32.
    """

    per_tensor = False  # whether `pool` returns one number per tensor

    def pool(self, squares: Sequence[Tensor], sizes: Sequence[float]) -> Tensor:
        """Mean square of the gradient that h follows.

        Args:
            squares: Sum of the squared gradient of each tensor, scalars.
            sizes: Number of scalars of each tensor, 0 where no gradient came.
        """
        raise NotImplementedError

    def step_size(self, learning_rate: Tensor, mean_square: Tensor) -> Tensor:
        """Step size h, of the shape of `mean_square`."""
        raise NotImplementedError

    def initial_state(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Name and shape of each array that is kept for a weight of `shape`: none.

        Each begins at 0 and is a running mean of the squared gradient: of each scalar,
        of each row, `(*shape[:-1], 1)`, or of each column, `(1, ..., shape[-1])`. A
        weight has arrays of scalars or of rows and columns, not both.
        """
        return {}

    def next_state(
        self, state: dict[str, Tensor], squares: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Running means after a gradient whose mean squares are `squares`."""
        return {
            name: DECAY * old + (1.0 - DECAY) * squares[name]
            for name, old in state.items()
        }

    def factors(
        self, state: dict[str, Tensor], mean_square: Tensor
    ) -> tuple[Tensor, ...]:
        """What h is multiplied by, in shapes that broadcast to the weight's: nothing.

        Args:
            state: The running means.
            mean_square: s, too small by the same bias as the state, and above 0.
        """
        return ()

    def __repr__(self) -> str:
        """Return the class with those of its arguments that are not the defaults."""
        return show_arguments(self)

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

    def pool(self, squares: Sequence[Tensor], sizes: Sequence[float]) -> Tensor:
        """Mean over all scalars."""
        return ops.sum(ops.stack(squares)) / max(sum(sizes), 1.0)

    def step_size(self, learning_rate: Tensor, mean_square: Tensor) -> Tensor:
        """`h = lr / (sqrt(s) + 1e-5)`."""
        return learning_rate / (ops.sqrt(mean_square) + EPSILON)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class TensorMetric(ScalarMetric):
    """One normaliser per weight tensor, otherwise as `ScalarMetric`."""

    per_tensor = True

    def pool(self, squares: Sequence[Tensor], sizes: Sequence[float]) -> Tensor:
        """Mean over the scalars of each tensor."""
        pairs = zip(squares, sizes, strict=True)
        return ops.stack([square / max(size, 1.0) for square, size in pairs])


@keras.saving.register_keras_serializable(package="keras_bayestune")
class IdentityMetric(ScalarMetric):
    """No normaliser: `h = lr`, plain stochastic-gradient Langevin dynamics."""

    def step_size(self, learning_rate: Tensor, mean_square: Tensor) -> Tensor:
        """`h = lr`."""
        return learning_rate * ops.ones_like(mean_square)
