"""A step size per scalar: its equation, and the posterior under it."""

import numpy as np
import pytest
from keras import ops
from samplers import reference

from keras_bayestune import Collapsed, JointLangevin, LaplacePrior
from keras_bayestune.noise import Gaussian, stream_keys
from keras_bayestune.optimizers.weight_block import SMALL
from keras_bayestune.samplers import (
    DECAY,
    PartiallyAdaptiveMetric,
    ScalarMetric,
    bias_correction,
)
from keras_bayestune.samplers.partially_adaptive_metric import SMALLEST_FACTORED
from keras_bayestune.updates.langevin import Lines, Weight, langevin_update

COORDINATES = 60_000  # of each kind
SIZE = 1000.0
DEVIATIONS = np.repeat([0.2, 0.35], COORDINATES).astype("float32")
OBSERVATION, BETA = 0.5, 10.0
ADAPTED = 100  # updates, as burn-in


def test_factor():
    metric = PartiallyAdaptiveMetric(exponent=0.3, floor=0.02)
    relative = np.array([0.0, 0.4, 7.0], "float32")
    (factor,) = metric.factors({"square": ops.convert_to_tensor(3.0 * relative)}, 3.0)
    expected = (relative + 0.02) ** -0.3
    np.testing.assert_allclose(ops.convert_to_numpy(factor), expected, rtol=1e-6)


def test_factors_of_rows_and_columns():
    metric = PartiallyAdaptiveMetric(exponent=0.3, floor=0.02)
    rows = np.array([[0.5], [2.0], [0.1]], "float32")
    columns = np.array([[0.7, 3.0]], "float32")
    state = {"row_square": rows, "column_square": columns}
    state = {name: ops.convert_to_tensor(array) for name, array in state.items()}
    found = [ops.convert_to_numpy(f) for f in metric.factors(state, 0.9)]
    np.testing.assert_allclose(found[0], (rows / 0.9 + 0.02) ** -0.3, rtol=1e-6)
    expected = (columns / rows.mean() + 0.02) ** -0.3
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)


def test_only_large_weights_are_factored():
    metric = PartiallyAdaptiveMetric()
    half = SMALLEST_FACTORED // 2
    assert metric.initial_state((half, 2)) == {
        "row_square": (half, 1),
        "column_square": (1, 2),
    }
    large = SMALLEST_FACTORED  # without rows or without columns
    for shape in ((half - 1, 2), (large,), (large, 1), (1, large), (1, 1, large)):
        assert metric.initial_state(shape) == {"square": shape}
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
    state = {"square": ops.convert_to_tensor([0.2, 30.0])}
    (factor,) = PartiallyAdaptiveMetric(0.0).factors(state, 1.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(factor), [1.0, 1.0])


def _stationary_means(sampler, ratio, burn_in, samples):
    """E[d] and E[score] of both kinds of coordinate, and the mean factors of h."""
    prior = LaplacePrior(2.0, BETA, scale_init=0.2)
    precision = ops.convert_to_tensor(1.0 / (DEVIATIONS**2 * SIZE))
    slots = sampler.initial_slots(prior)
    names = sorted(slots)

    def kinds(x):
        return ops.mean(ops.reshape(x, (2, COORDINATES)), axis=1)

    def body(t, state):
        d, *old, square, mean_square, total = state
        t = ops.cast(t, "int32") + 1
        gradient = (d - OBSERVATION) * precision
        mean_square = DECAY * mean_square + (1 - DECAY) * ops.mean(gradient**2)
        of_square = bias_correction(DECAY, ops.minimum(t, ADAPTED))
        unit = mean_square / bias_correction(DECAY, t) * of_square
        step = reference.step_of(step_size=ratio * SIZE, effective_size=SIZE)._replace(
            count=t,
            adapting=t <= ADAPTED,
            state_square=unit,
            keys=stream_keys(11, t, ops.arange(2, dtype="int32")),
        )
        slots = dict(zip(names, old, strict=True))
        (d, _, new, squares), _ = langevin_update(
            Weight(d, None, slots, {"square": square}),
            ops.zeros_like(d),
            gradient,
            Lines({}, {}),
            step,
            decay=0.0,
            sampler=sampler,
            prior=prior,
        )
        (factor,) = sampler.metric.factors(squares, unit)
        score = sampler.score(d, new, prior)
        means = ops.stack([kinds(d), kinds(score), kinds(factor)])
        total = total + ops.cast(t > burn_in, "float32") * means
        new = [new[name] for name in names]
        return (d, *new, squares["square"], mean_square, total)

    draws = [
        reference.posterior_draws(2.0, BETA, OBSERVATION, s, COORDINATES)
        for s in DEVIATIONS[[0, -1]]
    ]
    start = (
        ops.convert_to_tensor(np.concatenate(draws)),
        *(ops.full((2 * COORDINATES,), slots[name]) for name in names),
        ops.zeros((2 * COORDINATES,)),
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
