"""The summed gradient against float64, for every kind of data, loss and model."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune.selectors import GradientSum
from tests.selectors.network import (
    Batches,
    assert_close,
    batches,
    chain,
    gradients,
    new_data,
    new_model,
    weights_of,
)


def expected(model, batches_, factor=1.0):
    weights = weights_of(model)
    each = [gradients(weights, x, y) for x, y in batches_]
    return {path: np.abs(factor * sum(g[path] for g in each)) for path in weights}


def test_the_sum_over_batches_and_not_over_examples():
    x, y = new_data()  # 10 rows: batches of 4, 4 and 2
    model = new_model()
    scores = GradientSum().scores(model, (x, y), "mse", batch_size=4)
    assert_close(scores, expected(model, batches(x, y, 4)))
    whole = expected(model, [(x, y)], factor=3.0)
    assert any(not np.allclose(scores[path], whole[path], rtol=1e-2) for path in scores)


def test_steps_are_an_upper_bound():
    x, y = new_data()
    model = new_model()
    selector = GradientSum(steps=2)
    scores = selector.scores(model, (x, y), "mse", batch_size=4)
    assert_close(scores, expected(model, batches(x, y, 4)[:2]))


@pytest.mark.parametrize("kind", ["PyDataset", "tf.data", "generator"])
def test_data_sets(kind):
    x, y = new_data()
    data = Batches(x, y, 4)
    if kind == "generator":
        data = (batch for batch in batches(x, y, 4))
    elif kind != "PyDataset":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model = new_model()
    scores = GradientSum(steps=9).scores(model, data, "mse")
    assert_close(scores, expected(model, batches(x, y, 4)))


def test_layers_behave_as_outside_training():
    x, y = new_data()
    model = chain(
        keras.Input(x.shape[1:]),
        keras.layers.Dropout(0.5),
        keras.layers.BatchNormalization(name="norm", center=False, scale=False),
        keras.layers.Dense(2, name="head"),
    )
    norm, head = model.layers[2:]
    norm.moving_mean.assign([0.3, -0.2, 0.1, 0.7])
    norm.moving_variance.assign([0.5, 2.0, 1.5, 0.8])
    scores = GradientSum().scores(model, (x, y), "mse", batch_size=10)
    features = (x - norm.moving_mean.numpy()) / np.sqrt(
        norm.moving_variance.numpy() + norm.epsilon
    )
    error = features @ head.kernel.numpy() + head.bias.numpy() - y
    assert_close(
        scores,
        {
            "head/kernel": np.abs(features.T @ (2 * error / error.size)),
            "head/bias": np.abs((2 * error / error.size).sum(0)),
        },
    )


def test_sample_weights_and_the_compiled_loss():
    x, y = new_data()
    weight = np.linspace(0.2, 1.7, len(x)).astype("float32")
    model = new_model(loss="mse", metrics=["mae"])
    scores = GradientSum().scores(model, (x, y, weight), batch_size=10)
    weights = weights_of(model)
    rows = [w * g / len(x) for w, g in zip(weight, _rows(weights, x, y), strict=True)]
    total = sum(rows[1:], rows[0])
    assert_close(scores, {path: np.abs(g) for path, g in total.items()})


class _Gradient(dict):
    """Gradients by path, with sums and multiples."""

    def __add__(self, other):
        return _Gradient({path: g + other[path] for path, g in self.items()})

    def __mul__(self, factor):
        return _Gradient({path: g * float(factor) for path, g in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        return self * (1.0 / divisor)


def _rows(weights, x, y):
    return [_Gradient(gradients(weights, *row)) for row in batches(x, y, 1)]


@pytest.mark.parametrize("compiled", [True, False])
def test_several_outputs(compiled):
    x, y = new_data()
    inputs = keras.Input(x.shape[1:])
    one = keras.layers.Dense(2, name="one")(inputs)
    two = keras.layers.Dense(2, name="two")(inputs)
    model = keras.Model(inputs, [one, two])
    losses = {"one": "mse", "two": "mse"}
    if compiled:
        model.compile("sgd", loss=losses, loss_weights={"one": 0.3, "two": 2.5})
    data = (x, {"one": y, "two": 2 * y})
    scores = GradientSum().scores(model, data, None if compiled else losses)
    factors = {"one": 0.3, "two": 2.5} if compiled else {"one": 1.0, "two": 1.0}
    for name, target in (("one", y), ("two", 2 * y)):
        kernel, bias = (w.numpy() for w in model.get_layer(name).trainable_variables)
        error = 2 * (x @ kernel + bias - target) / y.size
        path = f"{name}/kernel"
        assert_close(
            {path: scores[path]}, {path: np.abs(factors[name] * (x.T @ error))}
        )


def test_masks_reach_the_loss():
    ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 1]])
    y = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    model = chain(
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(4, 3, mask_zero=True),
        keras.layers.Dense(2, name="head"),
    )
    model.compile("sgd", loss="mse")
    scores = GradientSum().scores(model, (ids, y), batch_size=3)
    table, kernel, bias = (w.numpy() for w in model.weights)
    features, seen = table[ids], (ids > 0)[..., None]
    error = seen * (features @ kernel + bias - y) / seen.sum()
    expected = np.abs(np.einsum("bti,bto->io", features, error))  # 2 / 2 outputs
    assert_close({"head": scores["head/kernel"]}, {"head": expected})


def test_weights_are_not_touched_by_a_constraint():
    x, y = new_data()
    model = chain(
        keras.Input(x.shape[1:]),
        keras.layers.Dense(2, name="head", kernel_constraint="non_neg"),
    )
    kernel, bias = (w.numpy() for w in model.weights)
    assert (kernel < 0).any()
    scores = GradientSum().scores(model, (x, y), "mse", batch_size=5)
    error = [2 * (x @ kernel + bias - y) / 10 for x, y in batches(x, y, 5)]
    total = sum(x.T @ e for (x, _), e in zip(batches(x, y, 5), error, strict=True))
    assert_close({"k": scores["head/kernel"]}, {"k": np.abs(total)})


def test_batches_without_finite_gradient_are_left_out():
    x, y = new_data()
    model = new_model()
    broken = y.copy()
    broken[5, 1] = np.nan
    with pytest.warns(UserWarning, match="1 of 3 batches were left out"):
        scores = GradientSum().scores(model, (x, broken), "mse", batch_size=4)
    first, _, last = batches(x, y, 4)
    assert_close(scores, expected(model, [first, last]))
    with pytest.raises(ValueError, match="None of the gradients of 3 batches was fin"):
        GradientSum().scores(model, (x, np.full_like(y, np.inf)), "mse", batch_size=4)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_narrow_dtypes_are_summed_in_float32(dtype):
    x, y = new_data()
    exact = new_model()
    model = new_model(dtype=dtype)
    scores = GradientSum().scores(model, (x, y), "mse", batch_size=10)
    target = expected(exact, [(x, y)])
    for path, score in scores.items():
        assert score.dtype == np.float32
        np.testing.assert_allclose(score, target[path], atol=0.03)


def test_compiled_and_eager_give_the_same():
    x, y = new_data()
    target = expected(new_model(), batches(x, y, 5))
    for arguments in ({"run_eagerly": True}, {"jit_compile": True}):
        if arguments == {"jit_compile": True} and keras.backend.backend() == "torch":
            continue  # needs a C++ compiler
        keras.utils.clear_session(free_memory=False)
        model = new_model(loss="mse", **arguments)
        assert_close(GradientSum().scores(model, (x, y), batch_size=5), target)


def test_a_variable_that_the_loss_does_not_see_scores_nothing():
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = keras.layers.Dense(2, name="used")
            self.unused = keras.layers.Dense(2, name="unused")

        def build(self, shape):
            self.used.build(shape)
            self.unused.build(shape)

        def call(self, x):
            return self.used(x)

    x, y = new_data()
    model = Unused()
    model.build(x.shape)
    scores = GradientSum().scores(model, (x, y), "mse")
    assert ops.all(scores[model.unused.kernel.path] == 0)
    assert ops.all(scores[model.used.kernel.path] > 0)


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "3"])
def test_steps_are_checked(steps):
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1"):
        GradientSum(steps=steps)
