"""`gather_flat` and `assign_flat` on JAX: compiled once per shape, in place."""

import functools
import sys
import types

import jax
import keras
import numpy as np

# Copying a small variable costs less than compiling a scatter for its shape.
_MIN_SCALARS = 1 << 16


def supports(variable: keras.Variable) -> bool:
    """Whether the variable is large enough to be worth a compiled scatter."""
    return int(np.prod(variable.shape)) >= _MIN_SCALARS


def gather_flat(variable: keras.Variable, indices: np.ndarray) -> np.ndarray:
    """See `scatter.gather_flat`."""
    count = len(indices)
    if count == 0:
        return np.empty(0, variable.dtype)
    coordinates = np.unravel_index(_padded(indices), variable.shape)
    gathered = _gather(variable.value, _narrowed(coordinates))
    return np.array(gathered)[:count]


def assign_flat(
    variable: keras.Variable, indices: np.ndarray, values: np.ndarray
) -> None:
    """See `scatter.assign_flat`."""
    coordinates = np.unravel_index(_padded(indices), variable.shape)
    # `one.assign(other)` makes two variables share one array: donated by one of them,
    # it would be deleted for the other.
    donate = _references(variable) <= _references_of_one_holder()
    array = variable.value
    # A sharding that is asked for commits the result to its devices, and whatever is
    # compiled for uncommitted arrays, such as a train step, would be compiled again.
    sharded = len(array.sharding.device_set) > 1
    scatter = _scatter(array.sharding if sharded else None, donate)
    variable.assign(scatter(array, _narrowed(coordinates), _padded(values)))


def read_whole(variable: keras.Variable) -> np.ndarray:
    """See `scatter.read_whole`."""
    return np.array(variable.value)


def assign_whole(variable: keras.Variable, values: np.ndarray) -> None:
    """See `scatter.assign_whole`."""
    # A copy: JAX may take the memory of the array that it is given.
    variable.assign(np.array(values))


def _references(holder: keras.Variable | types.SimpleNamespace) -> int:
    array = holder.value
    return sys.getrefcount(array)


@functools.cache
def _references_of_one_holder() -> int:
    """`_references` of an array that nothing else holds; Python versions differ."""
    return _references(types.SimpleNamespace(value=jax.numpy.zeros(1)))


def _padded(array: np.ndarray) -> np.ndarray:
    """Repeats the last entry up to a power of two.

    JAX compiles once per length; without padding every delta would compile anew.
    Writing the last scalar more than once with one value changes nothing.
    """
    length = 1 << (len(array) - 1).bit_length()
    return np.concatenate([array, np.repeat(array[-1:], length - len(array))])


def _narrowed(coordinates: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    # Coordinates, not flat indices: they fit int32 for any variable (JAX has no
    # int64 by default), and a sharded variable stays sharded.
    return tuple(axis.astype("int32") for axis in coordinates)


@jax.jit
def _gather(array, coordinates):
    return array[coordinates]


@functools.lru_cache(maxsize=64)
def _scatter(sharding, donate):
    """A scatter that keeps the array's sharding, and reuses its buffer or copies it."""

    def scatter(array, coordinates, values):
        return array.at[coordinates].set(values)

    donated = 0 if donate else ()
    return jax.jit(scatter, donate_argnums=donated, out_shardings=sharding)
