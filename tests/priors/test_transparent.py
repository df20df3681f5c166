"""A wrapped layer behaves as the bare one: each case is one row, run both ways."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bayestune import LaplacePrior, SparseDelta, SparseMask, WithPrior
from keras_bayestune.priors import is_marked

PRIOR = LaplacePrior(0.2, 30.0)
TOKENS = np.array([[1, 2, 3, 0, 0, 0], [4, 0, 0, 0, 0, 0], [5, 6, 7, 8, 1, 2]])
FLOATS = np.linspace(-1, 1, 3 * 6 * 4).reshape(3, 6, 4).astype("float32")
CASES = {}


def case(function):
    """Add a row: `function(w)` makes a model, with `w(layer)` in place of `layer`."""
    CASES[function.__name__] = function
    return function


def _tokens(width=4):
    inputs = keras.Input((6,), dtype="int32")
    return inputs, layers.Embedding(9, width, mask_zero=True)(inputs)


@keras.saving.register_keras_serializable(package="tests")
class Mean(layers.Layer):
    """Takes the mask, passes none on, and leaves its shape to Keras."""

    supports_masking = True

    def call(self, inputs, mask=None):
        return ops.mean(inputs * ops.cast(mask, inputs.dtype)[..., None], axis=1)

    def compute_mask(self, inputs, previous_mask):
        return None


@keras.saving.register_keras_serializable(package="tests")
class TwoShapes(layers.Layer):
    """Builds from two shapes, has a loss, a metric and a number beside its tensors."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.size = keras.metrics.Mean("size")

    def build(self, left_shape, right_shape):
        self.left = self.add_weight(shape=(left_shape[-1], 3))
        self.right = self.add_weight(shape=(right_shape[-1], 3))

    def call(self, left, right, factor=1.0, training=False):
        outputs = left @ self.left + factor * (right @ self.right)
        self.add_loss(0.1 * ops.mean(outputs**2))
        self.size.update_state(ops.mean(outputs))
        return {"sum": outputs, "mean": outputs * (0.5 if training else 1.0)}


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """Says nothing of shapes and masks."""

    def __init__(self, wrap=lambda layer: layer, **kwargs):
        super().__init__(**kwargs)
        self.inner = wrap(layers.Dense(5, "relu"))
        self.drop = layers.Dropout(0.5)
        self.norm = layers.BatchNormalization()

    def get_config(self):
        return {"name": self.name}

    def call(self, inputs, training=None):
        return self.norm(self.drop(self.inner(inputs)), training=training)


@case
def dense(w):
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, w(layers.Dense(3, kernel_regularizer="l2"))(inputs))


@case
def activity_regularizer(w):
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, w(layers.Dense(3, activity_regularizer="l2"))(inputs))


@case
def dropout_and_batch_statistics(w):
    inputs = keras.Input((6, 4))
    x = w(layers.BatchNormalization())(w(layers.Dropout(0.5))(inputs))
    return keras.Model(inputs, layers.Dense(2)(x))


@case
def drops_the_mask(w):
    inputs, x = _tokens()
    return keras.Model(
        inputs, layers.LSTM(2)(w(layers.Conv1D(4, 3, padding="same"))(x))
    )


@case
def keeps_the_mask(w):
    inputs, x = _tokens()
    return keras.Model(inputs, layers.LSTM(2)(w(layers.Dense(3))(x)))


@case
def makes_the_mask(w):
    inputs = keras.Input((6,), dtype="int32")
    x = w(layers.Embedding(9, 4, mask_zero=True))(inputs)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


@case
def recurrent(w):
    inputs, x = _tokens()
    x = w(layers.Bidirectional(layers.GRU(2, return_sequences=True)))(x)
    return keras.Model(inputs, w(layers.LSTM(2))(x))


@case
def recurrent_with_its_state(w):
    inputs = keras.Input((6, 4), batch_size=3)
    outputs, *state = w(
        layers.LSTM(2, stateful=True, return_state=True, trainable=False)
    )(inputs)
    return keras.Model(inputs, layers.Concatenate()([outputs, *state]))


