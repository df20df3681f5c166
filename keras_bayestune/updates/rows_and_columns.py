"""Mean squares of the rows and the columns of gradients, and what comes of them."""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.updates import pieces

Tensor = Any  # a backend tensor

_SMALLEST = 1e-30  # a mean square, as a divisor


class RowsAndColumns:
    """Rows and columns of several weights in one flat tensor of F numbers.

    A column is what the last axis numbers, a row what the others do. First come the
    rows of the first weight, then its columns, then the next weight.

    Args:
        shapes: Shape of each weight, of two dimensions or more.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = [tuple(shape) for shape in shapes]
        rows = [math.prod(shape[:-1]) for shape in self.shapes]
        columns = [shape[-1] for shape in self.shapes]
        sizes = [size for pair in zip(rows, columns, strict=True) for size in pair]
        self._starts = np.cumsum([0, *sizes])
        self.size = int(self._starts[-1])
        # The place of every number's unit: s, or the mean of its weight's rows.
        unit = [u for k in range(len(rows)) for u in (0, 1 + k)]
        self._unit = np.repeat(np.asarray(unit, "int32"), sizes)
        self._row = np.flatnonzero(self._unit == 0).astype("int32")
        self._weight = np.repeat(np.arange(len(rows), dtype="int32"), rows)
        self._rows = np.asarray(rows, "float32")

    def relative(self, squares: Tensor, mean_square: Tensor) -> Tensor:
        """Return rows as multiples of s, columns of the mean of their weight's rows.

        Args:
            squares: float32 `(F,)`, mean squares.
            mean_square: float32 scalar, s.
        """
        sums = ops.segment_sum(
            ops.take(squares, self._row), self._weight, len(self._rows)
        )
        means = sums / ops.convert_to_tensor(self._rows)
        units = ops.concatenate([ops.reshape(mean_square, (1,)), means])
        return squares / ops.maximum(ops.take(units, self._unit), _SMALLEST)

    def joined(self, lines: Sequence[tuple[Tensor, Tensor] | None]) -> Tensor:
        """Return rows and columns of each weight as one flat tensor; `None` is 0.

        Args:
            lines: Of each weight, as `mean_squares` returns them.
        """
        parts: list[Tensor] = []
        for shape, pair in zip(self.shapes, lines, strict=True):
            if pair is None:
                pair = ops.zeros(math.prod(shape[:-1])), ops.zeros(shape[-1])
            parts.extend(pair)
        return ops.concatenate(parts)

    def of_weight(self, k: int, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts of weight `k`, in shapes whose product has the weight's."""
        shape = self.shapes[k]
        start, middle, end = self._starts[2 * k : 2 * k + 3]
        row = ops.reshape(flat[start:middle], (*shape[:-1], 1))
        return row, ops.reshape(flat[middle:end], (1,) * (len(shape) - 1) + shape[-1:])


def mean_squares(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of each row and of each column, both flat."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _on_tensorflow(tuple(gradient.shape))(gradient)
    if backend == "torch" and gradient.device.type == "cpu":
        return _in_pieces(gradient)
    return _mean_squares(gradient)


def _mean_squares(gradient: Tensor) -> tuple[Tensor, Tensor]:
    square = ops.square(gradient)
    last = len(gradient.shape) - 1
    rows = ops.reshape(ops.mean(square, axis=last), (-1,))
    return rows, ops.mean(square, axis=tuple(range(last)))


@functools.cache
def _on_tensorflow(shape: tuple[int, ...]) -> Any:
    """One function for each shape: TensorFlow warns of one that is traced often."""
    import tensorflow as tf

    # On macOS TensorFlow lacks XLA.
    compiled = sys.platform != "darwin"
    return tf.function(_mean_squares, jit_compile=compiled, autograph=False)


def _in_pieces(gradient: Any) -> tuple[Any, Any]:
    """A piece at a time, so that the squares stay in cache."""
    matrix = gradient.reshape(-1, gradient.shape[-1])
    count, columns = matrix.shape
    rows, sums = matrix.new_empty(count), matrix.new_zeros(columns)
    length = max(pieces.PIECE // columns, 1)
    for start in range(0, count, length):
        square = matrix[start : start + length].square()
        rows[start : start + length] = square.mean(1)
        sums += square.sum(0)
    return rows, sums / count
