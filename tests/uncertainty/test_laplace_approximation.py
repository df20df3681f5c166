"""A linear model with Gaussian noise: its posterior is known in closed form."""

import keras
import numpy as np
import pytest
import scipy.linalg

from keras_bayestune import SparseDelta, SparseMask
from keras_bayestune.uncertainty import calibrate, laplace

# Columns of a Hadamard matrix are orthogonal, so the posterior is diagonal, and with
# noise that is one of them every residual is one standard deviation: the empirical
# Fisher information is then the curvature, and not an estimate of it.
ROWS = 64
H = scipy.linalg.hadamard(ROWS).astype("float64")
STEPS = np.array([1.0, 1.5, 2.0])  # of the features: three curvatures
X = H[:, 1:4] * STEPS
NOISE = 0.5  # variance: the squared error is then the negative log-likelihood
BASE = np.array([0.5, -1.0, 2.0])
SCALE = 0.25  # a tight prior, of variance 2 SCALE^2
TRUE = np.array([0.9, -1.3, 1.7])
Y = X @ TRUE + NOISE**0.5 * H[:, 5]
# The posterior: precision X'X / NOISE + 1 / (2 SCALE^2), mean between data and base.
DATA = np.square(X).sum(0) / NOISE
PRIOR = 1 / (2 * SCALE**2)
VARIANCE = 1 / (DATA + PRIOR)
MEAN = VARIANCE * (X.T @ Y / NOISE + PRIOR * BASE)


def linear(weights):
    layer = keras.layers.Dense(1, use_bias=False, name="linear")
    model = keras.Sequential([keras.Input((3,)), layer])
    model.set_weights([np.reshape(weights, (3, 1))])
    return model


@pytest.fixture
def fitted():
    model = linear(BASE)
    path = model.weights[0].path
    mask = SparseMask({path: [0, 1, 2]}, {path: (3, 1)})
    base = {path: keras.ops.convert_to_numpy(model.weights[0]).copy()}
    # Stage 2 ends at the posterior's mode, to which the prior draws it.
    model.set_weights([MEAN.reshape(3, 1)])
    delta = SparseDelta.from_model(model, mask=mask, base=base)
    return model, delta, {path: np.full((3, 1), SCALE)}


def posterior(fitted, **changed):
    model, delta, scales = fitted
    arguments = {
        "scales": scales,
        "effective_sizes": [ROWS],
        "loss": "mse",
        "outputs": "values",
        "draws": 20,
        **changed,
    }
    return laplace(model, delta, (X, Y), (X, Y), **arguments)


def test_mean_and_variance_are_the_posteriors(fitted, unchanged):
    model, delta, _ = fitted
    before = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}
    found = posterior(fitted)
    unchanged(model, before)
    (path,) = found.deviations[0]
    np.testing.assert_allclose(delta.variables[path].values, MEAN, rtol=1e-6)
    np.testing.assert_allclose(found.deviations[0][path] ** 2, VARIANCE, rtol=0.03)


def test_draws_and_predictions_have_the_posteriors_mean_and_variance(fitted):
    model = fitted[0]
    found = posterior(fitted).replace(noise_variance=NOISE)
    (path,) = found.deviations[0]
    x = np.array([[1.0, 1.0, 1.0], [3.0, -2.0, 0.5], [0.0, 8.0, 1.0], [9.0, 9.0, -9.0]])
    # Enough for a variance that is known to 1 %.
    draws = np.stack([d.variables[path].values for d in found.sample(20_000)])
    np.testing.assert_allclose(draws.mean(0), MEAN, rtol=0.03)
    np.testing.assert_allclose(draws.var(0), VARIANCE, rtol=0.03)
    exact = np.square(x) @ VARIANCE + NOISE
    np.testing.assert_allclose((draws @ x.T).var(0) + NOISE, exact, rtol=0.03)
    # And the model predicts with these very draws.
    mean, variance = found.predict(model, x, draws=50, verbose=0)
    outputs = draws[:50] @ x.T
    np.testing.assert_allclose(mean[:, 0], outputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(variance[:, 0], outputs.var(0) + NOISE, rtol=1e-3)


def test_data_of_the_problem_choose_its_size_and_noise(fitted):
    model = fitted[0]
    sizes = [ROWS / 100, ROWS, ROWS * 100]
    rng = np.random.default_rng(0)
    # Weights of the posterior, each with data of its own: only the right width fits.
    weights = MEAN + VARIANCE**0.5 * rng.normal(size=(3000, 3))
    x = rng.uniform(-20.0, 20.0, size=(3000, 3))
    y = np.sum(x * weights, axis=1) + NOISE**0.5 * rng.normal(size=3000)
    model, delta, scales = fitted
    found = laplace(
        model,
        delta,
        (X, Y),
        (x, y),
        scales=scales,
        effective_sizes=sizes,
        loss="mse",
        outputs="values",
        draws=100,
        batch_size=3000,
    )
    assert found.metadata["effective_size"] == ROWS
    calibrated = calibrate(found, model, (x, y), 100, batch_size=3000, verbose=0)
    assert calibrated.noise_variance == pytest.approx(NOISE, rel=0.5)


def test_the_model_may_hold_base_or_delta(fitted):
    model, delta, scales = fitted
    at_delta = posterior(fitted)
    model.set_weights([BASE.reshape(3, 1)])
    at_base = posterior(fitted)
    (path,) = at_base.deviations[0]
    np.testing.assert_allclose(
        at_base.deviations[0][path], at_delta.deviations[0][path], rtol=1e-6
    )


def test_no_data_leave_the_prior(fitted):
    found = posterior(fitted, effective_sizes=[1e-9])
    (deviation,) = found.deviations[0].values()
    np.testing.assert_allclose(deviation, 2**0.5 * SCALE, rtol=1e-5)


def test_a_head_has_its_own_spread_as_prior(make_tuned):
    model, base, _, deltas = make_tuned(count=1)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    found = laplace(
        model,
        deltas[0],
        data,
        data,
        scales={path: np.full(a.shape, 0.1) for path, a in base.items()},
        effective_sizes=[1e-9],
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        examples=4,
    )
    values = deltas[0].variables["head/kernel"].values
    np.testing.assert_allclose(
        found.deviations[0]["head/kernel"], np.sqrt(np.mean(values**2)), rtol=1e-4
    )
    # Statistics of batch normalisation have no noise.
    assert not any("moving" in path for path in found.deviations[0])


def test_arguments_are_checked(fitted):
    model, delta, scales = fitted
    for changed, message in (
        ({"effective_sizes": []}, r"above 0, at least one. Received: \[\]"),
        ({"effective_sizes": [0.0]}, r"Received: \[0.0\]"),
        ({"scales": {}}, "`scales` has no array of shape"),
        ({"scales": {next(iter(scales)): np.ones(3)}}, "posterior mean scales"),
    ):
        with pytest.raises(ValueError, match=message):
            posterior(fitted, **changed)
    with pytest.raises(ValueError, match="validation data"):
        laplace(model, delta, (X, Y), None, scales=scales, loss="mse")
