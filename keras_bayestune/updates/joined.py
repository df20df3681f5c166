"""Several small tensors as one, so that one loop serves them all."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class PerScalar(NamedTuple):
    """What differs from scalar to scalar where several weights are joined."""

    step_size: Tensor  # float32, flat
    noises: tuple[Tensor, ...]  # float32, flat


def per_scalar(
    noise: Noise,
    step: Step,
    places: Sequence[int],
    streams: Sequence[Sequence[int]],
    shapes: Sequence[tuple[int, ...]],
) -> PerScalar:
    """Return step size and noises of joined tensors: those that each has when single.

    Args:
        noise: What to draw.
        step: Scalars of the update.
        places: Of the tensors, in `step.step_size`.
        streams: For each noise, the stream of each tensor.
        shapes: Of the tensors.
    """
    sizes = [math.prod(shape) for shape in shapes]
    return PerScalar(
        ops.take(step.step_size, np.repeat(np.asarray(places, "int32"), sizes)),
        tuple(noise.in_a_row(step.seed, step.count, one, sizes) for one in streams),
    )
