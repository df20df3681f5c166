import pathlib

import keras
import numpy as np
import pytest

from keras_bayestune import SparseMask
from keras_bayestune.deltas import DeltaSet, SparseDelta, base_values, swap
from keras_bayestune.deltas.model_variables import Target, pair_with_model


def test_apply_gives_the_tuned_model_and_revert_the_base(tuned, base, small, tmp_path):
    tuned.delta.save(tmp_path / "task.safetensors")
    before = small.bits(base)
    delta = SparseDelta.load(tmp_path / "task.safetensors")
    assert {v.path for v in base.weights} != set(delta.variables)
    for _ in range(2):
        delta.apply(base)
        assert small.bits(base) == small.bits(tuned.model)
        delta.revert(base)
        assert small.bits(base) == before


def test_outputs_are_those_of_the_tuned_model(tuned, base):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    before = keras.ops.convert_to_numpy(base(x))
    expected = keras.ops.convert_to_numpy(tuned.model(x))
    assert not np.array_equal(before, expected)
    with tuned.delta.applied(base) as model:
        assert model is base
        assert np.array_equal(keras.ops.convert_to_numpy(base(x)), expected)
    assert np.array_equal(keras.ops.convert_to_numpy(base(x)), before)


def test_what_is_stored(tuned):
    delta, mask = tuned.delta, tuned.mask
    for path, stored in delta.variables.items():
        if "logits" in path or "moving" in path:
            assert stored.is_whole
        else:
            np.testing.assert_array_equal(stored.indices, mask.indices[path])
            assert stored.indices.dtype == "int32"
    assert not any("seed" in path for path in delta.variables)
    assert delta.count == mask.count + 12  # two moving statistics of width 6
    assert delta.size == sum(v.size for v in delta.variables.values())
    assert delta.fraction == delta.count / delta.size
    with pytest.raises(ValueError, match="read-only"):
        next(iter(delta.variables.values())).values[:] = 0.0
    with pytest.raises(TypeError):
        delta.variables["x"] = None


def test_no_change_and_nothing_selected(base, small, tmp_path):
    trainable = base.trainable_variables
    mask = SparseMask(
        {v.path: [] for v in trainable}, {v.path: tuple(v.shape) for v in trainable}
    )
    delta = SparseDelta.from_model(base, mask=mask, base=base_values(base))
    assert delta.count == 0
    delta.save(tmp_path / "d.safetensors")
    loaded = SparseDelta.load(tmp_path / "d.safetensors")
    other = small.build()
    before = small.bits(other)
    with loaded.applied(other):
        assert small.bits(other) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_variable_dtypes(dtype, small, tmp_path):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is switched on")
    tuned = small.tune(small.build(dtype=dtype))
    tuned.delta.save(tmp_path / "d.safetensors")
    base = small.build(dtype=dtype)
    before = small.bits(base)
    assert base.weights[0].dtype == dtype
    delta = SparseDelta.load(tmp_path / "d.safetensors")
    assert delta == tuned.delta
    delta.apply(base)
    assert small.bits(base) == small.bits(tuned.model)
    delta.revert(base)
    assert small.bits(base) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_on_another_backend(dtype, small):
    """Files written on JAX give the bits that tuning gives here."""
    file = pathlib.Path(__file__).with_name(f"golden_{dtype}.safetensors")
    delta, base = SparseDelta.load(file), small.build(dtype=dtype)
    before = small.bits(base)
    delta.apply(base)
    assert small.bits(base) == small.bits(small.tune(small.build(dtype=dtype)).model)
    delta.revert(base)
    assert small.bits(base) == before


