"""Stage 2: the inner optimizer on the selected scalars, every other bit untouched."""

import keras
import ml_dtypes  # noqa: F401  (registers "bfloat16" with NumPy)
import numpy as np
import pytest
from keras import ops
from keras.optimizers import (
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Muon,
    Nadam,
    RMSprop,
)

from keras_bayestune import SparseMask, SparseOptimizer

SHAPES = {"kernel": (2, 3), "bias": (4,), "head": (4,)}
INDICES = {"kernel": [1, 4, 5], "bias": [], "head": [0, 1, 2, 3]}
PARTIAL, FROZEN, WHOLE = range(3)


def new_mask(indices=INDICES, **others):
    always = [p for p, i in indices.items() if len(i) == np.prod(SHAPES[p])]
    return SparseMask(indices, SHAPES, always=always, **others)


def new_variables(dtype="float32"):
    rng = np.random.default_rng(1)
    values = [rng.normal(size=shape).astype(dtype) for shape in SHAPES.values()]
    values[PARTIAL].flat[[0, 2]] = -0.0, np.array(1e-39, dtype)
    return [
        keras.Variable(value, dtype=dtype, name=path)
        for path, value in zip(SHAPES, values, strict=True)
    ]


def new_gradients(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in SHAPES.values()]


def tensors(arrays):
    return [None if a is None else ops.convert_to_tensor(a) for a in arrays]


def arrays(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def bits(variables):
    return [a.tobytes() for a in arrays(variables)]


def split(array):
    """The selected and the frozen scalars of the partly selected variable."""
    frozen = np.setdiff1d(np.arange(array.size), INDICES["kernel"])
    return array.flat[INDICES["kernel"]], array.flat[frozen]


INNER = {
    "SGD": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "plain SGD": lambda: SGD(0.1),
    "Adam": lambda: Adam(0.01),
    "amsgrad": lambda: Adam(0.01, amsgrad=True),
    "AdamW": lambda: AdamW(0.01, weight_decay=0.3),
    "Adafactor": lambda: Adafactor(0.01),
    "Adagrad": lambda: Adagrad(0.01),
    "Lion": lambda: Lion(0.01),
    "Muon": lambda: Muon(0.01),
    "Nadam": lambda: Nadam(0.01),
    "RMSprop": lambda: RMSprop(0.01, momentum=0.9, centered=True),
    "clipnorm": lambda: SGD(0.1, clipnorm=0.5),
    "global_clipnorm": lambda: SGD(0.1, global_clipnorm=0.5),
    "clipvalue": lambda: SGD(0.1, clipvalue=0.5),
    "loss_scale_factor": lambda: SGD(0.1, loss_scale_factor=4.0),
    "average": lambda: Adam(0.1, use_ema=True, ema_overwrite_frequency=2),
    "accumulation": lambda: AdamW(0.1, weight_decay=0.3, gradient_accumulation_steps=2),
    "schedule": lambda: SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)),
    "decay of some": lambda: excluded_from_decay(SGD(0.1, weight_decay=0.3)),
}


def excluded_from_decay(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["head"])
    return optimizer


@pytest.mark.parametrize("name", INNER)
def test_selected_scalars_follow_the_inner_optimizer_and_others_keep_their_bits(name):
    optimizer = SparseOptimizer(INNER[name](), new_mask())
    variables = new_variables()
    before = arrays(variables)
    alone = INNER[name]()
    vectors = [
        keras.Variable(split(before[PARTIAL])[0], name="kernel_selected"),
        keras.Variable(before[WHOLE], name="head"),
    ]
    for t in range(5):
        gradients = new_gradients(t)
        optimizer.apply(tensors(gradients), variables)
        alone.apply(tensors([split(gradients[PARTIAL])[0], gradients[WHOLE]]), vectors)
        now, expected = arrays(variables), arrays(vectors)
        assert split(now[PARTIAL])[1].tobytes() == split(before[PARTIAL])[1].tobytes()
        assert now[FROZEN].tobytes() == before[FROZEN].tobytes()
        np.testing.assert_array_equal(split(now[PARTIAL])[0], expected[0])
        np.testing.assert_array_equal(now[WHOLE], expected[1])
    assert (split(now[PARTIAL])[0] != split(before[PARTIAL])[0]).all()
    assert (now[WHOLE] != before[WHOLE]).all()
    assert int(optimizer.iterations) == int(alone.iterations)


