"""What holds for every selector; a new one is a row."""

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, SparseMask, selectors
from tests.contracts.tiny import bits, concrete_subclasses, new_data, new_model

SELECTORS = {
    "SNIP": lambda: selectors.SNIP(),
    "ActivationMagnitude": lambda: selectors.ActivationMagnitude(steps=2),
    "BitFit": lambda: selectors.BitFit(),
    "Fisher": lambda: selectors.Fisher(),
    "GradientSum": lambda: selectors.GradientSum(),
    "LowRankMagnitude": lambda: selectors.LowRankMagnitude(rank=1),
    "Magnitude": lambda: selectors.Magnitude(),
    "Movement": lambda: selectors.Movement(keras.optimizers.SGD(0.1), epochs=1),
    "Random": lambda: selectors.Random(seed=3),
    "ScaleSelector": lambda: selectors.ScaleSelector(
        BayesTuneSGLD(1e-2, warmup_steps=0, burn_in_steps=1, thinning=1, seed=0),
        epochs=1,
    ),
    "SmallMagnitude": lambda: selectors.SmallMagnitude(),
}


def scores(name, model=None, **arguments):
    model = model or new_model("sgd")
    keras.utils.set_random_seed(1)
    return SELECTORS[name]().scores(model, new_data(), batch_size=5, **arguments)


def test_every_selector_has_a_row():
    public = concrete_subclasses(selectors, selectors.Selector)
    assert SELECTORS.keys() == public


@pytest.mark.parametrize("name", SELECTORS)
def test_scores_each_scalar_and_leaves_the_model_alone(name):
    model = new_model("adam")
    before = bits(model.variables)
    found = scores(name, model)
    assert bits(model.variables) == before
    shapes = {v.path: tuple(v.shape) for v in model.trainable_variables}
    assert found.keys() <= shapes.keys()
    assert found
    for path, score in found.items():
        assert score.shape == shapes[path]
        assert score.dtype == np.float32
        assert np.isfinite(score).all()
    assert len(set(np.concatenate([s.ravel() for s in found.values()]))) > 1


@pytest.mark.parametrize("name", SELECTORS)
def test_equal_seeds_give_equal_scores(name):
    one, two = scores(name), scores(name)
    assert one.keys() == two.keys()
    np.testing.assert_equal(list(one.values()), list(two.values()))


@pytest.mark.parametrize("name", SELECTORS)
def test_what_is_excluded_has_no_score(name):
    found = scores(name, exclude=["^head/"])
    assert found
    assert not [path for path in found if path.startswith("head/")]


@pytest.mark.parametrize("name", SELECTORS)
def test_the_scores_make_a_mask_of_the_fraction(name):
    found = scores(name)
    mask = SparseMask.from_scores(found, fraction=0.25)
    assert mask.count == sum(score.size for score in found.values()) // 4


@pytest.mark.parametrize("name", SELECTORS)
def test_says_what_it_is(name):
    assert repr(SELECTORS[name]()).startswith(f"{name}(")


@pytest.mark.parametrize("name", SELECTORS)
def test_refuses_what_is_not_a_model(name):
    with pytest.raises(TypeError, match="`model` must be a keras.Model. Received: str"):
        SELECTORS[name]().scores("model", new_data())
