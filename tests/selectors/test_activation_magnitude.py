"""|theta0| times the root mean square of the input, against float64 NumPy."""

import keras
import numpy as np
import pytest

from keras_bayestune import WithPrior
from keras_bayestune.priors import LaplacePrior
from keras_bayestune.selectors import ActivationMagnitude
from keras_bayestune.selectors.activation_magnitude import squares_of_inputs
from tests.selectors.network import (
    Batches,
    assert_close,
    chain,
    new_data,
    new_model,
    weights_of,
)


def rms(x):
    return np.sqrt(np.mean(np.square(x.astype("float64")), axis=0))


@pytest.mark.parametrize("data", ["arrays", "data set"])
def test_a_network_of_dense_layers(data):
    model = new_model()
    x, y = new_data()
    arguments = {"data": (x, y), "batch_size": 4}  # and a last batch of 2
    if data == "data set":
        arguments = {"data": Batches(x, y, 4)}
    scores = ActivationMagnitude().scores(model, **arguments)
    w = weights_of(model)
    hidden = np.tanh(x @ w["body/kernel"] + w["body/bias"])
    expected = {
        "body/kernel": np.abs(w["body/kernel"]) * rms(x)[:, None],
        "body/bias": np.abs(w["body/bias"]),
        "head/kernel": np.abs(w["head/kernel"]) * rms(hidden)[:, None],
        "head/bias": np.abs(w["head/bias"]),
    }
    assert_close(scores, expected)
    assert not [layer for layer in model.layers if "call" in vars(layer)]
    first = ActivationMagnitude(steps=1).scores(model, **arguments)
    expected["body/kernel"] = np.abs(w["body/kernel"]) * rms(x[:4])[:, None]
    np.testing.assert_allclose(first["body/kernel"], expected["body/kernel"], 1e-5)


def test_layers_by_what_they_multiply():
    """Tokens, heads, positions, a wrapper, a layer that is called twice."""
    tokens = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 4, name="embedding")(tokens)
    attention = keras.layers.EinsumDense("...a,abc->...bc", (2, 3), name="split")
    x = attention(x)
    x = keras.layers.EinsumDense("atbc,bcd->atd", (3, 4), name="join")(x)
    twice = keras.layers.Dense(4, use_bias=False, name="twice")
    x = twice(twice(x))
    wrapped = WithPrior(keras.layers.Dense(2, use_bias=False, name="w"), LaplacePrior())
    model = keras.Model(tokens, wrapped(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    for layer in model.layers:
        layer.trainable = True
    ids = rng.integers(4, size=(6, 3))  # token 4 is never read
    w = {v.path: v.numpy().astype("float64") for v in model.weights}
    embedded = w["embedding/embeddings"][ids]
    heads = np.einsum("nta,abc->ntbc", embedded, w["split/kernel"])
    joined = np.einsum("ntbc,bcd->ntd", heads, w["join/kernel"])
    once = joined @ w["twice/kernel"]
    final = once @ w["twice/kernel"]
    expected = {
        "w/kernel": rms(final.reshape(-1, 4))[:, None],
        "twice/kernel": rms(np.concatenate([joined, once]).reshape(-1, 4))[:, None],
        "join/kernel": rms(heads.reshape(-1, 2, 3))[..., None],
        "split/kernel": rms(embedded.reshape(-1, 4))[:, None, None],
        "embedding/embeddings": np.sqrt(np.bincount(ids.ravel(), minlength=5) / 18)[
            :, None
        ],
    }
    # Only what is in a wrapper competes, unless nothing is: score all the same.
    del wrapped.layer._kernel.bayestune_prior
    scores = ActivationMagnitude().scores(model, (ids, np.zeros(6)), batch_size=4)
    assert_close(scores, {p: np.abs(w[p]) * e for p, e in expected.items()})


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Conv1D(4, 3), (2, 7, 6)),
        (keras.layers.Conv2D(4, 3, groups=2), (2, 5, 5, 6)),
        (keras.layers.Conv2D(4, 3, data_format="channels_first"), (2, 6, 5, 5)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (2, 5, 5, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_channels_of_convolutions(layer, shape):
    layer.build(shape)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    squares, count = squares_of_inputs(layer, x)
    first = getattr(layer, "data_format", "") == "channels_first"
    channels = np.moveaxis(x, 1, -1) if first else x
    mean = rms(channels.reshape(-1, 6)) ** 2
    kernel = np.broadcast_to(squares / count, layer.kernel.shape)
    for place in np.ndindex(kernel.shape):
        channel, output = place[-2:]
        if "groups" in vars(layer) and layer.groups == 2:
            channel += 3 * (output // 2)
        np.testing.assert_allclose(kernel[place], mean[channel])


def test_a_convolution_in_a_model():
    model = chain(
        keras.Input((5, 5, 2)),
        keras.layers.Conv2D(3, 2, name="conv"),
        keras.layers.GlobalAveragePooling2D(),
    )
    x = np.random.default_rng(0).normal(size=(4, 5, 5, 2)).astype("float32")
    scores = ActivationMagnitude().scores(model, (x, np.zeros((4, 3))))
    kernel = np.abs(model.layers[1].kernel.numpy())
    expected = kernel * rms(x.reshape(-1, 2))[:, None]
    np.testing.assert_allclose(scores["conv/kernel"], expected, 1e-5)


def test_it_needs_data():
    with pytest.raises(ValueError, match="Received no data. Pass a tuple of arrays"):
        ActivationMagnitude().scores(new_model())
    with pytest.raises(ValueError, match="a data set of batches. Received: 3"):
        ActivationMagnitude().scores(new_model(), 3)
    with pytest.raises(ValueError, match="`steps`"):
        ActivationMagnitude(steps=0)
