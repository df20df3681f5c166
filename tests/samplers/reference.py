"""Float64 NumPy and quadrature references for the samplers."""

import numpy as np
from keras import ops
from scipy.special import kve

from keras_bayestune.noise import stream_keys
from keras_bayestune.samplers import Step


def shrinkage(displacement, alpha, beta):
    """`|d| E[1/scale | d]`, from SciPy's Bessel functions."""
    w = 2.0 * np.sqrt(beta * np.abs(displacement))
    return 0.5 * w * kve(abs(2.0 - alpha), w) / kve(abs(1.0 - alpha), w)


def scale_mean(displacement, alpha, beta):
    """`E[scale | d]`, from SciPy's Bessel functions."""
    w = 2.0 * np.sqrt(beta * np.abs(displacement))
    return w / (2.0 * beta) * kve(alpha, w) / kve(abs(1.0 - alpha), w)


def _posterior(alpha, beta, observation, deviation):
    """Displacements and their unnormalised posterior density."""
    half = np.geomspace(1e-12, 6.0, 400_001)
    d = np.concatenate([-half[::-1], half])
    w = 2.0 * np.sqrt(beta * np.abs(d))
    log_density = (
        (alpha - 1.0) * np.log(w / 2.0)
        + np.log(kve(abs(alpha - 1.0), w))
        - w
        - (d - observation) ** 2 / (2.0 * deviation**2)
    )
    return d, np.exp(log_density - log_density.max())


def posterior_means(alpha, beta, observation, deviation):
    """E[d], E|d| and E[scale] under a Gaussian likelihood, by quadrature."""
    d, density = _posterior(alpha, beta, observation, deviation)
    values = np.stack([d, np.abs(d), scale_mean(d, alpha, beta)])
    return np.trapezoid(values * density, d) / np.trapezoid(density, d)


def posterior_draws(alpha, beta, observation, deviation, count):
    """Exact draws of d: a start that needs no long burn-in."""
    d, density = _posterior(alpha, beta, observation, deviation)
    mass = np.concatenate([[0], np.cumsum(np.diff(d) * (density[1:] + density[:-1]))])
    uniform = np.random.default_rng(0).uniform(0, mass[-1], count)
    return np.interp(uniform, mass, d).astype("float32")


def step_of(
    count=1,
    step_size=1.0,
    effective_size=1.0,
    noise_scale=1.0,
    active=True,
    learning_rate=1.0,
    active_count=1.0,
):
    """A `Step` of one weight tensor; Python numbers become tensors."""
    number = lambda value: ops.convert_to_tensor(value, dtype="float32")  # noqa: E731
    return Step(
        count=ops.convert_to_tensor(count, dtype="int32"),
        counted=ops.convert_to_tensor(count, dtype="int32"),
        learning_rate=number(learning_rate),
        gradient_scale=number(1.0),
        step_size=number(step_size),
        state_square=number(1.0),
        adapting=ops.convert_to_tensor(True, dtype="bool"),
        effective_size=number(effective_size),
        noise_scale=number(noise_scale),
        active=ops.convert_to_tensor(active, dtype="bool"),
        active_count=number(active_count),
        finite=ops.convert_to_tensor(True, dtype="bool"),
        sample=ops.convert_to_tensor(False, dtype="bool"),
        num_samples=number(1.0),
        keys=stream_keys(11, count, ops.arange(2, dtype="int32")),
    )
