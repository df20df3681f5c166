"""`stateless_apply` is a function of its arguments: nothing else is written to."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, SparseMask, SparseOptimizer

# The first one is large enough for an update in pieces, the others share a block.
SHAPES = {"large": (600, 500), "kernel": (3, 4), "bias": (4,), "head": (2,)}


def new_variables():
    rng = np.random.default_rng(1)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for name, shape in SHAPES.items()
    ]


def stage_one():
    return BayesTuneSGLD(
        0.01,
        warmup_steps=0,
        burn_in_steps=0,
        thinning=1,
        exclude="head",
        seed=5,
        second_moment=True,
    )


def stage_two():
    indices = {"large": [0, 7, 299_999], "kernel": [1], "bias": [], "head": [0, 1]}
    mask = SparseMask(indices, SHAPES)
    return SparseOptimizer(keras.optimizers.Adam(0.01), mask)


def bits(tensors):
    return [ops.convert_to_numpy(tensor).tobytes() for tensor in tensors]


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Keras has no stateless_apply on TensorFlow",
)
@pytest.mark.parametrize("new_optimizer", [stage_one, stage_two])
def test_stateless_apply_writes_into_nothing(new_optimizer):
    variables, optimizer = new_variables(), new_optimizer()
    optimizer.build(variables)
    gradients = [ops.ones(shape) for shape in SHAPES.values()]
    everything = variables + optimizer.variables
    given = [v.value for v in optimizer.variables], [v.value for v in variables]
    before = bits(everything)
    first = optimizer.stateless_apply(given[0], gradients, given[1])
    assert bits(everything) == bits(given[1] + given[0]) == before
    after_one = bits(first[0] + first[1])
    second = optimizer.stateless_apply(first[1], gradients, first[0])
    assert bits(first[0] + first[1]) == after_one
    assert bits(everything) == before

    # It returns what `apply` does.
    for found in (first, second):
        optimizer.apply(gradients, variables)
        assert bits(variables + optimizer.variables) == bits(found[0] + found[1])
