"""100,000 updates of stage 1: memory, counters and running means stay exact."""

import os

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD

BACKEND = keras.backend.backend()
STEPS = int(os.environ.get("KERAS_BAYESTUNE_LONG_STEPS", "100000"))
BURN_IN, THINNING, SIZE = 100, 5, 64


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def stepper(optimizer, weight):
    """A function that does one update and returns the displacement after it."""
    target = ops.convert_to_tensor(np.linspace(-1.0, 1.0, SIZE).astype("float32"))

    def gradient(value):
        return value - target

    if BACKEND == "jax":
        import jax

        @jax.jit
        def step(state, value):
            (value,), state = optimizer.stateless_apply(
                state, [gradient(value)], [value]
            )
            return state, value

        values = [[v.value for v in optimizer.variables], weight.value]

        def run():
            values[:] = step(*values)
            return values[1]

        def finish():
            for variable, value in zip(optimizer.variables, values[0], strict=True):
                variable.assign(value)

        return run, finish
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run():
            optimizer.apply([gradient(ops.convert_to_tensor(weight))], [weight])
            return ops.convert_to_tensor(weight)

        return run, lambda: None

    import torch

    @torch.no_grad()
    def run():
        optimizer.apply([gradient(ops.convert_to_tensor(weight))], [weight])
        return ops.convert_to_tensor(weight)

    return run, lambda: None


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_a_hundred_thousand_updates():
    # From 0, so that the weight is its displacement, without another rounding.
    weight = keras.Variable(np.zeros(SIZE, "float32"), name="w")
    optimizer = BayesTuneSGLD(
        1e-3, warmup_steps=50, burn_in_steps=BURN_IN, thinning=THINNING, seed=0
    )
    optimizer.build([weight])
    run, finish = stepper(optimizer, weight)
    prior = optimizer.prior
    total = np.zeros(SIZE)  # float64
    early = grown = 0
    pending = []
    for step in range(STEPS):
        displacement = np.array(ops.convert_to_numpy(run()))
        updates = step + 1
        if updates > BURN_IN and (updates - BURN_IN) % THINNING == 0:
            pending.append(displacement)
        if updates == STEPS:
            grown = resident() - early
        if len(pending) == 1000 or updates == STEPS:
            scores = optimizer.sampler.score(
                ops.convert_to_tensor(np.array(pending)), {}, prior
            )
            total += ops.convert_to_numpy(scores).astype("float64").sum(axis=0)
            pending = []
        if step == STEPS // 10:
            early = resident()
    finish()
    assert optimizer.num_updates == STEPS
    samples = (STEPS - BURN_IN) // THINNING
    assert optimizer.num_samples == samples
    assert optimizer.skipped_steps == 0
    (mean,) = optimizer.posterior_scales().values()
    expected = total / samples
    drift = np.abs(mean / expected - 1.0).max()
    print(f"{STEPS} updates: drift {drift:.2g}, memory grew by {grown} bytes")
    assert drift <= 1e-5
    assert grown < 16 << 20
