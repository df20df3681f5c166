"""Rival: the size of a weight times the size of its input."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import (
    Conv1D,
    Conv2D,
    Conv3D,
    Dense,
    DepthwiseConv1D,
    DepthwiseConv2D,
    EinsumDense,
    Embedding,
    Layer,
)

from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.steps import check_steps
from keras_bayestune.selectors.training import Training

_DEPTHWISE = DepthwiseConv1D | DepthwiseConv2D
_WATCHED = Dense | EinsumDense | Embedding | Conv1D | Conv2D | Conv3D | _DEPTHWISE


class ActivationMagnitude(Selector):
    """Absolute pre-trained value times the root mean square of the input it meets.

    Wanda: Sun et al., "A Simple and Effective Pruning Approach for Large Language
    Models", ICLR 2024, as a rule for what to tune. With `x_i` the input that
    `theta_ij` multiplies, over examples and positions t,

        | theta_ij | sqrt(mean_t x_i(t)^2)

    Of a convolution `x_i` is a channel; of an embedding it is 1 where the token is
    read and 0 elsewhere. Weights of other layers, and biases, count as if they met
    1. Not copied: the paper takes the norm, which differs by a factor per layer, and
    compares within each output neuron, which `budgets.PerNeuron()` gives. Padding is
    counted with the rest. Blind to the labels.

    Cost: one pass over the data or `steps` batches, forward only and not compiled; a
    hundred examples are enough. 4 bytes per scalar, on the host.

    Args:
        steps: At most so many batches; `None` for one pass over the data.

    Raises:
        ValueError: if `steps` is not an integer >= 1; when scoring, if there are no
            data.

    Examples:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]
        ... )
        >>> model.set_weights([np.array([[0.5], [-2.0]])])
        >>> data = np.array([[3.0, -1.0], [-3.0, 1.0]]), np.zeros(2)
        >>> [score] = ActivationMagnitude().scores(model, data).values()
        >>> score.tolist()
        [[1.5], [2.0]]
    """

    def __init__(self, steps: int | None = None):
        self.steps = check_steps("steps", steps)

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return `|theta0| x root mean square of the input`."""
        sums: dict[int, tuple[Any, int]] = {}  # by variable: of squares, of positions
        wanted = {id(v) for v in variables}
        with _watching(training.model, wanted, sums):
            for x in training.inputs(self.steps):
                training.model(x, training=False)
        return [
            np.abs(ops.convert_to_numpy(v.value)) * _root_mean(sums.get(id(v)))
            for v in variables
        ]


def squares_of_inputs(layer: Any, x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return sums of squares in a shape that goes with the kernel, and of how many.

    Args:
        layer: A built layer, one of those that are watched.
        x: What it is called with.
    """
    if isinstance(layer, Embedding):
        counts = np.bincount(x.astype("int64").reshape(-1), minlength=layer.input_dim)
        return counts[: layer.input_dim, None].astype("float64"), x.size
    x = np.square(x.astype("float64"))
    if isinstance(layer, Dense):
        return x.reshape(-1, x.shape[-1]).sum(axis=0)[:, None], x.size // x.shape[-1]
    if isinstance(layer, EinsumDense):
        return _squares_of_einsum(layer, x)
    axis = x.ndim - 1 if layer.data_format == "channels_last" else 1
    channels = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    sums, count = channels.sum(axis=0), len(channels)
    if isinstance(layer, _DEPTHWISE):
        return sums[:, None], count
    # The outputs of a group stand together, and meet the inputs of their group.
    by_group = sums.reshape(layer.groups, -1).T
    return np.repeat(by_group, layer.filters // layer.groups, axis=-1), count


def _squares_of_einsum(layer: Any, x: np.ndarray) -> tuple[np.ndarray, int]:
    left = layer.equation.replace(" ", "").split("->")[0]
    labels, kernel = left.split(",")
    free = x.ndim - len(labels.replace("...", ""))
    before, dots, after = labels.partition("...")
    axes = [*before, *[None] * (free if dots else 0), *after]
    shared = [label for label in kernel if label in axes]
    summed = tuple(i for i, label in enumerate(axes) if label not in shared)
    kept = [label for label in axes if label in shared]
    sums = x.sum(axis=summed).transpose([kept.index(label) for label in shared])
    sizes = iter(sums.shape)
    shape = [next(sizes) if label in shared else 1 for label in kernel]
    return sums.reshape(shape), x.size // max(1, sums.size)


@contextlib.contextmanager
def _watching(
    model: keras.Model, wanted: set[int], sums: dict[int, tuple[Any, int]]
) -> Iterator[None]:
    """Have the layers add up the squares of what they are called with."""
    watched = []
    for layer in model._flatten_layers():
        variable = _kernel_of(layer)
        if variable is not None and id(variable) in wanted:
            watched.append(layer)
            call = functools.partial(_call, layer, layer.call, id(variable), sums)
            vars(layer)["call"] = call  # not a state that Keras should track
    try:
        yield
    finally:
        for layer in watched:
            del vars(layer)["call"]


def _call(
    layer: Any,
    original: Any,
    key: int,
    sums: dict[int, tuple[Any, int]],
    inputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not kwargs.get("reverse"):  # an embedding as an output layer
        x = ops.convert_to_numpy(ops.cast(inputs, "float32"))
        squares, count = squares_of_inputs(layer, x)
        total, positions = sums.get(key, (0.0, 0))
        sums[key] = total + squares, positions + count
    return original(inputs, *args, **kwargs)


def _kernel_of(layer: Layer) -> keras.Variable | None:
    if not (isinstance(layer, _WATCHED) and layer.built) or "call" in vars(layer):
        return None
    name = "_embeddings" if isinstance(layer, Embedding) else "_kernel"
    if isinstance(layer, _DEPTHWISE):
        name = "kernel"
    return vars(layer).get(name)


def _root_mean(found: tuple[Any, int] | None) -> Any:
    if found is None or not found[1]:
        return np.float32(1.0)
    return np.sqrt(found[0] / found[1]).astype("float32")
