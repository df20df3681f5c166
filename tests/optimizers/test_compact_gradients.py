"""Stage 2 with compact gradients ends where stage 2 without them does."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD, Adam

from keras_bayestune import SparseMask, SparseOptimizer
from keras_bayestune.optimizers.compact_gradients import CompactGradients
from keras_bayestune.updates import selected_gradients

BACKEND = keras.backend.backend()
TOKENS = 30


class OwnDense(keras.layers.Dense):
    """A layer whose `call` may do anything."""

    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs, training=training)


def new_model(dtype="float32"):
    """Tied embeddings, a regularised layer used twice, one with its own call."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(dtype)
    layers = keras.layers
    ids = keras.Input((6,), dtype="int32")
    table = layers.ReversibleEmbedding(TOKENS, 8, name="table")
    x = layers.LayerNormalization(name="norm")(table(ids))
    twice = layers.Dense(8, "tanh", kernel_regularizer="l2", name="twice")
    x = OwnDense(8, name="own")(twice(twice(x)))
    x = layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", name="einsum")(x)
    keras.config.set_dtype_policy("float32")
    return keras.Model(ids, table(x, reverse=True))


def new_mask(model):
    rng = np.random.default_rng(3)
    scores = {v.path: rng.random(v.shape) for v in model.trainable_variables}
    scores = {p: s * ("norm" not in p) for p, s in scores.items()}
    return SparseMask.from_scores(scores, fraction=0.2)


def new_compiled(inner=lambda: Adam(1e-2), dtype="float32", **arguments):
    model = new_model(dtype)
    optimizer = SparseOptimizer(inner(), new_mask(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **arguments)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, gradients=None, x=None, y=None, batch_size=8):
    callbacks = []
    if gradients is not None:
        announcing = keras.callbacks.Callback()
        announcing.on_train_batch_begin = lambda batch, logs=None: gradients.announce()
        callbacks.append(announcing)
    if x is None:
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, TOKENS, (2, 24, 6)).astype("int32")
    model.fit(
        x,
        y,
        batch_size=batch_size,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
    )
    return [ops.convert_to_numpy(v) for v in model.weights]


def fitted_both_ways(**arguments):
    dense = fit(new_compiled(**arguments))
    model = new_compiled(**arguments)
    gradients = CompactGradients(model, force=True)
    gradients.install()
    before = [ops.convert_to_numpy(v).copy() for v in model.weights]
    compact = fit(model, gradients)
    return model, gradients, before, dense, compact


def test_ends_where_whole_gradients_end():
    model, gradients, before, dense, compact = fitted_both_ways()
    for new, old in zip(compact, dense, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-6)
    names = {path.split("/")[0] for path in gradients.layers}
    assert names == {"table", "twice", "einsum"}
    mask = unwrapped(model).mask
    for variable, old, new in zip(model.weights, before, compact, strict=True):
        frozen = np.ones(new.size, bool)
        frozen[mask.indices.get(variable.path, [])] = False
        assert new.reshape(-1)[frozen].tobytes() == old.reshape(-1)[frozen].tobytes()


def unwrapped(model):
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        ("mixed_bfloat16", 2e-2),
        pytest.param("mixed_float16", 4e-3, marks=pytest.mark.long),
    ],
)
def test_mixed_precision(dtype, tolerance):
    *_, dense, compact = fitted_both_ways(inner=lambda: SGD(0.1), dtype=dtype)
    for new, old in zip(compact, dense, strict=True):
        np.testing.assert_allclose(new, old, atol=tolerance)


@pytest.mark.long
def test_accumulation_clipping_and_weight_decay():
    def inner():
        return Adam(
            1e-2, gradient_accumulation_steps=2, global_clipnorm=0.5, weight_decay=0.1
        )

    *_, dense, compact = fitted_both_ways(inner=inner)
    for new, old in zip(compact, dense, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-6)


@pytest.mark.long
@pytest.mark.skipif(BACKEND == "torch", reason="does not compile by default")
@pytest.mark.parametrize("jit_compile", [True, False])
def test_with_and_without_a_compiler(jit_compile):
    *_, dense, compact = fitted_both_ways(jit_compile=jit_compile)
    for new, old in zip(compact, dense, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-6)


def test_nothing_is_left_behind(tmp_path):
    model = new_compiled()
    paths = [v.path for v in model.weights]
    trainable = [v.path for v in model.trainable_variables]
    state = len(model.optimizer.variables)
    gradients = CompactGradients(model, force=True)
    gradients.install()
    fit(model, gradients)
    model.save_weights(tmp_path / "during.weights.h5")
    assert [v.path for v in model.weights] == paths
    gradients.remove()
    assert [v.path for v in model.trainable_variables] == trainable
    assert len(model.optimizer.variables) == state
    assert "train_step" not in vars(model)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    other = new_model()
    other.load_weights(tmp_path / "during.weights.h5")
    for new, old in zip(other.weights, model.weights, strict=True):
        assert np.array_equal(ops.convert_to_numpy(new), ops.convert_to_numpy(old))


