"""Models that the first batch builds: no Input, or subclassed."""

import keras
import numpy as np
import pytest

from keras_bayestune import (
    BayesTuneSGLD,
    SparseMask,
    SparseMaskCallback,
    SparseOptimizer,
)

X, Y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
SHAPES = {"a/kernel": (4, 2), "a/bias": (2,), "b/kernel": (2, 3), "b/bias": (3,)}
IN_STEP = keras.backend.backend() == "tensorflow"  # is the model built within one


def sequential():
    return keras.Sequential(
        [keras.layers.Dense(2, name="a"), keras.layers.Dense(3, name="b")]
    )


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = keras.layers.Dense(2, name="a")
        self.norm = keras.layers.BatchNormalization()
        self.b = keras.layers.Dense(3, name="b")

    def call(self, inputs, training=None):
        return self.b(self.norm(self.a(inputs), training=training))


def stage_one():
    # A rate of 0: the anchors are the weights that the model was built with.
    return BayesTuneSGLD(0.0, warmup_steps=1, burn_in_steps=2, thinning=1)


def stage_two():
    mask = SparseMask({**dict.fromkeys(SHAPES, []), "a/kernel": [1]}, SHAPES)
    return SparseOptimizer(keras.optimizers.SGD(0.0), mask)


def fit(model, optimizer, callbacks=()):
    model.compile(optimizer, loss="mse")
    model.fit(X, Y, batch_size=2, epochs=2, callbacks=list(callbacks), verbose=0)


@pytest.mark.filterwarnings("ignore:.*ended without SparseMaskCallback")
@pytest.mark.parametrize("optimizer", [stage_one, stage_two])
def test_without_input(optimizer):
    model = sequential()
    if IN_STEP:
        with pytest.raises(ValueError, match="4 weights have no values yet.*keras.Inp"):
            fit(model, optimizer())
        return
    fit(model, optimizer())
    if optimizer is stage_one:
        anchors = model.optimizer.anchors()
        for anchor, weight in zip(anchors.values(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(anchor, weight)


@pytest.mark.parametrize("make", [sequential, Own])
def test_callback(make):
    model = make()
    select = SparseMaskCallback(fraction=0.5)
    optimizer = BayesTuneSGLD(1e-3, warmup_steps=1, burn_in_steps=2, thinning=1)
    if IN_STEP:
        with pytest.raises(ValueError, match="is not built.*keras.Input, or call it"):
            fit(model, optimizer, [select])
        return
    fit(model, optimizer, [select])
    weights = [w for w in model.weights if keras.backend.is_float_dtype(w.dtype)]
    for anchor, weight in zip(select.anchors.values(), weights, strict=True):
        np.testing.assert_array_equal(anchor, weight.numpy())


@pytest.mark.filterwarnings("ignore:.*ended without SparseMaskCallback")
@pytest.mark.parametrize("make", [sequential, Own])
def test_the_cure(make):
    model = make()
    model(X[:1])
    before = model.get_weights()
    fit(model, stage_one())
    anchors = list(model.optimizer.anchors().values())
    trained = [v.numpy() for v in model.trainable_variables]
    for anchor, weight in zip(anchors, trained, strict=True):
        np.testing.assert_array_equal(anchor, weight)
    np.testing.assert_array_equal(anchors[0], before[0])