@case
def initial_state_by_keyword(w):
    inputs, x = _tokens()
    start = layers.LSTM(2)(x)
    return keras.Model(inputs, w(layers.GRU(2))(x, initial_state=start))


@case
def sequential_that_ends_in_a_vector(w):
    inputs, x = _tokens()
    return keras.Model(
        inputs, w(keras.Sequential([layers.LSTM(3), layers.Dense(2)]))(x)
    )


@case
def functional_that_ends_in_a_vector(w):
    inside, x = _tokens()
    backbone = keras.Model(inside, layers.LSTM(3)(x))
    inputs = keras.Input((6,), dtype="int32")
    return keras.Model(inputs, layers.Dense(2)(w(backbone)(inputs)))


@case
def custom_layer_that_reduces(w):
    inputs, x = _tokens()
    return keras.Model(inputs, layers.Dense(2)(w(Mean())(x)))


@case
def several_shapes_a_loss_and_a_metric(w):
    inputs = keras.Input((6, 4))
    left, right = layers.Dense(2)(inputs), layers.Dense(3)(inputs)
    outputs = w(TwoShapes())(left, right, factor=2.0)
    return keras.Model(inputs, outputs["sum"] + outputs["mean"])


@case
def attention_with_masks(w):
    inputs, x = _tokens(8)
    y = layers.Dense(8)(x)
    x = w(layers.MultiHeadAttention(2, 4, dropout=0.3))(x, y, use_causal_mask=True)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


@case
def attention_by_keyword(w):
    inputs, x = _tokens(8)
    attention = w(layers.MultiHeadAttention(2, 4))
    x, scores = attention(query=x, value=x, key=x, return_attention_scores=True)
    scores = layers.Permute((2, 3, 1))(scores)
    return keras.Model(inputs, [x, layers.Reshape((6, 12))(scores)])


@case
def list_of_tensors(w):
    inputs, x = _tokens()
    return keras.Model(inputs, w(layers.Attention(use_scale=True))([x, x, x]))


@case
def functional_with_two_inputs(w):
    left, right = keras.Input((6, 4), name="left"), keras.Input((6, 2), name="right")
    joined = layers.Concatenate()([left, right])
    part = keras.Model(
        {"left": left, "right": right},
        {"a": layers.Dense(2)(joined), "b": layers.Dense(3)(joined)},
    )
    inputs = keras.Input((6, 4))
    outputs = w(part)({"left": inputs, "right": layers.Dense(2)(inputs)})
    return keras.Model(inputs, layers.Concatenate()([outputs["a"], outputs["b"]]))


@case
def subclassed_model(w):
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, w(Subclassed())(inputs))


@case
def used_twice(w):
    inputs = keras.Input((6, 4))
    layer = w(layers.Dense(4, "tanh"))
    return keras.Model(inputs, layer(layer(inputs)))


@case
def sequential_without_input(w):
    return keras.Sequential([w(layers.Dense(4)), layers.LSTM(2), w(layers.Dense(2))])


@case
def spectral_normalization(w):
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, w(layers.SpectralNormalization(layers.Dense(3)))(inputs))


@case
def float32_under_mixed_precision(w):
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((6, 4), dtype="float32")
    x = w(layers.Dense(2, dtype="float32"))(1e5 * inputs)
    return keras.Model(inputs, w(layers.Dense(3))(x / 1e5))


@case
def integers(w):
    inputs = keras.Input((6,), dtype="int32")
    return keras.Model(inputs, w(layers.CategoryEncoding(9, "count"))(inputs))


@case
def frozen(w):
    inputs = keras.Input((6, 4))
    return keras.Model(
        inputs, layers.Dense(2)(w(layers.Dense(3, trainable=False))(inputs))
    )


@case
def nested(w):
    inputs = keras.Input((6, 4))
    part = keras.Sequential([w(layers.Dense(4, "relu")), w(layers.Dense(2))])
    return keras.Model(inputs, w(part)(inputs))


@case
def transformer_encoder(w):
    encoder = pytest.importorskip("keras_hub").layers.TransformerEncoder
    inputs, x = _tokens(8)
    x = w(encoder(8, 2, dropout=0.2))(x)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


