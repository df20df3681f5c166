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


class Elementwise:
    """`function(arrays, scalars, factors, start)`, elementwise, with few passes.

    Called as `(arrays, scalars, factors)`. Where XLA compiles the train step, it makes
    one loop over memory of it. TensorFlow does without XLA on a CPU unless told
    otherwise; there the function alone is compiled, once for all arrays of one shape.
    PyTorch on a CPU would read and write the whole array at each operation; there the
    function gets pieces, flat or of whole rows, that begin at position `start`.

    Args:
        function: Takes nested tuples and dicts of arrays of one shape and `None`, and
            of numbers; then `None`, or one factor for each row and one for each column
            (the last axis), in shapes that broadcast; returns arrays of that shape in
            the same way. It must not read tensors from outside that change from one
            call to the next.
    """

    def __init__(self, function: Callable[[Any, Any, Any, int], Any]):
        self._function = function
        self._compiled: dict[Any, Any] = {}  # on TensorFlow, by shape

    def __call__(
        self, arrays: Any, scalars: Any = (), factors: tuple[Any, Any] | None = None
    ) -> Any:
        """Return the function's value at `arrays`, `scalars` and `factors`."""
        backend = keras.backend.backend()
        if backend == "jax":
            return self._function(arrays, scalars, factors, 0)
        present = [a for a in keras.tree.flatten(arrays) if a is not None]
        shape = tuple(present[0].shape)
        if backend == "tensorflow":
            return self._on_tensorflow(arrays, scalars, factors, shape)
        if math.prod(shape) <= PIECE or present[0].device.type != "cpu":
            return self._function(arrays, scalars, factors, 0)
        return self._in_pieces(arrays, scalars, factors, shape)

    def _in_pieces(
        self, arrays: Any, scalars: Any, factors: Any, shape: tuple[int, ...]
    ) -> Any:
        def write(whole: Any, part: Any) -> None:
            whole[start : start + len(part)] = part

        view: tuple[int, ...] = (math.prod(shape),)
        length = PIECE
        columns, part_factors = 1, None
        if factors is not None:
            # Whole rows, so many that `start` is a multiple of 32.
            columns = shape[-1]
            view = (view[0] // columns, columns)
            length = max(PIECE // columns // 32, 1) * 32
            row, column = factors[0].reshape(-1, 1), factors[1].reshape(1, -1)
        flat = _each(lambda array: array.reshape(view), arrays)
        result = None
        for start in range(0, view[0], length):
            end = start + length
            piece = _each(lambda array: array[start:end], flat)  # noqa: B023
            if factors is not None:
                part_factors = row[start:end], column
            part = self._function(piece, scalars, part_factors, start * columns)
            if result is None:
                result = _each(lambda p: p.new_empty(view), part)
            _each(write, result, part)
        return _each(lambda array: array.reshape(shape), result)

    def _on_tensorflow(
        self, arrays: Any, scalars: Any, factors: Any, shape: tuple[int, ...]
    ) -> Any:
        import tensorflow as tf

        # Eagerly each call would be compiled anew; on macOS TensorFlow lacks XLA.
        small = math.prod(shape) < SMALLEST_COMPILED
        if small or tf.executing_eagerly() or sys.platform == "darwin":
            return self._function(arrays, scalars, factors, 0)
        if shape not in self._compiled:
            # One for each shape: TensorFlow warns of one that is traced often.
            self._compiled[shape] = tf.function(
                lambda arrays, scalars, factors: self._function(
                    arrays, scalars, factors, 0
                ),
                jit_compile=True,
                autograph=False,
            )
        # An integer as it is would be compiled in. Of variables, too.
        scalars = _each(lambda n: tf.constant(n) if type(n) is int else n, scalars)
        arrays = _each(tf.convert_to_tensor, arrays)
        return self._compiled[shape](arrays, scalars, factors)


def _each(change: Callable[..., Any], *trees: Any) -> Any:
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else change(*leaves), *trees
    )