def test_special_values_keep_their_bits(base, small, tmp_path):
    kernel = base.weights[0]
    array = small.array(kernel)
    special = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45, 0.0], "float32")
    array[0] = special
    kernel.assign(array)
    saved = base_values(base)
    shapes = {v.path: tuple(v.shape) for v in base.trainable_variables}
    mask = SparseMask(
        {path: range(5, 9) if path == kernel.path else [] for path in shapes}, shapes
    )
    array = array.copy()
    array.reshape(-1)[5:9] = [-0.0, np.nan, np.inf, 1e-45]
    kernel.assign(array)
    delta = SparseDelta.from_model(base, mask=mask, base=saved)
    delta.save(tmp_path / "d.safetensors")
    delta = SparseDelta.load(tmp_path / "d.safetensors")
    after = small.bits(base)
    base.set_weights([saved.get(w.path, small.array(w)) for w in base.weights])
    before = small.bits(base)
    delta.apply(base)
    assert small.bits(base) == after
    delta.revert(base)
    assert small.bits(base) == before


def test_thousand_random_swaps(small):
    base = small.build()
    before = small.bits(base)
    tuned = [small.tune(small.build(), seed, fraction=0.1 * seed) for seed in (1, 2, 3)]
    expected = [small.bits(t.model) for t in tuned]
    targets = [pair_with_model(t.delta.variables, base) for t in tuned]
    rng = np.random.default_rng(0)
    for step in range(1000):
        k = rng.integers(3)
        old = swap.swap_in(targets[k])
        if step % 100 == 0:
            assert small.bits(base) == expected[k]
        swap.swap_out(targets[k], old)
    assert small.bits(base) == before


def test_frozen_after_training(tuned):
    tuned.model.trainable = False
    again = SparseDelta.from_model(tuned.model, mask=tuned.mask, base=tuned.base)
    assert again == tuned.delta


# Made from a callback.


class FinishedCallback:
    def __init__(self, tuned, **fields):
        self.mask = tuned.mask
        self.anchors = tuned.base
        self.metadata = {"selector": "posterior_scale", "fraction": np.float32(0.25)}
        self.__dict__.update(fields)


def test_from_callback(tuned, tmp_path):
    delta = SparseDelta.from_model(
        tuned.model, FinishedCallback(tuned), metadata={"task": "rte"}
    )
    delta.save(tmp_path / "d.safetensors")
    loaded = SparseDelta.load(tmp_path / "d.safetensors")
    assert loaded.metadata == {
        "selector": "posterior_scale",
        "fraction": 0.25,
        "task": "rte",
    }
    assert loaded.variables.keys() == tuned.delta.variables.keys()


def test_from_a_callback_that_is_not_done(tuned):
    with pytest.raises(ValueError, match="let its stage 1 end first"):
        SparseDelta.from_model(tuned.model, FinishedCallback(tuned, mask=None))


# What from_model refuses.


@pytest.mark.parametrize("given", [{}, {"callback": 1, "base": {}}])
def test_either_callback_or_mask(tuned, given):
    with pytest.raises(ValueError, match="Pass either the callback"):
        SparseDelta.from_model(tuned.model, **given)


@pytest.mark.parametrize("given", ["mask", "base"])
def test_mask_and_base_go_together(tuned, given):
    with pytest.raises(ValueError, match="no mask or no base"):
        SparseDelta.from_model(tuned.model, **{given: getattr(tuned, given)})


def test_a_frozen_scalar_moved(tuned, small):
    kernel = tuned.model.weights[0]
    array = small.array(kernel)
    free = np.setdiff1d(np.arange(array.size), tuned.mask.indices[kernel.path])[:2]
    array.reshape(-1)[free] += 1e-7
    kernel.assign(array)
    with pytest.raises(
        ValueError, match=rf"2 scalars outside the mask.*\({kernel.path}: 2\)"
    ):
        SparseDelta.from_model(tuned.model, mask=tuned.mask, base=tuned.base)


def test_a_base_value_is_missing(tuned):
    path = tuned.model.weights[0].path
    base = {key: value for key, value in tuned.base.items() if key != path}
    with pytest.raises(ValueError, match=f"1 in the mask have no base.*{path}"):
        SparseDelta.from_model(tuned.model, mask=tuned.mask, base=base)


