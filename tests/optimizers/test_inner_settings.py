"""What a user set on the inner optimizer holds for the selected scalars of a weight."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD, Adafactor, Adam, AdamW, Lion, MultiOptimizer, Muon

from keras_bayestune import SparseMask, SparseOptimizer
from keras_bayestune.optimizers import sparse

SELECTED = {
    "a/kernel": [0, 5, 7],
    "a/bias": [1],
    "b/kernel": [2, 3, 4],
    "b/bias": [0, 1, 2],  # as a whole
}


def new_model():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    inputs = keras.Input((4,))
    return keras.Model(inputs, dense(3, name="b")(dense(4, "tanh", name="a")(inputs)))


def new_mask(selected=SELECTED):
    shapes = {"a/kernel": (4, 4), "a/bias": (4,), "b/kernel": (4, 3), "b/bias": (3,)}
    return SparseMask(selected, shapes)


def arrays(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def applied(optimizer, model, steps=3, gradient=None):
    """Train by random gradients, or by equal ones; return the change of each weight."""
    rng = np.random.default_rng(3)
    variables = model.trainable_variables
    before = arrays(variables)
    optimizer.build(variables)
    for _ in range(steps):
        gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
        if gradient is not None:
            gradients = [np.full_like(g, gradient) for g in gradients]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    return {
        v.path: now - old
        for v, now, old in zip(variables, arrays(variables), before, strict=True)
    }


def selected_only(changes):
    for path, change in changes.items():
        frozen = np.setdiff1d(np.arange(change.size), SELECTED[path])
        change.flat[frozen] = 0.0
    return changes


EXCLUSIONS = {
    "variable": lambda o, m: o.exclude_from_weight_decay(
        var_list=[m.layers[1].bias, m.layers[2].kernel]
    ),
    "name": lambda o, m: o.exclude_from_weight_decay(var_names=["bias"]),
    "anchored name": lambda o, m: o.exclude_from_weight_decay(var_names=["^kernel"]),
    "name of another": lambda o, m: o.exclude_from_weight_decay(var_names=["selected"]),
    "name and variable": lambda o, m: o.exclude_from_weight_decay(
        [m.layers[1].kernel], ["bias"]
    ),
}


@pytest.mark.parametrize("arguments", [{}, {"clipnorm": 1.0}], ids=["joined", "each"])
@pytest.mark.parametrize("name", EXCLUSIONS)
def test_exclusions_from_weight_decay(name, arguments):
    def moved(wrap):
        model = new_model()
        for variable in model.trainable_variables:
            variable.assign(ops.ones(variable.shape))
        adamw = AdamW(0.1, weight_decay=0.5, **arguments)
        EXCLUSIONS[name](adamw, model)
        return applied(wrap(adamw), model, gradient=0.0)

    whole = moved(lambda optimizer: optimizer)
    part = moved(lambda optimizer: SparseOptimizer(optimizer, new_mask()))
    for path, change in selected_only(whole).items():
        np.testing.assert_allclose(part[path], change, rtol=1e-6)
    assert any(change.any() for change in whole.values())


def test_exclusions_said_to_the_sparse_optimizer():
    model = new_model()
    optimizer = SparseOptimizer(AdamW(0.1, weight_decay=0.5), new_mask())
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    changes = applied(optimizer, model, gradient=0.0)
    assert not changes["a/kernel"].any() and not changes["b/kernel"].any()


def test_exclusions_survive_a_file(tmp_path):
    model = new_model()
    adamw = AdamW(0.1, weight_decay=0.5)
    adamw.exclude_from_weight_decay(var_names=["bias"])
    model.compile(SparseOptimizer(adamw, new_mask()), loss="mse")
    applied(model.optimizer, model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    one = applied(model.optimizer, model)
    two = applied(loaded.optimizer, loaded)
    for path, change in one.items():
        np.testing.assert_array_equal(two[path], change)


def test_the_patterns_of_a_multi_optimizer():
    def moved(wrap):
        each = keras.optimizers.OptimizerMap(default_optimizer=SGD(0.0))
        each["a/.*"] = AdamW(0.1, weight_decay=0.5)
        each["a/.*"].exclude_from_weight_decay(var_names=["bias"])
        return applied(wrap(MultiOptimizer(each)), new_model())

    whole = moved(lambda optimizer: optimizer)
    part = moved(lambda optimizer: SparseOptimizer(optimizer, new_mask()))
    for path, change in selected_only(whole).items():
        np.testing.assert_allclose(part[path], change, rtol=1e-5, atol=1e-7)
    assert part["a/kernel"].any() and not part["b/kernel"].any()


class ByName(SGD):
    """A rule of a user's own; on TensorFlow the name ends with ":0"."""

    def update_step(self, gradient, variable, learning_rate):
        factor = 3.0 if "bias" in variable.name else 1.0
        super().update_step(factor * gradient, variable, learning_rate)


def test_a_rule_by_name_in_a_subclass():
    if keras.backend.backend() == "torch":  # Keras's SGD takes all at once there
        pytest.skip("update_step is not called for each weight")
    changes = applied(SparseOptimizer(ByName(0.1), new_mask()), new_model(), 1, 1.0)
    for path, change in changes.items():
        moved = change.flat[SELECTED[path]]
        np.testing.assert_allclose(moved, -0.3 if "bias" in path else -0.1, rtol=1e-5)


