"""What holds for every selector: the model is left as it was, and who competes."""

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, LaplacePrior
from keras_bayestune.selectors import (
    SNIP,
    Fisher,
    GradientSum,
    LowRankMagnitude,
    Magnitude,
    Movement,
    ScaleSelector,
    Selector,
)
from tests.selectors.network import Batches, new_data, new_model

SELECTORS = {
    "magnitude": Magnitude(),
    "gradient sum": GradientSum(),
    "fisher": Fisher(),
    "snip": SNIP(),
    "low rank": LowRankMagnitude(rank=1),
    "movement": Movement(keras.optimizers.Adam(1e-2), epochs=1),
    "scale": ScaleSelector(
        BayesTuneSGLD(1e-2, warmup_steps=0, burn_in_steps=1, thinning=1, seed=0),
        epochs=1,
    ),
}


def layered_model():
    """A model with every kind of state, in the middle of a user's training."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="body"),
            keras.layers.BatchNormalization(name="norm", momentum=0.6),
            keras.layers.Dropout(0.3, name="dropout"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), loss="mse", metrics=["mae"])
    x, y = new_data()
    model.fit(x, y, batch_size=5, verbose=0)
    return model, x, y


def bits(variables):
    return [keras.ops.convert_to_numpy(v.value).tobytes() for v in variables]


@pytest.mark.parametrize("name", SELECTORS)
def test_the_model_is_left_as_it_was(name):
    model, x, y = layered_model()
    before = bits(model.variables), bits(model.optimizer.variables)
    compiled = model.optimizer, model.loss, model.metrics, model.train_function
    scores = SELECTORS[name].scores(model, (x, y), batch_size=5)
    assert (bits(model.variables), bits(model.optimizer.variables)) == before
    after = model.optimizer, model.loss, model.metrics, model.train_function
    assert all(a is b for a, b in zip(after, compiled, strict=True) if a != b)
    assert {path: score.shape for path, score in scores.items()} == {
        v.path: tuple(v.shape) for v in model.trainable_variables
    }
    assert all(score.dtype == np.float32 for score in scores.values())
    assert all(np.isfinite(score).all() for score in scores.values())
    model.fit(x, y, batch_size=5, verbose=0)  # and goes on


@pytest.mark.parametrize("name", ["gradient sum", "movement"])
def test_the_model_is_left_as_it_was_after_an_error(name):
    class Broken(Batches):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    model, x, y = layered_model()
    before = bits(model.variables)
    with pytest.raises(Exception, match="the disk is gone"):
        SELECTORS[name].scores(model, Broken(x, y, 5))
    assert bits(model.variables) == before
    model.fit(x, y, batch_size=5, verbose=0)


def test_who_competes():
    selector = Magnitude()
    model = new_model()
    body = {"body/kernel", "body/bias"}
    assert set(selector.scores(model, exclude="^head/")) == body
    model.layers[1].trainable = False
    assert set(selector.scores(model)) == {"head/kernel", "head/bias"}
    model = keras.Sequential(
        [
            keras.Input((4,)),
            LaplacePrior().wrap(keras.layers.Dense(3, name="wrapped")),
            keras.layers.Dense(2, name="plain"),
        ]
    )
    found = selector.scores(model)
    assert len(found) == 2 and all("wrapped" in path for path in found)
    with pytest.raises(ValueError, match="'nothing' in `exclude` matches none"):
        selector.scores(model, exclude=["nothing"])
    with pytest.raises(ValueError, match="None of the 4 trainable variables"):
        selector.scores(model, exclude=["wrapped"])


def test_a_selector_of_ones_own():
    class Depth(Selector):
        def compute(self, variables, training):
            assert training.model is model
            return [np.full(v.shape, i) for i, v in enumerate(variables)]

    class ByPath(Selector):
        def compute(self, variables, training):
            return {v.path: np.ones(v.shape) for v in variables}

    model = new_model()
    scores = Depth().scores(model)
    assert [score.flat[0] for score in scores.values()] == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="ByPath must return a list of 4 arrays.*dict"):
        ByPath().scores(model)
    with pytest.raises(TypeError, match="abstract"):
        Selector()


def test_models_that_cannot_be_scored():
    with pytest.raises(TypeError, match="`model` must be a keras.Model.*Dense"):
        Magnitude().scores(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="has no trainable variables. Build it"):
        Magnitude().scores(keras.Sequential([keras.layers.Dense(2)]))


def test_what_a_gradient_needs():
    x, y = new_data()
    model = new_model()
    for selector in (GradientSum(), SELECTORS["movement"]):
        with pytest.raises(ValueError, match="is not compiled, so there is no loss"):
            selector.scores(model, (x, y))
        with pytest.raises(ValueError, match="Received no data"):
            selector.scores(model, loss="mse")
    with pytest.raises(ValueError, match="batch_size=5 with a Batches"):
        GradientSum().scores(model, Batches(x, y, 5), "mse", batch_size=5)


def test_a_train_step_of_ones_own():
    class Own(keras.Model):
        def train_step(self, *args):
            raise AssertionError

    inputs = keras.Input((4,))
    model = Own(inputs, keras.layers.Dense(2)(inputs))
    x, y = new_data()
    with pytest.raises(ValueError, match="Own overrides `train_step`"):
        GradientSum().scores(model, (x, y), "mse")
    assert Magnitude().scores(model)