def test_a_base_value_of_another_shape_or_path(tuned):
    path = tuned.model.weights[0].path
    with pytest.raises(ValueError, match=r"must have shape \(4, 6\). Received: \(4,\)"):
        SparseDelta.from_model(
            tuned.model, mask=tuned.mask, base={**tuned.base, path: np.zeros(4)}
        )
    with pytest.raises(ValueError, match="1 paths that the model lacks: .'other'"):
        SparseDelta.from_model(
            tuned.model, mask=tuned.mask, base={**tuned.base, "other": np.zeros(4)}
        )


def test_mask_of_another_model(tuned, small):
    with pytest.raises(ValueError, match="The mask is for another model"):
        SparseDelta.from_model(small.build(width=5), mask=tuned.mask, base={})


def test_a_trainable_variable_outside_the_mask(small):
    model = small.build()
    model.layers[1].trainable = False
    tuned = small.tune(model)
    model.layers[1].trainable = True
    base = {p: tuned.base[p] for p in tuned.mask.shapes if p in tuned.base}
    with pytest.raises(ValueError, match="2 trainable variables are not in the mask"):
        SparseDelta.from_model(model, mask=tuned.mask, base=base)


def test_frozen_layers_are_part_of_the_base(small):
    model = small.build()
    model.layers[1].trainable = False
    delta = small.tune(model).delta
    other = small.build()
    other.layers[1].kernel.assign(other.layers[1].kernel + 1.0)
    with pytest.raises(ValueError, match="1 of 10 variables hold other values"):
        delta.apply(other)


# What apply and revert refuse; nothing is written then.


def refuses(operation, model, small, message):
    before = small.bits(model)
    with pytest.raises(ValueError, match=message):
        operation(model)
    assert small.bits(model) == before


def test_applied_twice_and_reverted_twice(tuned, base, small):
    refuses(tuned.delta.revert, base, small, "not applied to this model")
    tuned.delta.apply(base)
    refuses(tuned.delta.apply, base, small, "already applied")
    tuned.delta.revert(base)
    refuses(tuned.delta.revert, base, small, "not applied to this model")


def test_another_delta_is_applied(tuned, base, small):
    other = small.tune(small.build(), seed=5).delta
    other.apply(base)
    refuses(tuned.delta.apply, base, small, "If another delta is applied")
    refuses(tuned.delta.revert, base, small, "not applied")


def test_two_models_at_once(tuned, small):
    models = [small.build(), small.build()]
    before = small.bits(models[0])
    for model in models:
        tuned.delta.apply(model)
    for model in models:
        tuned.delta.revert(model)
    assert small.bits(models[0]) == small.bits(models[1]) == before


@pytest.mark.parametrize("selected", [True, False])
def test_wrong_base(tuned, base, small, selected):
    kernel = base.weights[0]
    array = small.array(kernel)
    chosen = tuned.mask.indices[tuned.model.weights[0].path]
    free = np.setdiff1d(np.arange(array.size), chosen)
    where = (chosen if selected else free)[0]
    array.reshape(-1)[where] = np.nextafter(array.reshape(-1)[where], np.float32(9))
    kernel.assign(array)
    refuses(
        tuned.delta.apply, base, small, rf"not the base.*1 of 10 .*\({kernel.path}\)"
    )


def test_the_head_may_hold_anything(tuned, base, small):
    head = base.get_layer("logits")
    head.kernel.assign(np.full((6, 3), 7.0))
    before = small.bits(base)
    tuned.delta.apply(base)
    assert small.bits(base) == small.bits(tuned.model)
    tuned.delta.revert(base)
    assert small.bits(base) == before