def test_clipping_by_the_norm_of_a_weight():
    optimizer = SparseOptimizer(SGD(1.0, clipnorm=0.5), new_mask())
    changes = applied(optimizer, new_model(), 1)
    for change in changes.values():
        assert np.linalg.norm(change) <= 0.5 + 1e-6
    assert np.isclose(np.linalg.norm(changes["a/kernel"]), 0.5)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weight_decay": 0.2},
        {"clipvalue": 0.3},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 3},
        {"loss_scale_factor": 8.0},
    ],
    ids=str,
)
def test_one_vector_gives_the_numbers_of_a_vector_for_each(arguments, monkeypatch):
    def moved():
        optimizer = SparseOptimizer(Adam(0.1, **arguments), new_mask())
        return applied(optimizer, new_model(), 6), len(optimizer._vectors)

    joined, count = moved()
    assert count == 1
    monkeypatch.setattr(sparse, "is_elementwise", lambda optimizer: False)
    each, count = moved()
    assert count == 3
    for path, change in joined.items():
        np.testing.assert_array_equal(change, each[path])
        assert change.flat[SELECTED[path]].all()


def test_adam_on_the_selected_scalars_of_a_dense_one():
    rng = np.random.default_rng(3)
    changes = applied(SparseOptimizer(Adam(0.1), new_mask()), new_model(), 3)
    sizes = {path: change.shape for path, change in changes.items()}
    m = {path: np.zeros(shape) for path, shape in sizes.items()}
    v = {path: np.zeros(shape) for path, shape in sizes.items()}
    total = {path: np.zeros(shape) for path, shape in sizes.items()}
    for t in range(1, 4):
        for path, shape in sizes.items():
            g = rng.normal(size=shape).astype("float32")
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.999 * v[path] + 0.001 * g * g
            rate = 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            total[path] -= rate * m[path] / (np.sqrt(v[path]) + 1e-7)
    for path, change in selected_only(total).items():
        np.testing.assert_allclose(changes[path], change, atol=1e-5)


@pytest.mark.parametrize(
    ("inner", "count"),
    [
        (lambda: Adam(0.1), 1),
        (lambda: Lion(0.1, global_clipnorm=1.0), 1),
        (lambda: SGD(0.1, clipnorm=1.0), 3),
        (lambda: Adafactor(0.1), 3),
        (lambda: Muon(0.1), 3),
    ],
    ids=["Adam", "Lion", "clipnorm", "Adafactor", "Muon"],
)
def test_the_inner_optimizer_sees_as_few_vectors_as_its_rules_allow(inner, count):
    optimizer = SparseOptimizer(inner(), new_mask())
    optimizer.build(new_model().trainable_variables)
    trained = optimizer.inner._trainable_variables
    assert len(trained) == count + 1  # and the weight that trains as a whole
    if count == 3:
        assert {v.path for v in trained} == set(SELECTED)


def test_weights_of_several_dtypes():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, dtype="bfloat16", name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="b")(hidden))
    optimizer = SparseOptimizer(Adam(1e-4), new_mask())
    changes = applied(optimizer, model, 30, 1.0)
    assert len(optimizer._vectors) == 2
    np.testing.assert_allclose(changes["b/kernel"].flat[[2, 3, 4]], -3e-3, rtol=1e-3)


def test_settings_are_those_of_the_inner_optimizer():
    optimizer = SparseOptimizer(
        AdamW(0.1, weight_decay=0.5, beta_1=0.8, global_clipnorm=2.0), new_mask()
    )
    assert (optimizer.weight_decay, optimizer.beta_1) == (0.5, 0.8)
    assert optimizer.global_clipnorm == 2.0
    assert not optimizer.use_ema and optimizer.name == "sparse_optimizer"
    optimizer.weight_decay, optimizer.beta_1 = 0.0, 0.7
    assert (optimizer.inner.weight_decay, optimizer.inner.beta_1) == (0.0, 0.7)
    with pytest.raises(AttributeError, match="'SparseOptimizer' has no attribute"):
        optimizer.momentum  # noqa: B018
    changes = applied(optimizer, new_model(), gradient=0.0)
    assert not any(change.any() for change in changes.values())


def test_clipping_by_weight_that_comes_too_late():
    optimizer = SparseOptimizer(SGD(0.1), new_mask())
    model = new_model()
    optimizer.build(model.trainable_variables)
    optimizer.clipnorm = 1.0
    with pytest.raises(ValueError, match=r"`clipnorm` was set to 1.0 after the optimi"):
        applied(optimizer, model)


def test_a_weight_without_a_gradient_stays_as_it_is():
    model = new_model()
    variables = model.trainable_variables
    optimizer = SparseOptimizer(AdamW(0.1, weight_decay=0.5), new_mask())
    before = arrays(variables)
    gradients = [ops.ones(v.shape) for v in variables]
    gradients[0] = None
    with pytest.warns(UserWarning, match=r"Gradients do not exist for .*'a/kernel'"):
        optimizer.apply(gradients, variables)
    now = arrays(variables)
    assert now[0].tobytes() == before[0].tobytes()
    assert (now[2].flat[SELECTED["b/kernel"]] != before[2].flat[[2, 3, 4]]).all()


def test_the_state_of_a_mask_with_as_many_scalars_is_refused():
    store = {}
    optimizer = SparseOptimizer(Adam(0.1), new_mask())
    optimizer.build(new_model().trainable_variables)
    optimizer.save_own_variables(store)
    # The same indices one after another, but in other weights.
    other = SELECTED | {"a/kernel": [0, 5], "a/bias": [], "b/kernel": [1, 2, 3, 4, 7]}
    other = SparseOptimizer(Adam(0.1), new_mask(other))
    other.build(new_model().trainable_variables)
    before = arrays(other.variables)
    with pytest.raises(ValueError, match="it has the scalars of another mask"):
        other.load_own_variables(store)
    for one, two in zip(arrays(other.variables), before, strict=True):
        np.testing.assert_array_equal(one, two)
