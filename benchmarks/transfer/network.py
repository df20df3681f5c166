"""A Keras model as pure functions of arrays, on JAX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

Array = Any  # of JAX or NumPy
Inputs = Any  # arrays in a dict, or one array


class Network:
    """A model and its loss: what the programs differentiate.

    The model is called as outside training: no dropout, and batch normalisation by the
    statistics it came with, which stay as they are in both stages.

    Args:
        model: A built Keras model.
        loss: A Keras loss.
    """

    def __init__(self, model: keras.Model, loss: keras.losses.Loss):
        self.model, self.loss = model, loss
        self.shapes = [tuple(v.shape) for v in model.trainable_variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]

    @property
    def count(self) -> int:
        """Number of trainable scalars."""
        return sum(self.sizes)

    def fixed(self) -> list[Array]:
        """Return the values of the variables that never train."""
        return [jnp.asarray(v.value) for v in self.model.non_trainable_variables]

    def weights(self) -> list[np.ndarray]:
        """Return the values of the trainable variables, on the host."""
        return [np.asarray(v.value) for v in self.model.trainable_variables]

    def outputs(self, weights: Sequence[Array], fixed: Any, x: Inputs) -> Array:
        """Return the model's outputs for `x`."""
        return self.model.stateless_call(weights, fixed, x, training=False)[0]

    def gradients(
        self, weights: Sequence[Array], fixed: Any, x: Inputs, y: Array
    ) -> list[Array]:
        """Return the gradient of the mean loss of a batch."""
        return jax.grad(lambda w: self.loss(y, self.outputs(w, fixed, x)))(
            list(weights)
        )

    def flat(self, arrays: Sequence[Array]) -> np.ndarray:
        """Return arrays of the trainable variables as one vector, on the host."""
        return np.concatenate([np.ravel(array) for array in arrays])


def take(x: Inputs, rows: Array) -> Inputs:
    """Return some rows of the inputs."""
    return keras.tree.map_structure(lambda array: array[rows], x)


def orders(rows: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Return the rows of each batch, (steps, batch_size): passes without repetition."""
    rng = np.random.default_rng(seed)
    needed = steps * batch_size
    passes = [rng.permutation(rows) for _ in range(-(-needed // rows))]
    order = np.concatenate(passes)[:needed]
    return order.reshape(steps, batch_size).astype("int32")


def schedule(rate: float, steps: int, warmup: float = 0.1) -> np.ndarray:
    """Return the rate of each step: up from 0 in a tenth of them, then down to 0."""
    step = np.arange(1, steps + 1)
    first = max(1, round(warmup * steps))
    down = (steps + 1 - step) / (steps + 1 - first)
    return (rate * np.minimum(step / first, down)).astype("float32")