def test_a_model_compiled_anew_trains_as_a_whole():
    model = new_compiled()
    gradients = CompactGradients(model, force=True)
    gradients.install()
    model.compile(SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    before = ops.convert_to_numpy(model.get_layer("norm").gamma).copy()
    fit(model, gradients)
    assert (ops.convert_to_numpy(model.get_layer("norm").gamma) != before).all()


def test_gradient_bytes():
    model = new_compiled()
    gradients = CompactGradients(model, force=True)
    selected = {p: len(i) for p, i in unwrapped(model).mask.indices.items()}
    compact = sum(4 * selected[path] for path in gradients.layers)
    whole = sum(
        4 * v.value.numpy().size if BACKEND == "tensorflow" else v.value.nbytes
        for v in model.trainable_variables
        if selected.get(v.path) and v.path not in gradients.layers
    )
    assert gradients.gradient_bytes == compact + whole


def test_layers_that_do_something_else_with_their_weight_are_left_alone():
    model = new_model()
    model.get_layer("einsum").enable_lora(2)
    model.get_layer("twice").quantize("int8")
    optimizer = SparseOptimizer(Adam(1e-2), new_mask(model))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    optimizer.build(model.trainable_variables)
    gradients = CompactGradients(model, force=True)
    names = {path.split("/")[0] for path in gradients.layers}
    assert names == {"table"}


def test_eager_models_and_models_without_stage_two():
    model = new_compiled(run_eagerly=True)
    assert not CompactGradients(model, force=True).layers
    model.compile(SGD(0.1), "mse")
    with pytest.raises(ValueError, match=r"needs a model whose SparseOptimizer is bui"):
        CompactGradients(model)


class Inside(keras.layers.Layer):
    """Calls a layer from inside something."""

    def __init__(self, how, dense):
        super().__init__()
        self.how, self.dense = how, dense

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.how(self.dense, x)

    def compute_output_shape(self, shape):
        return shape


def scanned(layer, x):
    _, rows = ops.scan(lambda carry, row: (carry, layer(row)), x[0], xs=x)
    return rows


PLACES = {
    "vectorized_map": lambda layer, x: ops.vectorized_map(layer, x),
    "map": lambda layer, x: ops.map(layer, x),
    "scan": scanned,
    "cond": lambda layer, x: ops.cond(
        ops.sum(x) > 0, lambda: layer(x), lambda: 2.0 * layer(x)
    ),
    "loop": lambda layer, x: ops.fori_loop(0, 2, lambda i, x: layer(x), x),
    "both": lambda layer, x: layer(x) + ops.vectorized_map(layer, x),
}


@pytest.mark.parametrize("force", [True, False], ids=["True", "auto"])
def test_a_layer_that_is_called_inside_something(force, monkeypatch):
    monkeypatch.setattr(selected_gradients, "SMALLEST_WEIGHT", 1)
    monkeypatch.setattr(selected_gradients, "ENTRY_COST", 1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 3, 6)).astype("float32")
    found = []
    for compact in (False, True):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        layers = keras.layers
        outputs = inputs = keras.Input((3, 6), batch_size=4)
        for name, how in PLACES.items():
            outputs = Inside(how, layers.Dense(6, "tanh", name=name))(outputs)
        outputs = layers.TimeDistributed(layers.Dense(6))(outputs)
        dense = layers.Dense(6)
        with keras.RematScope(mode="full"):
            rematerialised = Inside(lambda layer, x: layer(x), dense)
        model = keras.Model(inputs, rematerialised(outputs))
        mask = SparseMask(
            {v.path: [0, 1] for v in model.weights},
            {v.path: tuple(v.shape) for v in model.weights},
        )
        model.compile(SparseOptimizer(SGD(0.5), mask), "mse")
        before = [ops.convert_to_numpy(v).copy() for v in model.weights]
        model.optimizer.build(model.trainable_variables)
        gradients = None
        if compact:
            gradients = CompactGradients(model, force=force)
            assert gradients.layers or BACKEND == "torch"
            gradients.install()
        fit(model, gradients, x=x, y=y, batch_size=4)
        found.append([ops.convert_to_numpy(v) for v in model.weights])
    for dense, compact, old in zip(*found, before, strict=True):
        np.testing.assert_allclose(compact, dense, atol=1e-6)
        assert (dense.reshape(-1)[:2] != old.reshape(-1)[:2]).all()


def test_a_train_step_of_the_users_own_keeps_whole_gradients(monkeypatch):
    class Own(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    monkeypatch.setattr(selected_gradients, "SMALLEST_WEIGHT", 1)
    model = new_model()
    own = Own(model.inputs, model.outputs)
    own.compile(SparseOptimizer(Adam(1e-2), new_mask(own)), "mse")
    own.optimizer.build(own.trainable_variables)
    assert not CompactGradients(own).layers
    assert CompactGradients(own, force=True).layers
