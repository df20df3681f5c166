"""Stage 1 as a selector: the numbers of `fit` with the same optimizer."""

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD
from keras_bayestune.selectors import ScaleSelector
from tests.selectors.network import (
    FEATURES,
    HIDDEN,
    OUTPUTS,
    Batches,
    chain,
    new_data,
    new_model,
)

# They look at the optimizer alone, and read its scales themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`fit` with BayesTuneSGLD ended")

ARGUMENTS = {"warmup_steps": 2, "burn_in_steps": 3, "thinning": 2, "seed": 5}


def optimizer(**arguments):
    return BayesTuneSGLD(1e-2, **{**ARGUMENTS, **arguments})


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_scores_are_the_posterior_scales_of_a_fit(dropout):
    data = Batches(*new_data(), 10)
    model = chain(
        keras.Input((FEATURES,)),
        keras.layers.Dense(HIDDEN, activation="tanh", name="body"),
        keras.layers.Dropout(dropout, seed=3),
        keras.layers.Dense(OUTPUTS, name="head"),
    )
    model.set_weights(new_model().get_weights())
    model.compile(optimizer(), "mse")
    selector = ScaleSelector(optimizer(), steps=7)
    scores = selector.scores(model, data)
    assert not selector.optimizer.built
    model.fit(data, epochs=7, verbose=0)
    scales = model.optimizer.posterior_scales()
    assert set(scores) == set(scales) and len(scores) == 4
    for path, score in scores.items():
        assert np.array_equal(score, scales[path])


def test_excluded_variables_carry_no_prior():
    # Told by the optimizer or asked for with the scores: the same chain.
    data = Batches(*new_data(), 10)
    told = ScaleSelector(optimizer(exclude=["head"]), epochs=6)
    asked = ScaleSelector(optimizer(), epochs=6)
    model = new_model()
    expected = told.scores(model, data, "mse")
    scores = asked.scores(model, data, "mse", exclude=["head"])
    assert set(scores) == set(expected) == {"body/kernel", "body/bias"}
    for path, score in scores.items():
        assert np.array_equal(score, expected[path])


@pytest.mark.parametrize(
    ("duration", "accumulation", "updates"),
    [({"steps": 4}, None, 4), ({"epochs": 1}, None, 3), ({"epochs": 3}, 2, 4)],
)
def test_a_plan_without_a_sample_fails_before_it_starts(
    duration, accumulation, updates
):
    x, y = new_data()
    selector = ScaleSelector(
        optimizer(gradient_accumulation_steps=accumulation), **duration
    )
    with pytest.raises(
        ValueError, match=f"planned for {updates} updates, .* comes after 5"
    ):
        selector.scores(new_model(), Batches(x, y, 4), "mse")


def test_a_plan_that_nobody_knows_fails_afterwards():
    x, y = new_data()
    data = ((x, y) for _ in range(2))
    selector = ScaleSelector(optimizer(), epochs=1)
    with pytest.raises(ValueError, match="No posterior sample was taken: 2 updates"):
        selector.scores(new_model(), data, "mse")


def test_skipped_updates_are_reported():
    x, y = new_data()
    y[3] = np.nan
    selector = ScaleSelector(optimizer(), epochs=6)
    with pytest.warns(UserWarning, match="6 updates of stage 1 were skipped"):
        scores = selector.scores(new_model(), (x, y), "mse", batch_size=5)
    assert all(np.isfinite(score).all() for score in scores.values())


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="must be a BayesTuneSGLD.*Movement"):
        ScaleSelector(keras.optimizers.Adam(1e-3), epochs=1)
    with pytest.raises(ValueError, match="either `epochs` or `steps`"):
        ScaleSelector(optimizer())
    with pytest.raises(ValueError, match="`epochs` must be an integer >= 1"):
        ScaleSelector(optimizer(), epochs=0)
