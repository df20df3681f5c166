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

ROWS, BEST = 200, 0.4


def displacement(feature, prior):
    """Where stage 2 ends that starts at 0, its noise left out, if data say 0.4.

    The loss is (d - 0.4)^2 feature^2 / 2, so `feature^2` is its curvature.
    """
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), layer])
    path = model.weights[0].path
    mask = kbt.SparseMask({path: [0]}, {path: (1, 1)})
    sampler = kbt.BayesTuneSGLD(
        0.5 / feature**2,
        effective_size=ROWS,
        noise_scale=0.0,
        prior=prior,
        sampler=Collapsed(IdentityMetric()),
        warmup_steps=60,
        burn_in_steps=60,
        clipnorm=1e9,
        seed=0,
    )
    model.compile(kbt.SparseOptimizer(sampler, mask), loss=_half_square)
    x = np.full((ROWS, 1), feature, "float32")
    y = BEST * x
    model.fit(x, y, batch_size=ROWS, epochs=60, verbose=0)
    warm = float(model.get_weights()[0][0, 0])
    model.fit(x, y, batch_size=ROWS, epochs=400, verbose=0)
    return warm, float(model.get_weights()[0][0, 0])


def _half_square(y, outputs):
    return keras.ops.mean(keras.ops.square(y - outputs)) / 2


def test_a_scalar_that_data_hold_weakly_is_drawn_back_to_the_base():
    # N F d^2 = 0.32: less than the prior's 1 - alpha, and no displacement can be.
    warm, end = displacement(0.1, kbt.LaplacePrior())
    assert warm == pytest.approx(BEST, rel=1e-3)
    assert abs(end) < 0.01


def test_a_scalar_that_data_hold_strongly_stays():
    # N F d^2 = 32; the prior takes off (1 - alpha) / (N F d).
    warm, end = displacement(1.0, kbt.LaplacePrior())
    assert warm == pytest.approx(BEST, rel=1e-3)
    assert end == pytest.approx(BEST - 0.99 / (ROWS * BEST), abs=0.002)
