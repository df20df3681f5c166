"""The prior that selects must not act on what it has selected.

Stage 2 was once sampled by `BayesTuneSGLD` inside `SparseOptimizer`, which began anew
under stage 1's prior. For alpha < 1 that has a pole at displacement 0: where the data
do not hold a scalar more strongly than `1 / (N d^2)`, it is drawn back to where stage 2
began. The draws were those of the head alone.
"""

import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.samplers import Collapsed, IdentityMetric

ROWS, BEST, STEP = 200, 0.4, 0.05


def displacement(feature, prior):
    """Where stage 2 ends that starts at 0, its noise left out, if data say 0.4.

    The loss is (d - 0.4)^2 feature^2 / 2, so `feature^2` is its curvature.
    """
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), layer])
    path = model.weights[0].path
    mask = kbt.SparseMask({path: [0]}, {path: (1, 1)})
    sampler = kbt.BayesTuneSGLD(
        STEP / feature**2,
        effective_size=ROWS,
        noise_scale=0.0,
        prior=prior,
        sampler=Collapsed(IdentityMetric()),
        warmup_steps=200,
        burn_in_steps=200,
        clipnorm=1e9,
        seed=0,
    )
    model.compile(kbt.SparseOptimizer(sampler, mask), loss=_half_square)
    x = np.full((ROWS, 1), feature, "float32")
    y = BEST * x
    model.fit(x, y, batch_size=ROWS, epochs=200, verbose=0)
    warm = float(model.get_weights()[0][0, 0])
    model.fit(x, y, batch_size=ROWS, epochs=400, verbose=0)
    return warm, float(model.get_weights()[0][0, 0])


def _half_square(y, outputs):
    return keras.ops.mean(keras.ops.square(y - outputs)) / 2


def end_of(feature, prior):
    """Where `d = 0.4 - kappa(d) / (N feature^2 d)` holds, from above; else 0."""
    d = BEST
    for _ in range(1000):
        pull = float(keras.ops.convert_to_numpy(prior.shrinkage(np.float32(d))))
        d = BEST - pull / (ROWS * feature**2 * d)
        if d <= 0.0:
            return 0.0
    return d


@pytest.mark.parametrize(("feature", "left"), [(0.3, 0.0), (1.0, 0.74)])
def test_the_prior_draws_back_what_data_hold_weakly(feature, left):
    prior = kbt.LaplacePrior()
    warm, end = displacement(feature, prior)
    expected = end_of(feature, prior)
    assert warm == pytest.approx(BEST, rel=1e-3)
    assert expected == pytest.approx(left * BEST, rel=0.01)
    # One step of the gradient from 0 is left where the pull takes all.
    assert end == pytest.approx(expected or STEP * BEST, abs=2e-3)
