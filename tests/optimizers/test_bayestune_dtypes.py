"""Weights that are not float32: float32 state, exact anchors, nothing rounded away."""

import keras
import ml_dtypes  # noqa: F401  (registers "bfloat16" with NumPy)
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, JointLangevin, LaplacePrior

NARROW = ["bfloat16", "float16"]
SCHEDULE = {"warmup_steps": 2, "burn_in_steps": 2, "thinning": 1, "seed": 3}


def new_variable(dtype, name="w", seed=1):
    value = np.random.default_rng(seed).normal(size=(2, 3)).astype(dtype)
    return keras.Variable(value, dtype=dtype, name=name), value


def new_gradients(dtype, updates=6):
    rng = np.random.default_rng(2)
    return [
        ops.convert_to_tensor(rng.normal(size=(2, 3)).astype(dtype))
        for _ in range(updates)
    ]


@pytest.mark.parametrize(
    "sampler",
    [None, JointLangevin(), Authors()],
    ids=["default", "JointLangevin", "Authors"],
)
@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
def test_state_is_float32_and_anchors_are_exact(dtype, sampler):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is switched on")
    variable, value = new_variable(dtype)
    optimizer = BayesTuneSGLD(
        1e-3, sampler=sampler, second_moment=True, weight_decay=0.1, **SCHEDULE
    )
    for gradient in new_gradients(dtype):
        optimizer.apply([gradient], [variable])
    anchor = optimizer.anchors()["w"]
    assert anchor.dtype == value.dtype
    assert anchor.tobytes() == value.tobytes()
    floats = {
        v.dtype
        for v in optimizer.variables
        if v.shape == (2, 3) and not v.path.endswith("w_anchor")
    }
    assert floats == {"float32"}
    assert variable.dtype == dtype
    now = ops.convert_to_numpy(variable).astype("float64")
    assert np.isfinite(now).all()
    assert (now != value.astype("float64")).any()


@pytest.mark.parametrize("dtype", NARROW)
def test_small_updates_add_up(dtype):
    # The spacing of numbers below 1 is 4e-3 in bfloat16 and 5e-4 in float16.
    variable = keras.Variable(np.ones(4), dtype=dtype, name="w")
    optimizer = BayesTuneSGLD(1e-4, warmup_steps=100, burn_in_steps=100)
    gradient = ops.full((4,), 0.1, dtype=dtype)
    seen = []
    for _ in range(80):
        optimizer.apply([gradient], [variable])
        seen.append(float(ops.convert_to_numpy(variable)[0]))
    assert seen[0] == 1.0
    spacing = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(seen[-1], 1 - 80 * 1e-4, atol=spacing / 2 + 1e-6)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_weights_follow_the_float32_ones(dtype):
    narrow, value = new_variable(dtype)
    wide = keras.Variable(value.astype("float32"), name="w")
    prior = LaplacePrior(alpha=0.5)
    options = {"effective_size": 1e5, "prior": prior, **SCHEDULE}
    optimizers = [BayesTuneSGLD(1e-3, **options) for _ in range(2)]
    for gradient in new_gradients(dtype):
        optimizers[0].apply([gradient], [narrow])
        optimizers[1].apply([ops.cast(gradient, "float32")], [wide])
    np.testing.assert_allclose(
        ops.convert_to_numpy(narrow).astype("float32"),
        ops.convert_to_numpy(wide),
        rtol={"bfloat16": 2**-8, "float16": 2**-11}[dtype],
    )
    # The displacement is not read from the rounded weight.
    scales = [optimizer.posterior_scales()["w"] for optimizer in optimizers]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-3)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_change_from_outside_counts(dtype):
    variable, value = new_variable(dtype)
    optimizer = BayesTuneSGLD(1e-4, warmup_steps=100, burn_in_steps=100)
    gradients = new_gradients(dtype)
    optimizer.apply([gradients[0]], [variable])
    changed = np.array(ops.convert_to_numpy(variable))
    changed[0] = (changed[0] + 1).astype(dtype)
    variable.assign(changed)
    before = ops.convert_to_numpy(optimizer._blocks[0].displacement).copy()
    optimizer.apply([ops.zeros_like(gradients[0])], [variable])
    after = ops.convert_to_numpy(optimizer._blocks[0].displacement)
    expected = changed[0].astype("float32") - value[0].astype("float32")
    np.testing.assert_allclose(after[0], expected, rtol=1e-2)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), changed)


def test_a_long_float16_gradient_is_clipped_and_not_skipped():
    variable = keras.Variable(np.ones(4), dtype="float16", name="w")
    optimizer = BayesTuneSGLD(1e-2, warmup_steps=5)
    optimizer.apply([ops.full((4,), 3e4, dtype="float16")], [variable])
    assert optimizer.skipped_steps == 0
    np.testing.assert_allclose(ops.convert_to_numpy(variable), 0.99, atol=2**-11)


def test_integer_variables_carry_no_prior():
    weight, _ = new_variable("float32")
    steps = keras.Variable(np.arange(3), dtype="int32", trainable=False, name="steps")
    optimizer = BayesTuneSGLD(1e-3)
    optimizer.build([weight, steps])
    assert optimizer.excluded_paths() == ("steps",)
