"""`gather_flat` and `assign_flat` on TensorFlow: gather and scatter in place."""

import keras
import numpy as np
import tensorflow as tf


def supports(variable: keras.Variable) -> bool:
    """Whether the variable is one tensor with axes, not one mirrored per replica."""
    mirrored = isinstance(variable.value, tf.distribute.DistributedValues)
    return len(variable.shape) > 0 and not mirrored


def gather_flat(variable: keras.Variable, indices: np.ndarray) -> np.ndarray:
    """See `scatter.gather_flat`."""
    coordinates = np.stack(np.unravel_index(indices, variable.shape), axis=-1)
    return np.array(tf.gather_nd(variable.value, coordinates))


def assign_flat(
    variable: keras.Variable, indices: np.ndarray, values: np.ndarray
) -> None:
    """See `scatter.assign_flat`."""
    coordinates = np.stack(np.unravel_index(indices, variable.shape), axis=-1)
    variable.value.scatter_nd_update(coordinates, values)


def read_whole(variable: keras.Variable) -> np.ndarray:
    """See `scatter.read_whole`."""
    return keras.ops.convert_to_numpy(variable.value)


def assign_whole(variable: keras.Variable, values: np.ndarray) -> None:
    """See `scatter.assign_whole`."""
    variable.assign(values)