def test_final_values_are_the_moving_average():
    optimizer = SparseOptimizer(Adam(0.1, use_ema=True, ema_momentum=0.5), new_mask())
    variables = new_variables()
    before = arrays(variables)
    averages = [None, None]
    for t in range(4):
        optimizer.apply(tensors(new_gradients(t)), variables)
        now = arrays(variables)
        for i, new in enumerate((split(now[PARTIAL])[0], now[WHOLE])):
            averages[i] = new if t == 0 else 0.5 * averages[i] + 0.5 * new
    optimizer.finalize_variable_values(variables)
    now = arrays(variables)
    np.testing.assert_allclose(split(now[PARTIAL])[0], averages[0], rtol=1e-6)
    np.testing.assert_allclose(now[WHOLE], averages[1], rtol=1e-6)
    assert split(now[PARTIAL])[1].tobytes() == split(before[PARTIAL])[1].tobytes()
    assert now[FROZEN].tobytes() == before[FROZEN].tobytes()


def test_a_constraint_moves_selected_scalars_only():
    optimizer = SparseOptimizer(SGD(1.0), new_mask())
    variables = new_variables()
    variables[PARTIAL].assign([[-1.0, 2.0, -0.0], [-3.0, 1.0, -2.0]])
    variables[PARTIAL].constraint = keras.constraints.NonNeg()
    gradients = [np.full(shape, 1.5, "float32") for shape in SHAPES.values()]
    optimizer.apply(tensors(gradients), variables)
    expected = np.array([[-1.0, 0.5, -0.0], [-3.0, 0.0, 0.0]], "float32")
    now = arrays(variables)[PARTIAL]
    np.testing.assert_array_equal(now, expected)
    assert split(now)[1].tobytes() == split(expected)[1].tobytes()
    # Next it starts from what the constraint left, not from -0.5.
    gradients = [np.full(shape, -0.25, "float32") for shape in SHAPES.values()]
    optimizer.apply(tensors(gradients), variables)
    assert arrays(variables)[PARTIAL].flat[4] == 0.25