def test_changed_in_between(tuned, base, small):
    tuned.delta.apply(base)
    kernel = base.weights[0]
    array = small.array(kernel)
    where = tuned.mask.indices[tuned.model.weights[0].path][0]
    array.reshape(-1)[where] += 1.0
    kernel.assign(array)
    refuses(tuned.delta.revert, base, small, f"has changed since.*{kernel.path}")


def test_other_variables(tuned, small):
    refuses(tuned.delta.apply, small.build(width=7), small, "Of another shape")
    refuses(tuned.delta.apply, small.build(classes=4), small, "logits/kernel")
    backbone = small.build()
    backbone = keras.Model(backbone.inputs, backbone.layers[-2].output)
    refuses(tuned.delta.apply, backbone, small, "Missing in this model: logits/kernel")
    larger = small.build()
    larger = keras.Model(
        larger.inputs, keras.layers.Dense(2, name="extra")(larger.outputs[0])
    )
    refuses(tuned.delta.apply, larger, small, "extra/kernel")


def test_extra_variables_beside_identical_names(small):
    model = small.build()
    delta = small.tune(model).delta
    larger = keras.Model(
        model.inputs, keras.layers.Dense(2, name="extra")(model.outputs[0])
    )
    refuses(delta.apply, larger, small, "2 variables that the delta does not know")


def test_another_dtype(tuned, small):
    refuses(
        tuned.delta.apply, small.build(dtype="float16"), small, "is float16, not float3"
    )


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantised(tuned, small, mode):
    model = small.build()
    model.quantize(mode)
    refuses(tuned.delta.apply, model, small, "is quantised")
    with pytest.raises(ValueError, match="is quantised"):
        SparseDelta.from_model(model, mask=tuned.mask, base=tuned.base)


def test_not_a_model_or_not_built(tuned):
    with pytest.raises(TypeError, match="must be a Keras model or layer.*list"):
        tuned.delta.apply([])
    with pytest.raises(ValueError, match="is not built.*by calling it on a batch"):
        tuned.delta.apply(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="at least one variable"):
        SparseDelta({})


@pytest.mark.parametrize("operation", ["apply", "revert"])
def test_failure_while_writing_leaves_the_model_as_it_was(
    tuned, base, small, monkeypatch, operation
):
    if operation == "revert":
        tuned.delta.apply(base)
    write, calls = Target.write, []

    def failing(target, values):
        calls.append(target)
        write(target, values)
        if len(calls) == 5:  # half-way, with this one written as well
            raise RuntimeError("device lost")

    monkeypatch.setattr(Target, "write", failing)
    before = small.bits(base)
    with pytest.raises(RuntimeError, match="device lost"):
        getattr(tuned.delta, operation)(base)
    assert small.bits(base) == before
    monkeypatch.undo()
    getattr(tuned.delta, operation)(base)


# The value.


def test_fingerprint_names_the_base(small):
    first = small.tune(small.build(), seed=1)
    second = small.tune(small.build(), seed=2, fraction=0.5)
    elsewhere = small.tune(small.build(seed=9), seed=1)
    assert first.delta.fingerprint == second.delta.fingerprint
    assert first.delta.fingerprint != elsewhere.delta.fingerprint
    assert first.delta.fingerprint in repr(first.delta)


def test_equality(small):
    same = [small.tune(small.build()).delta for _ in range(1)]
    keras.utils.clear_session(free_memory=False)
    same.append(small.tune(small.build()).delta)
    assert same[0] == same[1]
    assert same[0] != same[0].astype("bfloat16")
    assert same[0] != "delta"
    with pytest.raises(TypeError, match="unhashable"):
        hash(same[0])


