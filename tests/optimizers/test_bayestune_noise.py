"""Noise of the stage-1 optimizer: fresh at each update, for each variable."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, Collapsed, JointLangevin
from keras_bayestune.noise import Gaussian, Rademacher
from keras_bayestune.samplers import ScalarMetric

STEP = 0.01  # size of the noise of one update below


def test_keras_seed_repeats_a_run_without_a_seed():
    draws = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        draws.append(noise_of_updates(seed=None))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert correlations(np.stack(draws[1:])) < 0.5


def noise_of_updates(updates=3, variables=2, seed=7, noise=None, skip=()):
    """Noise of each update and variable: the displacement from the anchor by it."""
    optimizer = BayesTuneSGLD(
        1e-5,  # without gradient the step size is 1
        effective_size=2 / STEP**2,
        sampler=Collapsed(metric=ScalarMetric(), noise=noise),
        warmup_steps=0,
        seed=seed,
    )
    weights = [
        keras.Variable(np.zeros((8, 8), "float32"), name=f"w{i}")
        for i in range(variables)
    ]
    found = []
    for t in range(updates):
        for weight in weights:
            weight.assign(np.zeros((8, 8)))
        value = np.nan if t in skip else 0.0
        optimizer.apply([ops.full((8, 8), value)] * variables, weights)
        if t not in skip:
            found.append([ops.convert_to_numpy(w) / STEP for w in weights])
    return np.array(found)


def correlations(draws):
    """Largest correlation between two different draws."""
    table = np.corrcoef(np.reshape(draws, (-1, 64)))
    return np.abs(table - np.eye(len(table))).max()


@pytest.mark.parametrize("noise", [Rademacher(), Gaussian()], ids=["signs", "normal"])
def test_two_updates_and_two_variables_draw_different_noise(noise):
    draws = noise_of_updates(noise=noise)
    assert draws.shape == (3, 2, 8, 8)
    assert 0.9 < draws.std() < 1.1
    assert correlations(draws) < 0.5  # 4 standard deviations


def test_one_seed_repeats_a_run_and_another_does_not():
    draws = noise_of_updates(seed=7)
    np.testing.assert_array_equal(draws, noise_of_updates(seed=7))
    others = [noise_of_updates(seed=seed) for seed in (8, None, None)]
    assert correlations(np.stack([draws, *others])) < 0.5


def test_noise_does_not_depend_on_other_variables():
    np.testing.assert_array_equal(
        noise_of_updates(variables=2)[:, 0], noise_of_updates(variables=1)[:, 0]
    )


def test_a_skipped_update_uses_no_noise():
    np.testing.assert_array_equal(
        noise_of_updates(updates=4, skip=[1]), noise_of_updates(updates=3)
    )


def test_weight_and_scale_draw_different_noise():
    optimizer = BayesTuneSGLD(
        1e-5,
        effective_size=2.0,
        sampler=JointLangevin(scale_step_size=0.02),
        warmup_steps=0,
        seed=7,
    )
    weight = keras.Variable(np.zeros((8, 8), "float32"), name="w")
    optimizer.apply([ops.zeros((8, 8))], [weight])
    log_scale = ops.convert_to_numpy(optimizer._blocks[0].slots["log_scale"])
    signs = [
        np.sign(ops.convert_to_numpy(weight)),
        np.sign(log_scale - log_scale.mean()),
    ]
    assert correlations(np.stack(signs)) < 0.5


def run_with(spread, learning_rate=1e-3, sampler=None):
    """One update with noise of size 0.1 per scalar, or the sampler's own."""
    optimizer = BayesTuneSGLD(
        learning_rate,
        effective_size=2e2 * learning_rate / 1e-5,
        sampler=sampler,
        warmup_steps=0,
        burn_in_steps=0,
        thinning=1,
        seed=0,
    )
    value = 3.0 + spread * np.where(np.arange(8) % 2, 1.0, -1.0)
    weight = keras.Variable(value.astype("float32"), name="w")
    optimizer.apply([ops.zeros(8)], [weight])
    return optimizer


def test_warns_when_noise_dominates_the_weights():
    optimizer = run_with(spread=0.5)
    message = (
        r"noise of one update, 0\.1, is 20% of the spread of the pre-trained weights, "
        r"0\.5: .* Lower learning_rate \(now 0\.001\) or raise effective_size \(now "
        r"2e\+04\)"
    )
    with pytest.warns(UserWarning, match=message):
        optimizer.posterior_scales()
    optimizer.posterior_scales()  # once: a second warning would be an error
    optimizer.warn_if_noise_dominates()


@pytest.mark.parametrize(
    ("noise_scale", "cure"),
    [
        (None, r"Lower learning_rate \(now 10\)\.$"),
        (1.0, r"or noise_scale \(now 1\)\.$"),
    ],
)
def test_the_cure_fits_an_effective_size_that_was_measured(noise_scale, cure):
    optimizer = BayesTuneSGLD(
        10.0, noise_scale=noise_scale, warmup_steps=1, burn_in_steps=1, seed=0
    )
    weight = keras.Variable(np.arange(8, dtype="float32"), name="w")
    for _ in range(2):
        optimizer.apply([ops.ones(8)], [weight])
    with pytest.warns(UserWarning, match=cure):
        optimizer.warn_if_noise_dominates()


def test_does_not_warn_when_noise_is_small():
    run_with(spread=2.1).posterior_scales()  # 4.8 % of the spread


def test_does_not_warn_without_a_spread_to_compare_with():
    run_with(spread=0.0).posterior_scales()


def test_the_authors_noise_is_judged_by_the_learning_rate():
    run_with(spread=0.5, sampler=Authors()).posterior_scales()
    with pytest.warns(UserWarning, match=r"noise of one update, 0\.1, is 20%"):
        run_with(0.5, learning_rate=0.1, sampler=Authors()).posterior_scales()


def test_no_warning_in_warmup():
    optimizer = BayesTuneSGLD(0.1, effective_size=1e-6, warmup_steps=1, seed=0)
    weight = keras.Variable(np.arange(8, dtype="float32"), name="w")
    optimizer.apply([ops.ones(8)], [weight])
    optimizer.warn_if_noise_dominates()
