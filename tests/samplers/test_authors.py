"""The authors' formulas in float64, conventions, bad arguments."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, LaplacePrior
from keras_bayestune.noise import Gaussian, stream_keys

ALPHA, BETA, START, SIZE = 0.5, 20.0, 0.01, 1e5
RATE, SCALE_RATE, WARM_UP, UPDATES = 0.005, 0.003, 7, 80


class Adam:
    """Kingma & Ba, algorithm 1, in float64."""

    def __init__(self):
        self.t, self.m, self.v = 0, 0.0, 0.0

    def step(self, gradient, rate):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        root = np.sqrt(self.v / (1 - 0.999**self.t))
        return rate * self.m / (1 - 0.9**self.t) / (root + 1e-8)


def test_follows_the_authors_formulas_in_float64():
    rng = np.random.default_rng(0)
    anchor = (0.02 * rng.normal(size=200)).astype("float32")
    gradients = rng.normal(size=(UPDATES, 200)).astype("float32")
    sampler = Authors(SCALE_RATE)
    optimizer = BayesTuneSGLD(
        RATE,
        effective_size=SIZE,
        prior=LaplacePrior(ALPHA, BETA, START),
        sampler=sampler,
        warmup_steps=WARM_UP,
        burn_in_steps=WARM_UP,
        thinning=1,
        seed=3,
        global_clipnorm=None,
    )
    weight = keras.Variable(anchor, name="w")
    d, scale = np.zeros(200), np.full(200, START)
    of_weight, of_scale = Adam(), Adam()
    drift = 0.0
    for t, gradient in enumerate(gradients, start=1):
        optimizer.apply([ops.convert_to_tensor(gradient)], [weight])
        g = gradient.astype("float64")
        if t >= WARM_UP:
            xi, xi_scale = (
                ops.convert_to_numpy(Gaussian()(stream_keys(3, t, stream), (200,)))
                for stream in (0, 1)
            )
            read = np.maximum(scale, 1e-8)
            g = g + np.sign(d) / (read * SIZE) + np.sqrt(2 / (SIZE * RATE)) * xi
            slope = -((ALPHA - 1) / read - BETA) - (np.abs(d) / read**2 - 1 / read)
            noise = np.sqrt(2 / (SIZE * SCALE_RATE)) * xi_scale
            scale = scale - of_scale.step(slope / SIZE + noise, SCALE_RATE)
        d = d - of_weight.step(g, RATE)
        drift = max(drift, np.abs(ops.convert_to_numpy(weight) - anchor - d).max())
    print(f"largest drift in {UPDATES} updates: {drift:.2g}")
    assert drift < 5e-7


def test_the_first_active_step_is_the_published_one():
    assert Authors().first_active_step(10) == 10
    assert Authors().first_active_step(0) == 1


def test_auto_effective_size_is_the_published_one():
    size = float(Authors().auto_effective_size(1e-4, 1.0, 1.0))
    assert size == pytest.approx(1e12)


@pytest.mark.parametrize("value", [0.0, -0.1, float("inf"), float("nan")])
def test_bad_learning_rate(value):
    with pytest.raises(ValueError, match="`scale_learning_rate` of Authors must be"):
        Authors(scale_learning_rate=value)
