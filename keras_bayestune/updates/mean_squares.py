"""Sums and means of the squares of a gradient, with one pass over it."""

import functools
import math
from typing import Any

import keras
from keras import ops

from keras_bayestune.updates import elementwise

Tensor = Any  # a backend tensor
Shapes = dict[str, tuple[int, ...]]


def squares_of(gradient: Tensor, shapes: Shapes) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of squares, and the mean squares of rows, columns or both.

    Args:
        gradient: float32.
        shapes: Of these means by name; a column is what the last axis numbers, a row
            what the others do: `(*gradient.shape[:-1], 1)` or `(1, ..., columns)`.
    """
    if keras.backend.backend() == "torch" and elementwise.runs_on_cpu(gradient):
        return _in_pieces(gradient, shapes)
    return _compiled(tuple(shapes.items()))(gradient)


@functools.cache
def _compiled(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> elementwise.Compiled:
    def squares(gradient: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        square = ops.square(gradient)
        last = len(gradient.shape) - 1
        means = {
            name: ops.mean(
                square,
                axis=last if shape[-1] == 1 else tuple(range(last)),
                keepdims=True,
            )
            for name, shape in shapes
        }
        if not means:
            return ops.sum(square), means
        size = float(math.prod(gradient.shape))
        return size * ops.mean(next(iter(means.values()))), means

    return elementwise.Compiled(squares)


def _in_pieces(gradient: Any, shapes: Shapes) -> tuple[Any, dict[str, Any]]:
    """A piece at a time, so that the squares stay in cache."""
    import torch

    if not shapes:
        return torch.linalg.vector_norm(gradient).square(), {}
    matrix = gradient.reshape(-1, gradient.shape[-1])
    count, columns = matrix.shape
    rows, sums = matrix.new_empty(count), matrix.new_zeros(columns)
    length = max(elementwise.PIECE // columns, 1)
    for start in range(0, count, length):
        square = matrix[start : start + length].square()
        rows[start : start + length] = square.mean(1)
        sums += square.sum(0)
    means = {
        name: (rows if shape[-1] == 1 else sums / count).reshape(shape)
        for name, shape in shapes.items()
    }
    return rows.sum() * columns, means
