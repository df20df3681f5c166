"""Several small tensors as one, so that one loop serves them all."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.noise import Noise
from keras_bayestune.samplers import Step

Tensor = Any  # a backend tensor

# XLA takes a tenth of a second to compile the update of a weight, however small, and
# PyTorch a millisecond to run it; two thirds of the weights of a BERT are this small.
SMALL = 1 << 14  # scalars


def joined(trees: Sequence[Any]) -> Any:
    """Return one nested structure whose leaves are the trees' leaves, flat, in a row.

    A single tree is returned as it is. Leaves are tensors or `None`.
    """
    if len(trees) == 1:
        return trees[0]
    return keras.tree.map_structure(
        lambda *leaves: (
            None
            if leaves[0] is None
            else ops.concatenate([ops.reshape(leaf, (-1,)) for leaf in leaves])
        ),
        *trees,
    )


def separated(tree: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Undo `joined`: one tree for each shape."""
    if len(shapes) == 1:
        return [tree]
    trees, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        trees.append(
            keras.tree.map_structure(
                lambda leaf: (
                    None if leaf is None else ops.reshape(leaf[start:end], shape)  # noqa: B023
                ),
                tree,
            )
        )
        start = end
    return trees


def per_scalar(
    values: Tensor, places: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> Tensor:
    """Return `values[place]` of each tensor, for a single one a scalar.

    Of several joined ones each scalar gets that of the tensor it is in.
    """
    if len(places) == 1:
        return values[places[0]]
    sizes = [math.prod(shape) for shape in shapes]
    return ops.take(values, np.repeat(np.asarray(places, "int32"), sizes))


def drawing(
    noise: Noise,
    step: Step,
    streams: Sequence[Sequence[int]],
    shapes: Sequence[tuple[int, ...]],
) -> Callable[[int, tuple[int, ...], int], Tensor]:
    """Return `draw(k, shape, start)` for one tensor, or for several as one.

    Each tensor has its streams: joined or single, it draws the same.

    Args:
        noise: What to draw.
        step: Scalars of the update.
        streams: Of the k-th noise of each tensor.
        shapes: Of the tensors.
    """
    if len(shapes) == 1:
        return lambda k, shape, start: noise(
            step.seed, step.count, streams[k][0], shape, start
        )
    sizes = [math.prod(shape) for shape in shapes]
    whole = functools.cache(
        lambda k: noise.in_a_row(step.seed, step.count, streams[k], sizes)
    )
    return lambda k, shape, start: whole(k)[start : start + math.prod(shape)]
