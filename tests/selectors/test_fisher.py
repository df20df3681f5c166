"""The empirical Fisher information against float64."""

import keras
import numpy as np
import pytest

from keras_bayestune.selectors import Fisher
from tests.selectors.network import (
    assert_close,
    batches,
    gradients,
    new_data,
    new_model,
    weights_of,
)


def expected(model, batches_):
    weights = weights_of(model)
    each = [gradients(weights, x, y) for x, y in batches_]
    return {path: sum(g[path] ** 2 for g in each) for path in weights}


@pytest.mark.parametrize("batch_size", [None, 4])
def test_squares_of_single_examples(batch_size):
    x, y = new_data()
    model = new_model()
    scores = Fisher().scores(model, (x, y), "mse", batch_size=batch_size)
    assert_close(scores, expected(model, batches(x, y, 1)))


def test_per_batch():
    x, y = new_data()
    model = new_model()
    selector = Fisher(per_example=False)
    scores = selector.scores(model, (x, y), "mse", batch_size=4)
    assert_close(scores, expected(model, batches(x, y, 4)))


def test_steps_are_examples():
    x, y = new_data()
    model = new_model()
    scores = Fisher(steps=3).scores(model, (x, y), "mse", batch_size=4)
    assert_close(scores, expected(model, batches(x, y, 1)[:3]))


@pytest.mark.parametrize("kind", ["tf.data", "generator"])
def test_batches_of_a_data_set_are_taken_apart(kind):
    x, y = new_data()
    data = (batch for batch in batches(x, y, 4))
    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model = new_model()
    scores = Fisher().scores(model, data, "mse")
    assert_close(scores, expected(model, batches(x, y, 1)))


def test_nested_inputs_and_weights_of_examples():
    x, y = new_data()
    weight = np.linspace(0.2, 1.7, len(x)).astype("float32")
    data = [({"features": x[:6]}, y[:6], weight[:6])]
    data += [({"features": x[6:]}, y[6:], weight[6:])]
    model = _named_input(new_model())
    each = [gradients(weights_of(model), *row) for row in batches(x, y, 1)]
    target = {
        path: sum((w * g[path]) ** 2 for w, g in zip(weight, each, strict=True))
        for path in each[0]
    }
    assert_close(Fisher().scores(model, iter(data), "mse"), target)


def _named_input(model):
    inputs = {"features": keras.Input(model.input_shape[1:], name="features")}
    return keras.Model(inputs, model(inputs["features"]))


@pytest.mark.parametrize("steps", [0, 2.5])
def test_steps_are_checked(steps):
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1"):
        Fisher(steps=steps)