@pytest.fixture(params=CASES)
def make(request):
    """`make(wrap)`: the model of this case, and what goes in."""
    policy = keras.config.dtype_policy()

    def make(wrap):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = CASES[request.param](_wrap if wrap else lambda layer: layer)
        x = FLOATS
        if model.built and model.inputs[0].dtype == "int32":
            x = TOKENS
        return model, x

    yield make
    keras.config.set_dtype_policy(policy)


def _wrap(layer):
    return WithPrior(layer, PRIOR)


def _arrays(values):
    return [ops.convert_to_numpy(value) for value in keras.tree.flatten(values)]


def _assert_equal(seen, expected):
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_equal(seen[key], value, err_msg=key)
    assert all(np.isfinite(array).all() for array in expected["outputs"])


def _everything(model, x, train):
    """What can be seen of a model before and after a training step."""
    seen = {"outputs": _arrays(model(x)), "masks": _masks(model, x)}
    seen["losses"] = _arrays(model.losses)
    if train and model.trainable_variables:
        y = keras.tree.map_structure(ops.zeros_like, model(x))
        model.compile("sgd", loss="mse", jit_compile=keras.config.backend() == "jax")
        seen["step"] = model.train_on_batch(x, y, return_dict=True)
        seen["weights"] = _arrays(model.variables)
    names = ("path", "dtype", "trainable", "shape")
    seen["variables"] = [[getattr(v, n) for n in names] for v in model.weights]
    seen["outputs' names"] = [x._keras_history.operation.name for x in model.outputs]
    seen["metrics"] = [metric.name for metric in model.metrics]
    return seen


def _masks(model, x):
    """The masks between the layers, as each layer's own output carries them."""
    outputs = keras.tree.flatten(model(x))
    return [_array_or_none(getattr(output, "_keras_mask", None)) for output in outputs]


def _array_or_none(mask):
    return None if mask is None else ops.convert_to_numpy(mask)


