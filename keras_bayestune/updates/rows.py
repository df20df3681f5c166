"""Several small arrays in a row, as one."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any  # a backend tensor


def in_a_row(arrays: Sequence[Any]) -> Tensor:
    """Return one tensor or variable as it is, several as one flat tensor."""
    if len(arrays) == 1:
        return ops.convert_to_tensor(arrays[0])
    return ops.concatenate(
        [a if len(a.shape) == 1 else ops.reshape(a, (-1,)) for a in arrays]
    )


def split(row: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Undo `in_a_row`."""
    if len(shapes) == 1:
        return [row]
    sizes = [math.prod(shape) for shape in shapes]
    if keras.backend.backend() == "torch":
        # Keras's `split` sends the sizes to the device and waits for them.
        parts = row.split(sizes)
    else:
        parts = ops.split(row, np.cumsum(sizes)[:-1].tolist())
    return [
        part if len(shape) == 1 else ops.reshape(part, shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]
