"""Elementwise functions of large arrays, with few passes over memory."""

import math
import sys
from collections.abc import Callable
from typing import Any

import keras

# 1 MiB per float32 array: what an update reads and writes of a piece stays in cache.
PIECE = 1 << 18  # scalars, a multiple of 32
# A smaller array is not worth a compilation.
SMALLEST_COMPILED = 1 << 16  # scalars


def in_pieces(function: Callable[[Any, int], Any], arrays: Any) -> Any:
    """Return `function(arrays, 0)`, an elementwise function of arrays of one shape.

    Where XLA compiles the train step, it makes one loop over memory of it. TensorFlow
    does without XLA on a CPU unless told otherwise; there the function alone is
    compiled. PyTorch on a CPU would read and write the whole array at each operation;
    there `function(piece, start)` is called on flat pieces that begin at position
    `start`.

    Args:
        function: Takes and returns nested tuples and dicts of arrays and `None`.
        arrays: Its argument.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return function(arrays, 0)
    present = [a for a in keras.tree.flatten(arrays) if a is not None]
    shape = tuple(present[0].shape)
    size = math.prod(shape)
    if backend == "tensorflow":
        return _compiled(function, arrays, size)
    if size <= PIECE or present[0].device.type != "cpu":
        return function(arrays, 0)

    def write(whole: Any, part: Any) -> None:
        whole[start : start + len(part)] = part

    flat = _each(lambda array: array.reshape(-1), arrays)
    result = None
    for start in range(0, size, PIECE):
        piece = _each(lambda array: array[start : start + PIECE], flat)  # noqa: B023
        part = function(piece, start)
        if result is None:
            result = _each(lambda p: p.new_empty(size), part)
        _each(write, result, part)
    return _each(lambda array: array.reshape(shape), result)


def _each(change: Callable[..., Any], *trees: Any) -> Any:
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else change(*leaves), *trees
    )


def _compiled(function: Callable[[Any, int], Any], arrays: Any, size: int) -> Any:
    import tensorflow as tf

    # Eagerly each call would be compiled anew; on macOS TensorFlow lacks XLA.
    if size < SMALLEST_COMPILED or tf.executing_eagerly() or sys.platform == "darwin":
        return function(arrays, 0)
    compiled = tf.function(
        lambda arrays: function(arrays, 0), jit_compile=True, autograph=False
    )
    return compiled(_each(tf.convert_to_tensor, arrays))  # of variables, too
