"""A step size per scalar: its equation, and the posterior under it."""

import numpy as np
import pytest
from keras import ops
from samplers import reference

from keras_bayestune import Collapsed, JointLangevin, LaplacePrior
from keras_bayestune.noise import Gaussian
from keras_bayestune.samplers import (
    DECAY,
    PartiallyAdaptiveMetric,
    ScalarMetric,
)
from keras_bayestune.samplers.partially_adaptive_metric import SMALLEST_FACTORED
from keras_bayestune.updates.joined import SMALL
from keras_bayestune.updates.sampled import Single, Weight, weight_update

COORDINATES = 60_000  # of each kind
SIZE = 1000.0
DEVIATIONS = np.repeat([0.2, 0.35], COORDINATES).astype("float32")
OBSERVATION, BETA = 0.5, 10.0
ADAPTED = 100  # updates, as burn-in


def test_factor():
    metric = PartiallyAdaptiveMetric(exponent=0.3, floor=0.02)
    relative = np.array([0.0, 0.4, 7.0], "float32")
    factor = ops.convert_to_numpy(metric.factor(ops.convert_to_tensor(relative)))
    np.testing.assert_allclose(factor, (relative + 0.02) ** -0.3, rtol=1e-6)


def test_only_large_weights_are_factored():
    metric = PartiallyAdaptiveMetric()
    assert metric.is_factored((SMALLEST_FACTORED // 2, 2))
    assert not metric.is_factored((SMALLEST_FACTORED // 2 - 1, 2))
    assert not metric.is_factored((SMALLEST_FACTORED,))  # has no columns
    assert metric.initial_slots((3, 4)) == {"gradient_square": 0.0}
    assert metric.initial_slots((SMALLEST_FACTORED, 2)) == {}
    # Weights that are updated as one have no rows and columns.
    assert SMALL <= SMALLEST_FACTORED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exponent": 0.6}, r"exponent.*\[0, 0\.5\].*0\.6"),
        ({"exponent": float("nan")}, "exponent"),
        ({"floor": 0.0}, "floor.*above 0"),
        ({"floor": float("inf")}, "floor"),
        ({"exponent": "a"}, "exponent.*'a'"),
        ({"floor": "0.1"}, "floor.*'0.1'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PartiallyAdaptiveMetric(**arguments)


def test_config():
    metric = PartiallyAdaptiveMetric(exponent=0.4, floor=0.003)
    again = PartiallyAdaptiveMetric.from_config(metric.get_config())
    assert (again.exponent, again.floor) == (0.4, 0.003)


def test_no_exponent_is_the_scalar_metric():
    assert isinstance(PartiallyAdaptiveMetric(0.0), ScalarMetric)
    factor = PartiallyAdaptiveMetric(0.0).factor(ops.convert_to_tensor([0.2, 30.0]))
    np.testing.assert_array_equal(ops.convert_to_numpy(factor), [1.0, 1.0])


def _stationary_means(sampler, ratio, burn_in, samples):
    """E[d] and E[score] of both kinds of coordinate, and the mean factors of h."""
    prior = LaplacePrior(2.0, BETA, scale_init=0.2)
    precision = ops.convert_to_tensor(1.0 / (DEVIATIONS**2 * SIZE))
    slots = {**sampler.initial_slots(prior), **sampler.metric.initial_slots((1,))}
    names = sorted(slots)

    def kinds(x):
        return ops.mean(ops.reshape(x, (2, COORDINATES)), axis=1)

    def body(t, state):
        d, *old, mean_square, total = state
        t = ops.cast(t, "int32") + 1
        gradient = (d - OBSERVATION) * precision
        mean_square = DECAY * mean_square + (1 - DECAY) * ops.mean(gradient**2)
        power = ops.power(DECAY, ops.cast([t, ops.minimum(t, ADAPTED)], "float32"))
        correction, of_squares = 1.0 - power[0], 1.0 - power[1]
        step = reference.step_of(effective_size=SIZE)._replace(
            count=t, adapting=t <= ADAPTED, bias_correction=of_squares
        )
        streams = tuple(range(sampler.num_noises))
        single = Single(ratio * SIZE, mean_square / correction, 0.0, streams)
        weight = Weight(d, None, dict(zip(names, old, strict=True)))
        arrays = weight, ops.zeros_like(d), gradient, None
        d, _, new = weight_update(step, sampler, prior)(arrays, single)
        relative = new["gradient_square"] / of_squares * correction / mean_square
        factor = sampler.metric.factor(relative)
        score = sampler.score(d, new, prior)
        means = ops.stack([kinds(d), kinds(score), kinds(factor)])
        total = total + ops.cast(t > burn_in, "float32") * means
        return (d, *(new[name] for name in names), mean_square, total)

    draws = [
        reference.posterior_draws(2.0, BETA, OBSERVATION, s, COORDINATES)
        for s in DEVIATIONS[[0, -1]]
    ]
    start = (
        ops.convert_to_tensor(np.concatenate(draws)),
        *(ops.full((2 * COORDINATES,), slots[name]) for name in names),
        ops.zeros(()),
        ops.zeros((3, 2)),
    )
    end = ops.fori_loop(0, burn_in + samples, body, start)
    return ops.convert_to_numpy(end[-1]) / samples


@pytest.mark.parametrize(
    ("sampler", "bound"),
    [
        (lambda metric: Collapsed(metric, Gaussian()), 0.035),
        (lambda metric: JointLangevin(0.03, metric, Gaussian()), 0.04),
    ],
    ids=["Collapsed", "JointLangevin"],
)
def test_hits_the_posterior_of_either_kind(sampler, bound):
    """Two kinds of coordinate with step sizes that differ: each has its posterior."""
    metric = PartiallyAdaptiveMetric(exponent=0.4, floor=0.02)
    ratio = 0.02 * 0.2**2
    *means, factors = _stationary_means(sampler(metric), ratio, 300, 100)
    for kind, deviation in enumerate(DEVIATIONS[[0, -1]]):
        exact = reference.posterior_means(2.0, BETA, OBSERVATION, deviation)[[0, 2]]
        np.testing.assert_allclose([m[kind] for m in means], exact, rtol=bound)
    assert factors[1] > 1.3 * factors[0]
