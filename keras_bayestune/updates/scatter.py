"""Reads and writes a few scalars of a variable without touching the others."""

import importlib
import types

import keras
import numpy as np

_FAST_PATHS = {
    "jax": "keras_bayestune.updates.scatter_jax",
    "tensorflow": "keras_bayestune.updates.scatter_tensorflow",
    "torch": "keras_bayestune.updates.scatter_torch",
}


def gather_flat(variable: keras.Variable, indices: np.ndarray) -> np.ndarray:
    """Return the scalars of a variable at flat indices, as a NumPy copy.

    Args:
        variable: A Keras variable of any shape.
        indices: Flat (C order) indices, integers, one-dimensional.

    Returns:
        Array of the variable's dtype and the shape of `indices`.

    Examples:
        >>> import keras, numpy as np
        >>> variable = keras.Variable([[1.0, 2.0], [3.0, 4.0]])
        >>> gather_flat(variable, np.array([0, 3])).tolist()
        [1.0, 4.0]
    """
    fast_path = _fast_path()
    if fast_path is not None and fast_path.supports(variable):
        return fast_path.gather_flat(variable, indices)
    return gather_by_copy(variable, indices)


def assign_flat(
    variable: keras.Variable, indices: np.ndarray, values: np.ndarray
) -> None:
    """Write scalars of a variable at flat indices; the others keep their bits.

    The variable is changed in place where the backend can: time and memory are those
    of the written scalars. On JAX it is copied instead while something else holds its
    array, such as a variable that was assigned from this one.

    Args:
        variable: A Keras variable of any shape.
        indices: Flat (C order) indices, integers, one-dimensional, unique.
        values: New values, of the shape of `indices`; cast to the variable's dtype.

    Examples:
        >>> import keras, numpy as np
        >>> variable = keras.Variable([[1.0, 2.0], [3.0, 4.0]])
        >>> assign_flat(variable, np.array([0, 3]), np.array([9.0, 8.0]))
        >>> keras.ops.convert_to_numpy(variable.value).tolist()
        [[9.0, 2.0], [3.0, 8.0]]
    """
    if len(indices) == 0:
        return
    values = np.asarray(values).astype(variable.dtype)
    fast_path = _fast_path()
    if fast_path is not None and fast_path.supports(variable):
        fast_path.assign_flat(variable, indices, values)
    else:
        assign_by_copy(variable, indices, values)


def read_whole(variable: keras.Variable) -> np.ndarray:
    """Return all scalars of a variable bit for bit, as a NumPy copy.

    Args:
        variable: A Keras variable of any shape.

    Returns:
        Array of the variable's dtype and shape.

    Examples:
        >>> import keras
        >>> read_whole(keras.Variable([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    fast_path = _fast_path()
    if fast_path is not None:
        return fast_path.read_whole(variable)
    return keras.ops.convert_to_numpy(variable.value)


def assign_whole(variable: keras.Variable, values: np.ndarray) -> None:
    """Write all scalars of a variable bit for bit.

    Args:
        variable: A Keras variable of any shape.
        values: Array of the variable's dtype and shape; not kept.

    Examples:
        >>> import keras, numpy as np
        >>> variable = keras.Variable([1.0, 2.0])
        >>> assign_whole(variable, np.array([3.0, 4.0], "float32"))
        >>> read_whole(variable).tolist()
        [3.0, 4.0]
    """
    fast_path = _fast_path()
    if fast_path is not None:
        fast_path.assign_whole(variable, values)
    else:
        variable.assign(values.copy())


def gather_by_copy(variable: keras.Variable, indices: np.ndarray) -> np.ndarray:
    """`gather_flat` for any backend: copies the whole variable to the host."""
    return read_whole(variable).reshape(-1)[indices]


def assign_by_copy(
    variable: keras.Variable, indices: np.ndarray, values: np.ndarray
) -> None:
    """`assign_flat` for any backend: copies the whole variable there and back."""
    array = np.ascontiguousarray(read_whole(variable)).reshape(variable.shape)
    array.reshape(-1)[indices] = values
    assign_whole(variable, array)


def backend_name() -> str:
    """Name of the Keras backend, for records that say what wrote them.

    Examples:
        >>> backend_name() in ("jax", "tensorflow", "torch")
        True
    """
    return keras.config.backend()


def _fast_path() -> types.ModuleType | None:
    name = _FAST_PATHS.get(backend_name())
    return importlib.import_module(name) if name else None
