"""Stationary means against analytic posteriors: what catches a wrong sampler."""

import numpy as np
import pytest
from keras import ops
from samplers import reference

from keras_bayestune import Collapsed, JointLangevin, LaplacePrior
from keras_bayestune.noise import Gaussian, Rademacher, stream_keys

OBSERVATION, DEVIATION, BETA = 0.5, 0.2, 10.0
COORDINATES = 60_000
SIZE = 1000.0


def _stationary_means(sampler, alpha, ratio, burn_in, samples):
    """Average E[d], E|d|, E[score] over many independent coordinates."""
    prior = LaplacePrior(alpha, BETA, scale_init=0.2)
    step_size = ratio * SIZE
    names = sorted(sampler.initial_slots(prior))

    def body(t, state):
        d, slots, total = (
            state[0],
            dict(zip(names, state[1:-1], strict=True)),
            state[-1],
        )
        step = reference.step_of(step_size=step_size, effective_size=SIZE)
        t = ops.cast(t, "int32")
        noises = tuple(
            sampler.noise(stream_keys(11, t, k), (COORDINATES,))
            for k in range(sampler.num_noises)
        )
        gradient = (d - OBSERVATION) / (DEVIATION**2 * SIZE)
        d, slots = sampler.update(d, gradient, slots, noises, step, step_size, prior)
        score = sampler.score(d, slots, prior)
        means = ops.stack([ops.mean(d), ops.mean(ops.abs(d)), ops.mean(score)])
        total = total + ops.cast(t >= burn_in, "float32") * means
        return (d, *(slots[name] for name in names), total)

    initial = sampler.initial_slots(prior)
    start = (
        ops.convert_to_tensor(
            reference.posterior_draws(alpha, BETA, OBSERVATION, DEVIATION, COORDINATES)
        ),
        *(ops.full((COORDINATES,), initial[name]) for name in names),
        ops.zeros((3,)),
    )
    end = ops.fori_loop(0, burn_in + samples, body, start)
    return ops.convert_to_numpy(end[-1]) / samples


def test_reference_values():
    np.testing.assert_allclose(
        reference.posterior_means(2.0, BETA, OBSERVATION, DEVIATION),
        [0.3032, 0.3075, 0.2435],
        atol=5e-5,
    )
    means = reference.posterior_means(1.5, BETA, OBSERVATION, DEVIATION)
    np.testing.assert_allclose(means[[0, 2]], [0.2646, 0.1998], atol=5e-5)


@pytest.mark.parametrize("alpha", [2.0, 1.5])
def test_collapsed_hits_the_posterior(alpha):
    """Within 3 % at h/N = 0.02 s^2; the Monte-Carlo error is about 0.4 %."""
    exact = reference.posterior_means(alpha, BETA, OBSERVATION, DEVIATION)
    sampler = Collapsed(noise=Gaussian())
    coarse = _stationary_means(sampler, alpha, 0.02 * DEVIATION**2, 200, 100)
    np.testing.assert_allclose(coarse, exact, rtol=0.035)


def test_collapsed_bias_shrinks_with_the_step():
    exact = reference.posterior_means(1.5, BETA, OBSERVATION, DEVIATION)
    sampler = Collapsed(noise=Gaussian())
    fine = _stationary_means(sampler, 1.5, 0.005 * DEVIATION**2, 600, 150)
    np.testing.assert_allclose(fine, exact, rtol=0.018)


def test_rademacher_noise_hits_the_scale():
    exact = reference.posterior_means(2.0, BETA, OBSERVATION, DEVIATION)
    sampler = Collapsed(noise=Rademacher())
    coarse = _stationary_means(sampler, 2.0, 0.02 * DEVIATION**2, 200, 100)
    np.testing.assert_allclose(coarse, exact, rtol=0.035)


def test_joint_langevin_hits_the_posterior():
    """Bias of the tamed step on log scale: 8 % to 2 % as the steps shrink."""
    exact = reference.posterior_means(2.0, BETA, OBSERVATION, DEVIATION)
    ratio = 0.02 * DEVIATION**2
    coarse = _stationary_means(JointLangevin(0.05), 2.0, ratio, 200, 100)
    np.testing.assert_allclose(coarse, exact, rtol=0.04)
    fine = _stationary_means(JointLangevin(0.01), 2.0, 0.4 * ratio, 400, 200)
    np.testing.assert_allclose(fine, exact, rtol=0.015)
