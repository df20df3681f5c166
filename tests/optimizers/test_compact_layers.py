"""Heads, convolutions, weights that others read: compact, or whole and counted so."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.optimizers import SGD

from keras_bayestune import SparseMask, SparseOptimizer
from keras_bayestune.optimizers.compact_gradients import CompactGradients
from keras_bayestune.optimizers.compact_layers import _windows, uses_of

VOCABULARY = 100_000


def fit_both_ways(build, x, y, fraction, learning_rate, tables=(), steps=2):
    """Train with whole and with compact gradients; the weights end alike.

    The mask takes rows `x` of `tables` first. Return the model that had compact
    gradients, these, and its weights before and after.
    """
    found = []
    for compact in (False, True):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = build()
        rng = np.random.default_rng(3)
        scores = {v.path: rng.random(v.shape) for v in model.trainable_variables}
        for path in tables:
            scores[path][x] += 1.0
        optimizer = SparseOptimizer(
            SGD(learning_rate), SparseMask.from_scores(scores, fraction=fraction)
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        optimizer.build(model.trainable_variables)
        before = [ops.convert_to_numpy(v).copy() for v in model.weights]
        if compact:
            gradients = CompactGradients(model, force=True)
            gradients.install()
        for _ in range(steps):
            if compact:
                gradients.announce()
            model.train_on_batch(x, y)
        found.append([ops.convert_to_numpy(v) for v in model.weights])
    for whole, compact in zip(*found, strict=True):
        np.testing.assert_allclose(compact, whole, atol=2e-6)
    return model, gradients, before, found[1]


def test_heads_of_large_vocabularies():
    def build():
        ids = keras.Input((3,), batch_size=4, dtype="int32")
        with keras.RematScope("list_of_layers", layer_names=["another"]):
            tied = layers.ReversibleEmbedding(VOCABULARY, 8, name="tied")
        untied = layers.ReversibleEmbedding(
            VOCABULARY, 8, tie_weights=False, logit_soft_cap=2.0, name="untied"
        )
        x = tied(ids) + untied(ids)
        logits = tied(x, reverse=True) + untied(x, reverse=True)
        return keras.Model(ids, logits)

    tables = ["tied/embeddings", "untied/embeddings"]
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 4, 3)).astype("int32")
    model, gradients, before, after = fit_both_ways(build, *ids, 0.005, 20.0, tables)
    assert list(gradients.layers) == [*tables, "untied/reverse_embeddings"]
    whole = sum(array.nbytes for array in before)
    assert gradients.gradient_bytes == 0.005 * whole < 0.02 * whole
    for old, new in zip(before, after, strict=True):
        assert np.abs(new - old).max() > 1e-3


class Reader(layers.Layer):
    """Takes a sublayer's kernel instead of calling it, or beside calling it."""

    def __init__(self, name, calls):
        super().__init__(name=name)
        self.calls = calls
        self.dense = layers.Dense(6, use_bias=calls, name="read")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        read = ops.matmul(x, self.dense.kernel)
        return read + self.dense(x) if self.calls else read


class Experts(layers.Layer):
    """A matrix for each expert in one weight, as in mixtures of experts."""

    def build(self, shape):
        self.experts = layers.EinsumDense("bea,eac->bec", (3, 6), name="einsum")
        self.experts.build((None, 3, shape[-1]))
        self.bank = self.add_weight(shape=(3, 6, shape[-1]), name="bank")

    def call(self, x):
        x = ops.repeat(ops.expand_dims(x, 1), 3, axis=1)
        return ops.mean(ops.einsum("bec,ecd->bed", self.experts(x), self.bank), axis=1)


def test_what_else_reads_or_convolves():
    def build():
        x = images = keras.Input((9, 10, 3), batch_size=4)
        x = layers.Conv2D(5, (4, 3), (4, 3), activation="tanh", name="patches")(x)
        x = layers.Conv2D(5, 1, 2, padding="same", use_bias=False, name="strided")(x)
        x = layers.Conv2D(5, (1, 2), padding="same", name="overlapping")(x)
        x = layers.Reshape((2, 5))(x)
        x = layers.Conv1D(6, 1, padding="causal", name="pointwise")(x)
        x = layers.Conv1D(6, 2, 2, name="windows")(x)
        x = layers.Dense(6, "tanh", name="dense")(layers.Flatten()(x))
        x = Reader("alone", False)(x)
        x = Reader("both", True)(x)
        return keras.Model(images, Experts(name="experts")(x))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 9, 10, 3)).astype("float32"), rng.integers(0, 6, 4)
    model, gradients, before, after = fit_both_ways(build, x, y, 0.5, 1.0)
    selected = {p: len(i) for p, i in model.optimizer.mask.indices.items()}
    compact = {"patches", "strided", "pointwise", "windows", "dense"}
    total, count = 0, 0
    for variable, old, new in zip(model.weights, before, after, strict=True):
        assert (old != new).any()
        path = variable.path
        name, kind = path.split("/")[-2:]
        is_compact = kind == "kernel" and name in compact
        count += is_compact
        total += 4 * (selected[path] if is_compact else old.size)
    assert count == 5
    # Their probes have gradients, too: nobody knows before that a kernel is read.
    readers = [p for p in gradients.layers if p.endswith("read/kernel")]
    assert len(readers) == 2
    assert gradients.gradient_bytes == total + 4 * sum(selected[p] for p in readers)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv3D(4, (2, 1, 3), (2, 2, 3)), (2, 5, 7, 7, 3)),
        (layers.Conv2D(4, (2, 3), (2, 3), data_format="channels_first"), (2, 3, 5, 7)),
    ],
    ids=["3-D", "channels first"],
)
def test_a_convolution_is_a_product_of_windows(layer, shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer.build(shape)
    kernel = ops.convert_to_numpy(layer.kernel)
    last = layer.data_format == "channels_last"
    y = ops.conv(  # TensorFlow has no other data format on CPUs
        x if last else np.moveaxis(x, 1, -1),
        kernel,
        list(layer.strides),
        data_format="channels_last",
    )
    layout = uses_of(layer)["kernel"].layout
    matrix = np.zeros((layout.rows, layout.columns))
    matrix[layout.rows_and_columns(np.arange(kernel.size))] = kernel.reshape(-1)
    windows = layout.aligned_input(_windows(layer, ops.convert_to_tensor(x)))
    found = ops.convert_to_numpy(windows) @ matrix
    expected = layout.aligned_output(y if last else ops.moveaxis(y, -1, 1))
    np.testing.assert_allclose(found, ops.convert_to_numpy(expected), atol=1e-5)