def test_the_state_is_as_large_as_the_selection():
    optimizer = SparseOptimizer(Adam(0.01), new_mask())
    optimizer.build(new_variables())
    sizes = {}
    for variable in optimizer.variables:
        sizes.setdefault(tuple(variable.shape), []).append(str(variable.dtype))
    vectors = sizes.pop((3,))
    assert sorted(vectors) == ["float32", "float32", "float32", "int32"]
    assert sizes.pop((4,)) == ["float32", "float32"]  # Adam's, of the whole variable
    assert set(sizes) == {()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_trained_in_float32(dtype):
    optimizer = SparseOptimizer(Adam(1e-4), new_mask())
    variables = new_variables(dtype)
    before = arrays(variables)
    alone = Adam(1e-4)
    vectors = [
        keras.Variable(split(before[PARTIAL])[0].astype("float32")),
        keras.Variable(before[WHOLE].astype("float32")),
    ]
    for t in range(30):
        gradients = [np.abs(g) for g in new_gradients(t, dtype)]
        optimizer.apply(tensors(gradients), variables)
        selected = [split(gradients[PARTIAL])[0], gradients[WHOLE]]
        alone.apply(tensors([g.astype("float32") for g in selected]), vectors)
    now = arrays(variables)
    assert now[PARTIAL].dtype == now[WHOLE].dtype == dtype
    # 30 steps of 1e-4 each, many of which the weight alone would round away
    expected = [v.astype(dtype) for v in arrays(vectors)]
    np.testing.assert_array_equal(split(now[PARTIAL])[0], expected[0])
    np.testing.assert_array_equal(now[WHOLE], expected[1])
    assert split(now[PARTIAL])[1].tobytes() == split(before[PARTIAL])[1].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_change_from_outside_counts(dtype):
    optimizer = SparseOptimizer(SGD(0.5), new_mask())
    variables = new_variables(dtype)
    ones = [np.ones(shape, dtype) for shape in SHAPES.values()]
    optimizer.apply(tensors(ones), variables)
    changed = np.arange(6.0).reshape(2, 3).astype(dtype)
    variables[PARTIAL].assign(changed)
    optimizer.apply(tensors(ones), variables)
    expected = changed.copy()
    expected.flat[INDICES["kernel"]] -= np.array(0.5, dtype)
    np.testing.assert_array_equal(arrays(variables)[PARTIAL], expected)


BAD_GRADIENTS = [(np.nan, PARTIAL, 4), (np.inf, WHOLE, 0), (-np.inf, PARTIAL, 1)]


@pytest.mark.parametrize("inner", ["AdamW", "average", "clipvalue", "accumulation"])
def test_a_gradient_that_is_not_finite_is_skipped(inner):
    runs = []
    for with_bad in (True, False):
        optimizer = SparseOptimizer(INNER[inner](), new_mask())
        variables = new_variables()
        assert optimizer.skipped_steps == 0
        for t in range(4):
            optimizer.apply(tensors(new_gradients(t)), variables)
            if with_bad and t < len(BAD_GRADIENTS):
                value, which, index = BAD_GRADIENTS[t]
                gradients = new_gradients(50 + t)
                gradients[which].flat[index] = value
                before = bits(variables + optimizer.inner.variables)
                optimizer.apply(tensors(gradients), variables)
                assert bits(variables + optimizer.inner.variables) == before
                assert optimizer.skipped_steps == t + 1
        runs.append((optimizer, variables))
    assert bits(runs[0][1]) == bits(runs[1][1])
    assert bits(runs[0][0].inner.variables) == bits(runs[1][0].inner.variables)
    assert runs[1][0].skipped_steps == 0


def test_a_frozen_scalar_without_finite_gradient_does_not_matter():
    optimizer = SparseOptimizer(SGD(0.1), new_mask())
    variables = new_variables()
    before = arrays(variables)
    gradients = new_gradients(0)
    gradients[PARTIAL].flat[0] = gradients[FROZEN][2] = np.nan
    optimizer.apply(tensors(gradients), variables)
    assert optimizer.skipped_steps == 0
    now = arrays(variables)
    assert split(now[PARTIAL])[1].tobytes() == split(before[PARTIAL])[1].tobytes()
    assert (split(now[PARTIAL])[0] != split(before[PARTIAL])[0]).all()


def test_gradients_may_be_missing():
    optimizer = SparseOptimizer(SGD(0.1), new_mask())
    variables = new_variables()
    before = arrays(variables)
    gradients = new_gradients(0)
    optimizer.apply(tensors([gradients[0], None, gradients[2]]), variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(tensors([gradients[0], None, None]), variables)
    now = arrays(variables)
    np.testing.assert_allclose(
        split(now[PARTIAL])[0],
        split(before[PARTIAL])[0] - 0.2 * split(gradients[PARTIAL])[0],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        now[WHOLE], before[WHOLE] - 0.1 * gradients[WHOLE], rtol=1e-5
    )
    with pytest.raises(ValueError, match="No gradient was provided for any variable"):
        optimizer.apply(tensors([None, gradients[1], None]), variables)


def test_learning_rate_reaches_the_inner_optimizer():
    optimizer = SparseOptimizer(SGD(0.1), new_mask())
    np.testing.assert_allclose(
        float(ops.convert_to_numpy(optimizer.learning_rate)), 0.1
    )
    optimizer.learning_rate = 0.0
    assert float(ops.convert_to_numpy(optimizer.inner.learning_rate)) == 0.0
    variables = new_variables()
    before = bits(variables)
    optimizer.apply(tensors(new_gradients(0)), variables)
    assert bits(variables) == before


def test_the_loss_is_scaled_as_the_inner_optimizer_says():
    optimizer = SparseOptimizer(SGD(0.1, loss_scale_factor=8.0), new_mask())
    assert float(optimizer.scale_loss(2.0)) == 16.0
    assert float(SparseOptimizer(SGD(0.1), new_mask()).scale_loss(2.0)) == 2.0


def test_a_loss_scale_optimizer_outside_takes_over():
    sparse = SparseOptimizer(SGD(0.1, loss_scale_factor=8.0), new_mask())
    optimizer = keras.optimizers.LossScaleOptimizer(sparse, initial_scale=4.0)
    optimizer.build(new_variables())
    assert float(optimizer.scale_loss(2.0)) == 8.0
    # It divides the gradients itself; the inner optimizer must not do so again.
    assert sparse.loss_scale_factor is sparse.inner.loss_scale_factor is None


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Keras has no stateless_apply on TensorFlow",
)
def test_stateless_apply():
    optimizers = [SparseOptimizer(AdamW(0.1), new_mask()) for _ in range(2)]
    variables = new_variables(), new_variables()
    optimizers[1].build(variables[1])
    weights = [ops.copy(v) for v in variables[1]]
    state = [ops.copy(v) for v in optimizers[1].variables]
    for t in range(3):
        gradients = tensors(new_gradients(t))
        optimizers[0].apply(gradients, variables[0])
        weights, state = optimizers[1].stateless_apply(state, gradients, weights)
    assert bits(weights) == bits(variables[0])
    assert bits(state) == bits(optimizers[0].variables)


def test_wrong_types():
    with pytest.raises(TypeError, match="`inner` must be a Keras optimizer .*'adam'"):
        SparseOptimizer("adam", new_mask())
    with pytest.raises(
        TypeError, match="`mask` .* must be a SparseMask. Received: dict"
    ):
        SparseOptimizer(SGD(), dict(INDICES))


def test_an_inner_optimizer_that_has_a_state_is_refused():
    inner = SGD()
    inner.build(new_variables())
    with pytest.raises(ValueError, match="`inner`, 'sgd', is built on other variables"):
        SparseOptimizer(inner, new_mask())


def test_loss_scaling_belongs_outside():
    inner = keras.optimizers.LossScaleOptimizer(SGD())
    message = r"LossScaleOptimizer\(SparseOptimizer\(inner, mask\)\)"
    with pytest.raises(ValueError, match=message):
        SparseOptimizer(inner, new_mask())


def test_the_mask_of_another_model():
    optimizer = SparseOptimizer(SGD(), new_mask())
    variables = new_variables()[:2]
    with pytest.raises(ValueError, match="The mask is for another model.*head"):
        optimizer.build(variables)
    assert not optimizer.built
    assert not optimizer.inner.built
    assert len(optimizer.variables) == 4  # iterations and rate of both


def test_an_unknown_variable():
    optimizer = SparseOptimizer(SGD(), new_mask())
    optimizer.build(new_variables())
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(tensors(new_gradients(0)), new_variables())


def test_configuration_round_trip():
    optimizer = SparseOptimizer(
        AdamW(
            keras.optimizers.schedules.CosineDecay(1e-3, 100),
            weight_decay=0.2,
            gradient_accumulation_steps=2,
        ),
        new_mask(mean_scores={"kernel": 0.5}, candidates=[0.1]),
        name="stage_two",
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is SparseOptimizer
    assert isinstance(again.inner, AdamW)
    assert again.mask == optimizer.mask
    assert again.get_config() == optimizer.get_config()
    assert again.name == "stage_two"


def state_of(indices, inner):
    optimizer = SparseOptimizer(inner, new_mask(indices))
    optimizer.build(new_variables())
    store = {}
    optimizer.save_own_variables(store)
    return store


def test_a_state_for_another_mask_or_inner_optimizer_is_refused():
    optimizer = SparseOptimizer(SGD(momentum=0.9), new_mask())
    optimizer.build(new_variables())
    other = {**INDICES, "kernel": [1, 4]}
    with pytest.raises(ValueError, match=r"shape \(2,\) instead of \(3,\) for "):
        optimizer.load_own_variables(state_of(other, SGD(momentum=0.9)))
    with pytest.raises(ValueError, match="this SparseOptimizer: it has .* variables"):
        optimizer.load_own_variables(state_of(INDICES, Adam()))