def test_narrowed_values(tuned, base, small, tmp_path):
    path = tmp_path / "d.safetensors"
    tuned.delta.save(path, dtype="bfloat16")
    delta = SparseDelta.load(path)
    rounding = delta.metadata["rounding"]
    assert rounding["dtype"] == "bfloat16"
    # Half a unit in the last of 8 significant bits.
    assert 0 < rounding["max_relative"] <= 2**-8
    assert 0 < rounding["max_absolute"] < 0.02
    delta.apply(base)
    now, exact = base.get_weights(), tuned.model.get_weights()
    error = max(np.abs(a - b).max() for a, b in zip(now, exact, strict=True))
    assert error == pytest.approx(rounding["max_absolute"], rel=1e-6)
    delta.revert(base)
    assert small.bits(base) == small.bits(small.build())
    assert delta.astype("float32") == delta.astype("bfloat16")


def test_narrowing_out_of_range(tuned):
    head = tuned.model.get_layer("logits")
    head.kernel.assign(np.full((6, 3), 70_000.0))
    delta = SparseDelta.from_model(tuned.model, mask=tuned.mask, base=tuned.base)
    with pytest.raises(ValueError, match="logits/kernel.*7e.04, beyond the range"):
        delta.astype("float16")
    delta.astype("bfloat16")
    with pytest.raises(ValueError, match="must be one of .*Received: 'int8'"):
        delta.astype("int8")


def test_nbytes_is_the_size_of_the_file(tuned, tmp_path):
    path = tmp_path / "d.safetensors"
    tuned.delta.save(path)
    assert tuned.delta.nbytes == path.stat().st_size


def test_metadata_must_be_json(tuned, tmp_path):
    delta = SparseDelta(tuned.delta.variables, {"optimizer": {1, 2}})
    with pytest.raises(ValueError, match="document of a delta file must be JSON"):
        delta.save(tmp_path / "d.safetensors")
    assert not list(tmp_path.iterdir())


def test_metadata_may_hold_keras_objects(tuned, tmp_path):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    delta = SparseDelta(tuned.delta.variables, {"learning_rate": schedule})
    delta.save(tmp_path / "d.safetensors")
    loaded = SparseDelta.load(tmp_path / "d.safetensors").metadata["learning_rate"]
    assert loaded["class_name"] == "CosineDecay"


def test_after_fit_and_compiled_predict(small):
    """On JAX the compiled functions keep the weights' values between calls."""
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    delta = small.tune(small.build()).delta
    base = small.build()
    base.compile("sgd", "mse")
    base.evaluate(x, np.zeros((8, 3)), verbose=0)
    before = base.predict(x, verbose=0)
    with delta.applied(base):
        inside = base.predict(x, verbose=0)
    assert not np.array_equal(before, inside)
    assert np.array_equal(base.predict(x, verbose=0), before)


def test_a_scalar_weight_keeps_its_shape(small):
    class Scaled(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def call(self, inputs):
            return inputs * self.scale

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Scaled(name="scaled")(inputs))
    mask = SparseMask({"scaled/scale": [0]}, {"scaled/scale": ()})
    base = base_values(model)
    model.set_weights([np.float32(3.0)])
    delta = SparseDelta.from_model(model, mask=mask, base=base)
    assert delta.variables["scaled/scale"].shape == ()
    model.set_weights([np.float32(1.0)])
    delta.bind(model)
    with delta.applied(model):
        assert model.get_weights()[0] == 3.0
    assert model.get_weights()[0] == 1.0


# A model that is no longer the one the delta was applied to.


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantised_after_apply(tuned, base, small):
    tuned.delta.apply(base)
    base.quantize("int8")
    refuses(tuned.delta.revert, base, small, "quantised after the delta met it.*anew")
    refuses(tuned.delta.apply, base, small, "is quantised")
    refuses(tuned.delta.bind, base, small, "is quantised")