def _run(make, wrap, change=None):
    """What is seen of one form of the model, and of which weights are marked."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, x = make(wrap)
        marked = [v.path for v in model.weights if is_marked(v)]
        model = change(model, x) if change else model
        seen = _everything(model, x, train=change is None)
    seen["warnings"] = [str(warning.message) for warning in caught]
    return seen, marked, [v.path for v in model.weights if is_marked(v)]


def test_trains_as_the_bare_layer(make):
    expected, *_ = _run(make, wrap=False)
    seen, *_ = _run(make, wrap=True)
    _assert_equal(seen, expected)


def test_saved_and_loaded_as_the_bare_layer(make, tmp_path):
    def save_and_load(model, x):
        model(x)
        model.save(tmp_path / "model.keras")
        return keras.models.load_model(tmp_path / "model.keras")

    expected, nothing, _ = _run(make, False, save_and_load)
    seen, before, after = _run(make, True, save_and_load)
    _assert_equal(seen, expected)
    assert nothing == []
    assert len(after) >= len(before)


def test_build_gives_the_paths_of_a_call():
    called, built = (_wrap(layers.Dense(3, name="part")) for _ in range(2))
    called(FLOATS)
    built.build((None, 6, 4))
    assert [v.path for v in built.weights] == ["part/kernel", "part/bias"]
    assert [v.path for v in called.weights] == ["part/kernel", "part/bias"]
    assert built.built
    assert all(is_marked(v) for v in built.weights)


def test_build_takes_several_shapes():
    wrapped = _wrap(TwoShapes())
    wrapped.build(left_shape=(None, 2), right_shape=(None, 5))
    assert [v.shape for v in wrapped.weights[:2]] == [(2, 3), (5, 3)]


def test_an_output_keeps_its_name():
    inputs = keras.Input((4,))
    one, two = (_wrap(layers.Dense(1, name=name))(inputs) for name in ("one", "two"))
    model = keras.Model(inputs, {"one": one, "two": two})
    assert model.get_layer("two").layer.name == "two"
    model.compile("sgd", loss={"one": "mse", "two": "mae"}, metrics={"two": ["mse"]})
    x = np.ones((2, 4), "float32")
    y = {"one": np.ones((2, 1)), "two": np.zeros((2, 1))}
    names = model.train_on_batch(x, y, return_dict=True)
    assert {"one_loss", "two_loss", "two_mse"} <= set(names)


def test_the_same_layer_wrapped_and_bare_in_one_graph_needs_a_name():
    inputs, layer = keras.Input((4,)), layers.Dense(4, name="part")
    with pytest.raises(ValueError, match='The name "part" is used 2 times'):
        keras.Model(inputs, layer(_wrap(layer)(inputs)))
    keras.Model(inputs, layer(WithPrior(layer, PRIOR, name="first")(inputs)))


def test_what_is_set_on_the_wrapper_is_set_on_the_layer():
    layer = layers.Dense(2, trainable=False)
    wrapped = _wrap(layer)
    wrapped.build((None, 4))
    assert wrapped.trainable is False
    assert wrapped.trainable_variables == []
    wrapped.trainable = True
    assert len(wrapped.trainable_variables) == 2
    wrapped.dtype_policy = "mixed_bfloat16"
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")
    assert (wrapped.compute_dtype, wrapped.dtype) == ("bfloat16", "float32")


def test_a_compiled_model_inside_leaves_its_metrics_behind():
    inside = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    inside.compile("sgd", loss="mse", metrics=["mae"])
    inside.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))
    model = keras.Sequential([keras.Input((4,)), _wrap(inside)])
    model.compile("sgd", loss="mse")
    assert [metric.name for metric in model.metrics] == ["loss"]


def test_a_delta_fits_the_model_without_the_wrapper():
    models = []
    for wrap in (_wrap, lambda layer: layer):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
        body = wrap(layers.Dense(5, name="body"))
        models.append(keras.Sequential([keras.Input((4,)), body, layers.Dense(2)]))
    wrapped, bare = models
    start = {v.path: ops.convert_to_numpy(v).copy() for v in wrapped.variables}
    mask = SparseMask.from_scores(start, fraction=0.2)
    for path, index in mask.match(wrapped.trainable_variables).items():
        variable = next(v for v in wrapped.trainable_variables if v.path == path)
        changed = start[path].copy()
        changed.flat[index] = 3.0
        variable.assign(changed)
    SparseDelta.from_model(wrapped, mask=mask, base=start).apply(bare)
    x = np.linspace(-1, 1, 12).reshape(3, 4).astype("float32")
    np.testing.assert_array_equal(_arrays(bare(x)), _arrays(wrapped(x)))


def test_quantizes_as_the_bare_layer():
    x, outputs = np.linspace(-1, 1, 12).reshape(3, 4).astype("float32"), []
    for wrap in (lambda layer: layer, _wrap):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, wrap(layers.Dense(3, name="part"))(inputs))
        model.quantize("int8", filters="part")
        outputs.append(ops.convert_to_numpy(model(x)))
    np.testing.assert_array_equal(*outputs)
    assert model.get_layer("part").quantization_mode == "int8"
    with pytest.raises(ValueError, match="already quantized"):
        model.get_layer("part").quantize("int8")


def test_the_summary_tells_the_same_shapes():
    def rows(wrap):
        keras.utils.clear_session(free_memory=False)
        model = Subclassed(wrap)
        model(FLOATS)
        lines = []
        model.summary(print_fn=lambda text, **_: lines.append(text), line_length=90)
        return "\n".join(lines).replace("(WithPrior)", "(Dense)    ")

    assert "(3, 6, 5)" in rows(lambda layer: layer)
    assert rows(_wrap) == rows(lambda layer: layer)


@pytest.mark.filterwarnings("ignore:The `native_serialization`:DeprecationWarning")
def test_exports_as_the_bare_layer(tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    if keras.config.backend() == "torch":
        pytest.skip("Keras exports a torch model by packages that are not installed")
    outputs = []
    for wrap in (lambda layer: layer, _wrap):
        keras.utils.set_random_seed(0)
        inputs, x = _tokens()
        model = keras.Model(inputs, wrap(layers.LSTM(2))(x))
        model.export(tmp_path / "model", verbose=False)
        served = tensorflow.saved_model.load(str(tmp_path / "model"))
        outputs.append(served.serve(TOKENS.astype("int32")).numpy())
    np.testing.assert_array_equal(*outputs)
