"""Layers of one path, of towers built by one function, train as those of two paths."""

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, SparseMask, SparseOptimizer


def towers(first, second):
    """Two towers, one on the other, each of a layer of the given name."""
    keras.utils.set_random_seed(1)
    outputs = inputs = keras.Input((4,))
    for name in (first, second):
        x = keras.Input((4,))
        tower = keras.Model(x, keras.layers.Dense(4, "tanh", name=name)(x))
        outputs = tower(outputs)
    return keras.Model(inputs, outputs)


def stage_1(model):
    return BayesTuneSGLD(0.1, warmup_steps=9, burn_in_steps=9, seed=0)


def stage_2(model):
    rng = np.random.default_rng(2)
    indices = [np.sort(rng.choice(v.shape[0], 3, replace=False)) for v in model.weights]
    names = ["one/kernel", "one/bias", "two/kernel", "two/bias"]
    if model.weights[0].path == model.weights[2].path:
        names = ["same/kernel", "same/bias", "same#2/kernel", "same#2/bias"]
    shapes = {n: tuple(v.shape) for n, v in zip(names, model.weights, strict=True)}
    mask = SparseMask(dict(zip(names, indices, strict=True)), shapes)
    return SparseOptimizer(keras.optimizers.SGD(0.5), mask)


@pytest.mark.parametrize("stage", [stage_1, stage_2])
def test_equal_and_different_names_give_equal_weights(stage):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    found = []
    for names in (("same", "same"), ("one", "two")):
        model = towers(*names)
        model.compile(stage(model), "mse")
        for _ in range(3):
            model.train_on_batch(x, x)
        found.append(model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