def test_layers_exchanged_after_apply(small):
    def stack():
        layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.set_weights([np.ones(w.shape) for w in model.get_weights()])
        return model

    base, other = stack(), stack()
    other.set_weights([weight + 1.0 for weight in other.get_weights()])
    delta = SparseDelta.from_checkpoints(base, other)
    tasks = DeltaSet(stack())
    tasks.add("task", delta)
    tasks.activate("task")
    delta.apply(base)
    for model in (base, tasks.model):
        model.pop()
        model.add(keras.layers.Dense(2, name="b"))
    message = "2 variables are no longer in the model, e.g. .*b/kernel"
    refuses(delta.revert, base, small, message)
    refuses(lambda _: tasks.deactivate(), tasks.model, small, message)
    # With the base loaded it is a model like any other.
    base.set_weights(stack().get_weights())
    delta.apply(base)
    assert small.bits(base) == small.bits(other)
    delta.revert(base)
    assert small.bits(base) == small.bits(stack())


def test_lora_after_apply(tuned, base, small):
    before = {id(weight): small.array(weight) for weight in base.weights}
    tuned.delta.apply(base)
    base.layers[1].enable_lora(2)
    tuned.delta.revert(base)
    for weight in base.weights:
        if id(weight) in before:
            np.testing.assert_array_equal(small.array(weight), before[id(weight)])


# The base.


def test_what_is_not_a_float_weight_is_ignored(tuned, small):
    base = {v.path: small.array(v) for v in tuned.model.variables}
    seeds = [path for path in base if "seed" in path]
    assert len(seeds) == 1
    base.update(tuned.base)
    base[seeds[0]] = base[seeds[0]] + 1  # Dropout drew from it
    assert SparseDelta.from_model(tuned.model, mask=tuned.mask, base=base) == (
        tuned.delta
    )


def test_base_values_are_copies(base, small):
    values = base_values(base)
    assert list(values) == [v.path for v in small.floating(base)]
    kernel = base.trainable_variables[0]
    before = values[kernel.path].copy()
    kernel.assign(kernel + 1.0)
    np.testing.assert_array_equal(values[kernel.path], before)


def test_statistics_without_a_base_value(tuned, small):
    anchors = {p: v for p, v in tuned.base.items() if "moving" not in p}
    with pytest.raises(
        ValueError, match="2 non-trainable weights.*moving_mean.*base_values"
    ):
        SparseDelta.from_model(tuned.model, mask=tuned.mask, base=anchors)


def test_statistics_of_a_frozen_layer_need_none(small):
    model = small.build()
    model.layers[2].trainable = False  # batch normalisation: nothing of it moves
    body = [v for v in model.trainable_variables if "logits" not in v.path]
    base = {v.path: small.array(v) for v in body}
    mask = SparseMask.from_scores(
        {v.path: np.random.rand(*v.shape) for v in body},
        fraction=0.2,
        always={v.path: tuple(v.shape) for v in model.trainable_variables[-2:]},
    )
    delta = SparseDelta.from_model(model, mask=mask, base=base)
    before = small.build()
    delta.apply(before)
    assert small.bits(before) == small.bits(model)


def test_base_named_as_its_mask(tuned, small):
    """A run that goes on in another process may have other automatic names."""
    keras.utils.clear_session(free_memory=False)
    keras.layers.Dense(1)  # so that the numbers differ
    model = small.build()
    assert set(tuned.base).isdisjoint(v.path for v in model.layers[1].weights)
    model.set_weights(tuned.model.get_weights())
    delta = SparseDelta.from_model(model, mask=tuned.mask, base=tuned.base)
    pairs = zip(delta.variables.values(), tuned.delta.variables.values(), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one.flat_indices, other.flat_indices)
        np.testing.assert_array_equal(one.values, other.values)
        assert one.checksum == other.checksum


def test_an_unbuilt_model_is_told_so(tuned):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(), name="scale")
            self.dense = keras.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs) * self.scale

    for use in (tuned.delta.apply, base_values):
        with pytest.raises(ValueError, match="'own.*' is not built.*calling it on a"):
            use(Own())


def test_other_base_values_just_loaded(tuned, small):
    refuses(
        tuned.delta.apply,
        small.build(seed=9),
        small,
        "If they are just loaded, the delta was made from others",
    )
