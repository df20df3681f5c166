"""The movement of full fine-tuning against float64."""

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, Collapsed
from keras_bayestune.samplers import ScalarMetric
from keras_bayestune.selectors import Movement
from tests.selectors.network import (
    assert_close,
    batches,
    gradients,
    new_data,
    new_model,
    weights_of,
)

# They look at the optimizer alone, and read its scales themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`fit` with BayesTuneSGLD ended")

RATE = 0.07


def descend(weights, batches_, step):
    """Distance from the start after descent, one `step(weights, gradient, t)` each."""
    start = {path: value.copy() for path, value in weights.items()}
    for t, (x, y) in enumerate(batches_, 1):
        step(weights, gradients(weights, x, y), t)
    return {path: np.abs(value - start[path]) for path, value in weights.items()}


def plain(weights, gradient, t):
    for path in weights:
        weights[path] = weights[path] - RATE * gradient[path]


def test_plain_descent():
    x, y = new_data()
    model = new_model()
    selector = Movement(keras.optimizers.SGD(RATE), epochs=3)
    scores = selector.scores(model, (x, y), "mse", batch_size=10)
    assert_close(scores, descend(weights_of(model), [(x, y)] * 3, plain))
    assert not selector.optimizer.built


@pytest.mark.parametrize(
    ("kind", "steps"), [("arrays", 5), ("tf.data", 2), ("tf.data", 5), ("endless", 5)]
)
def test_steps_end_within_an_epoch_or_after_several(kind, steps):
    x, y = new_data(rows=6)
    data, order = (x, y), [(x, y)] * steps  # one batch: `fit` shuffles arrays
    if kind != "arrays":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
        data = data.repeat() if kind == "endless" else data
        order = (batches(x, y, 2) * 2)[:steps]
    model = new_model()
    selector = Movement(keras.optimizers.SGD(RATE), steps=steps)
    assert_close(
        selector.scores(model, data, "mse"), descend(weights_of(model), order, plain)
    )


def test_the_scalar_metric_of_bayestune():
    # Without prior and noise stage 1 is descent at a rate that all scalars share.
    x, y = new_data()
    optimizer = BayesTuneSGLD(
        RATE,
        sampler=Collapsed(metric=ScalarMetric()),
        noise_scale=0.0,
        warmup_steps=4,
        burn_in_steps=4,
        clipvalue=100.0,
    )
    mean_square = 0.0

    def step(weights, gradient, t):
        nonlocal mean_square
        every = np.concatenate([g.ravel() for g in gradient.values()])
        mean_square = 0.999 * mean_square + 0.001 * np.mean(every**2)
        rate = RATE / (np.sqrt(mean_square / (1 - 0.999**t)) + 1e-5)
        for path in weights:
            weights[path] = weights[path] - rate * gradient[path]

    model = new_model()
    scores = Movement(optimizer, steps=4).scores(model, (x, y), "mse", batch_size=10)
    target = descend(weights_of(model), [(x, y)] * 4, step)
    assert_close(scores, target, rtol=2e-4)


def test_variables_without_score_train_along():
    x, y = new_data()
    model = new_model()
    selector = Movement(keras.optimizers.SGD(RATE), epochs=3)
    scores = selector.scores(model, (x, y), "mse", batch_size=10, exclude=["head"])
    target = descend(weights_of(model), [(x, y)] * 3, plain)
    assert_close(scores, {p: d for p, d in target.items() if p.startswith("body")})


def test_arguments_are_checked():
    optimizer = keras.optimizers.SGD(RATE)
    with pytest.raises(TypeError, match="must be a Keras optimizer .* 'adam'"):
        Movement("adam", epochs=1)
    for arguments in ({}, {"epochs": 1, "steps": 1}):
        with pytest.raises(ValueError, match="either `epochs` or `steps`"):
            Movement(optimizer, **arguments)
    with pytest.raises(ValueError, match="`epochs` must be an integer >= 1"):
        Movement(optimizer, epochs=0)
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1"):
        Movement(optimizer, steps=1.5)
