"""One joint update on (weight, log scale) against float64."""

import numpy as np
import pytest
from keras import ops
from samplers import reference

from keras_bayestune import JointLangevin, LaplacePrior

ALPHA, BETA, STEP_SIZE, SIZE, GAMMA, K = 0.3, 17.0, 0.021, 37.0, 0.6, 0.07
PRIOR = LaplacePrior(ALPHA, BETA, scale_init=0.02)
D = np.array([0.31, -0.044, 0.9, -1.7, 0.0123])
U = np.array([-2.2, -0.4, 0.7, -4.1, -3.3])
G = np.array([-0.7, 0.26, 1.9, 0.4, -3.1])
XI = np.array([[0.5, -1.3, 0.8, 2.1, -0.4], [1.4, 0.3, -0.9, 0.2, -2.6]])


def _tensor(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def _update(noise, active=True):
    step = reference.step_of(
        step_size=STEP_SIZE, effective_size=SIZE, noise_scale=GAMMA, active=active
    )
    d, slots = JointLangevin(K).update(
        _tensor(D),
        _tensor(G),
        {"log_scale": _tensor(U)},
        (_tensor(noise[0]), _tensor(noise[1])),
        step,
        STEP_SIZE,
        PRIOR,
    )
    return ops.convert_to_numpy(d), ops.convert_to_numpy(slots["log_scale"])


def test_drift_in_float64():
    scale = np.exp(U)
    drift = (ALPHA - 1) - BETA * scale + np.abs(D) / scale
    d, u = _update(0 * XI)
    np.testing.assert_allclose(
        d, D - STEP_SIZE * (G + np.sign(D) / (scale * SIZE)), rtol=1e-5
    )
    np.testing.assert_allclose(u, U + K * drift / (1 + K * np.abs(drift)), rtol=1e-5)


def test_drift_of_the_log_scale_is_the_gradient_of_its_log_density():
    def log_density(u):  # of u given d: prior density times the Jacobian exp(u)
        scale = np.exp(u)
        laplace = -np.log(2 * scale) - np.abs(D) / scale
        return laplace + (ALPHA - 1) * u - BETA * scale + u

    slope = (log_density(U + 1e-6) - log_density(U - 1e-6)) / 2e-6
    scale = np.exp(U)
    np.testing.assert_allclose(
        slope, (ALPHA - 1) - BETA * scale + np.abs(D) / scale, rtol=1e-6
    )


def test_diffusion_is_scaled_unit_noise():
    with_noise, without = _update(XI), _update(0 * XI)
    np.testing.assert_allclose(
        with_noise[0] - without[0],
        GAMMA * np.sqrt(2 * STEP_SIZE / SIZE) * XI[0],
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        with_noise[1] - without[1], GAMMA * np.sqrt(2 * K) * XI[1], rtol=1e-4, atol=1e-6
    )


def test_warm_up_moves_only_the_weight():
    d, u = _update(XI, active=False)
    np.testing.assert_allclose(d, D - STEP_SIZE * G, rtol=1e-6)
    np.testing.assert_array_equal(u, U.astype("float32"))


def test_scales_stay_positive_and_finite_from_extreme_states():
    sampler = JointLangevin(K)
    extreme = _tensor([-69.0, 60.0, -69.0, 0.0])
    d, slots = sampler.update(
        _tensor([0.0, 1e-30, 1e4, -1e-20]),
        _tensor([0.0, 1.0, -1.0, 0.5]),
        {"log_scale": extreme},
        (_tensor(np.zeros(4)), _tensor([-1.0, 1.0, 1.0, -1.0])),
        reference.step_of(step_size=STEP_SIZE, effective_size=1e30),
        STEP_SIZE,
        PRIOR,
    )
    scale = ops.convert_to_numpy(sampler.score(d, slots, PRIOR))
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_starts_at_the_initial_scale():
    start = JointLangevin().initial_slots(PRIOR)
    assert np.exp(start["log_scale"]) == pytest.approx(0.02)


@pytest.mark.parametrize("value", [0.0, -0.1, float("inf"), float("nan"), "a"])
def test_bad_step_size(value):
    with pytest.raises(ValueError, match="`scale_step_size` of JointLangevin must be"):
        JointLangevin(scale_step_size=value)
