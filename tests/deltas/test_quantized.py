import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.deltas import QuantizedBase
from keras_bayestune.deltas.quantized import _CONFIGS
from keras_bayestune.deltas.quantized_layer import QuantizedLayer

# Keras 3.15 transposes the vector of a table's scales, which torch advises against.
pytestmark = pytest.mark.filterwarnings("ignore:The use of `x.T`:UserWarning")


def build():
    """Every layer that can be int8, a norm, and a table that is read and written."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    table = keras.layers.ReversibleEmbedding(20, 8, name="table")
    x = table(inputs)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="split")(x)
    x = keras.layers.Reshape((6, 8))(x)
    x = keras.layers.Dense(8, activation="gelu", name="dense")(x)
    x = keras.layers.BatchNormalization(name="statistics")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, table(x, reverse=True))


def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 20, (8, 6)), rng.integers(0, 20, (8, 6))


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def mask_of(model, fraction=0.2):
    rng = np.random.default_rng(1)
    scores = {v.path: rng.random(v.shape) for v in model.trainable_variables}
    return kbt.SparseMask.from_scores(scores, fraction=fraction)


def train(model, mask, steps=3):
    model.compile(
        kbt.SparseOptimizer(keras.optimizers.SGD(0.5), mask),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for _ in range(steps):
        model.train_on_batch(*batch())


def outputs(model):
    return keras.ops.convert_to_numpy(model(batch()[0]))


def compute_weights(layer):
    """What the layer computes for unit vectors and for all tokens, by attribute."""
    unit = keras.ops.eye(200)
    if isinstance(layer, keras.layers.Embedding):
        return {
            "_embeddings": layer(keras.ops.arange(7)),
            "reverse_embeddings": layer(unit, reverse=True),
        }
    if isinstance(layer, keras.layers.Dense):
        return {"_kernel": layer(unit)}
    if layer.equation == "abc,cde->abde":
        return {"_kernel": layer(unit[None])[0]}
    rows = layer(keras.ops.reshape(unit, (1, 200, 40, 5)))[0]
    return {"_kernel": keras.ops.reshape(keras.ops.transpose(rows), (7, 40, 5))}


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize(
    "new_layer",
    [
        lambda: keras.layers.Dense(7),
        lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 5, 3)),
        lambda: keras.layers.EinsumDense("abcd,ecd->abe", (None, 7)),
        lambda: keras.layers.ReversibleEmbedding(7, 200, tie_weights=False),
    ],
    ids=["dense", "columns last", "columns first", "tables"],
)
def test_weights_are_those_that_the_layers_of_keras_compute_with(new_layer, mode):
    """Two blocks of rows and an odd number of columns, so that int4 fills up both."""
    keras.utils.set_random_seed(0)
    layer = new_layer()
    floats = {
        n: keras.ops.convert_to_numpy(w) for n, w in compute_weights(layer).items()
    }
    layer.quantize(mode, config=_CONFIGS[mode]())
    for name, computed in compute_weights(layer).items():
        weight = keras.ops.convert_to_numpy(QuantizedLayer(layer)._dequantized(name))
        wanted = keras.ops.convert_to_numpy(computed)
        np.testing.assert_allclose(weight, wanted, atol=1e-6)
        rounding = np.abs(weight - floats[name]).max() / np.abs(weight).max()
        assert rounding < {"int8": 0.005, "int4": 0.1}[mode]


def round_as(base, floats, mask):
    """Give the float model the values of the quantised one, outside the mask."""
    for variable in floats.trainable_variables:
        if variable.path in base._layers:
            layer, attribute = base._layers[variable.path]
            weight = keras.ops.convert_to_numpy(layer._dequantized(attribute))
            rounded = weight.reshape(-1).copy()
            kept = mask.indices[variable.path]
            rounded[kept] = keras.ops.convert_to_numpy(variable).reshape(-1)[kept]
            variable.assign(rounded.reshape(weight.shape))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_training_is_that_of_the_rounded_float_model(mode):
    """Same forward, same gradients: the selected scalars end where floats would."""
    model, floats = build(), build()
    mask = mask_of(model)
    base = QuantizedBase(model, mask, mode)
    round_as(base, floats, mask)
    np.testing.assert_allclose(outputs(model), outputs(floats), atol=1e-5)
    train(model, base.mask)
    train(floats, mask)
    np.testing.assert_allclose(outputs(model), outputs(floats), atol=1e-4)
    new = values(floats)
    moved = 0.0
    for path, stored in base.delta().variables.items():
        if path.startswith("statistics/moving"):
            np.testing.assert_allclose(stored.values, new[path], atol=1e-4)
            continue
        wanted = new[path].reshape(-1)[mask.indices[path]]
        np.testing.assert_array_equal(stored.flat_indices, mask.indices[path])
        np.testing.assert_allclose(stored.values, wanted, atol=1e-4)
        moved = max([moved, *np.abs(stored.values - stored.base)])
    assert moved > 0.05  # many times the tolerance


def test_only_the_selected_have_gradients_and_weights_are_int8():
    model = build()
    mask = mask_of(model)
    base = QuantizedBase(model, mask)
    int8 = {v.path for v in model.weights if v.dtype == "int8"}
    assert int8 == {"table/embeddings", "split/kernel", "dense/kernel"}
    trainable = {v.path: tuple(v.shape) for v in model.trainable_variables}
    for path in int8:
        assert path not in trainable
        assert trainable[f"{path}_values"] == (len(mask.indices[path]),)
    assert base.mask.count == mask.count
    before = values(model)
    train(model, base.mask)
    after = values(model)
    for path in int8:
        np.testing.assert_array_equal(before[path], after[path])
    changed = sum(
        np.sum(before[path] != after[path]) for path in before if "/moving" not in path
    )
    assert 0.9 * mask.count < changed <= mask.count


def test_the_delta_fits_the_float_model_and_the_int8_one(tmp_path):
    model = build()
    base = QuantizedBase(model, mask_of(model))
    train(model, base.mask, steps=6)
    tuned = outputs(model)
    base.delta({"task": "a"}).save(tmp_path / "a.safetensors")
    delta = kbt.SparseDelta.load(tmp_path / "a.safetensors")
    assert delta.metadata == {"base": "int8", "task": "a"}

    floats = build()
    before = outputs(floats)
    with delta.applied(floats):
        assert np.abs(outputs(floats) - tuned).max() < 0.01  # what int8 rounds
        assert np.abs(outputs(floats) - before).max() > 0.05

    served = build()
    server = QuantizedBase(served)
    plain = outputs(served)
    assert np.abs(plain - before).max() < 0.01
    server.apply(delta)
    np.testing.assert_allclose(outputs(served), tuned, atol=1e-5)
    server.revert()
    np.testing.assert_array_equal(outputs(served), plain)


def test_two_tables_one_of_which_has_floats():
    def untied():
        keras.utils.set_random_seed(0)
        table = keras.layers.ReversibleEmbedding(
            9, 4, tie_weights=False, logit_soft_cap=2.0, name="table"
        )
        inputs = keras.Input((6,), dtype="int32")
        return keras.Model(inputs, table(table(inputs), reverse=True))

    for name in ("embeddings", "reverse_embeddings"):
        model, floats = untied(), untied()
        kernel = getattr(model.get_layer("table"), name)
        mask = kbt.SparseMask({kernel.path: [3, 8]}, {kernel.path: tuple(kernel.shape)})
        base = QuantizedBase(model, mask)
        ids = batch()[0] % 9
        model.compile(kbt.SparseOptimizer(keras.optimizers.SGD(1.0), base.mask), "mse")
        model.train_on_batch(ids, np.ones((8, 6, 9)))
        with base.delta().applied(floats):
            wanted = keras.ops.convert_to_numpy(floats(ids))
        found = keras.ops.convert_to_numpy(model(ids))
        np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert all(
            np.abs(v.values - v.base).max(initial=0) > 1e-4 or not v.values.size
            for v in base.delta().variables.values()
        )


def test_two_deltas_take_turns():
    deltas, tuned = [], []
    for seed, fraction in ((0, 0.2), (1, 0.1)):
        model = build()
        base = QuantizedBase(model, mask_of(model, fraction))
        train(model, base.mask, steps=1 + seed)
        deltas.append(base.delta())
        tuned.append(model.predict(batch()[0], verbose=0))
    served = build()
    server = QuantizedBase(served)
    plain = served.predict(batch()[0], verbose=0)
    for turn in (0, 1, 0):
        server.apply(deltas[turn])
        answer = served.predict(batch()[0], verbose=0)
        np.testing.assert_allclose(answer, tuned[turn], atol=1e-5)
        server.revert()
    np.testing.assert_array_equal(served.predict(batch()[0], verbose=0), plain)


def test_a_layer_that_trains_whole_stays_float():
    model = build()
    shape = (8, 8)
    always = {"dense/kernel": shape, "dense/bias": (8,)}
    scores = {"split/kernel": np.random.rand(8, 2, 4)}
    mask = kbt.SparseMask.from_scores(scores, fraction=0.2, always=always)
    base = QuantizedBase(model, mask)
    assert model.get_layer("dense").kernel.dtype == "float32"
    train(model, base.mask)
    delta = base.delta()
    floats = build()
    with delta.applied(floats):
        assert np.abs(outputs(floats) - outputs(model)).max() < 0.01


def test_errors():
    model = build()
    with pytest.raises(TypeError, match="`mask` of QuantizedBase must be a SparseMask"):
        QuantizedBase(model, {"dense/kernel": [0]})
    with pytest.raises(ValueError, match='must be "int8" or "int4". Received: .float8'):
        QuantizedBase(model, mode="float8")
    other = kbt.SparseMask({"other": [0]}, {"other": (3,)})
    with pytest.raises(ValueError, match="The mask is for another model"):
        QuantizedBase(model, other)
    base = QuantizedBase(model, mask_of(model))
    delta = base.delta()
    with pytest.raises(ValueError, match="holds float values already"):
        base.apply(delta)
    base.revert()
    with pytest.raises(ValueError, match="nothing to revert"):
        base.revert()
    with pytest.raises(ValueError, match="The model is quantised"):
        QuantizedBase(model)
    another = build()
    another.get_layer("dense").kernel.assign(np.ones((8, 8)))
    with pytest.raises(ValueError, match=r"1 variables differ, e.g. .'dense/kernel'"):
        QuantizedBase(another).apply(delta)
