"""What `save_merged` writes loads where this library cannot be imported."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, LaplacePrior, SparseMask, SparseOptimizer
from keras_bayestune.deltas import SparseDelta, save_merged
from keras_bayestune.priors import WithPrior

X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")

# In a process of its own: loads every model, and writes down what it predicts and how
# it is compiled.
LOAD = """
import sys
sys.modules["keras_bayestune"] = None  # every import of it fails
import pathlib, keras, numpy as np
sys.path.insert(0, sys.argv[1])
import own_layers
x = np.load(f"{sys.argv[1]}/x.npy")
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    model = keras.saving.load_model(path)
    loss = model.evaluate(x, np.zeros((5, 2)), verbose=0) if model.compiled else 0.0
    np.savez(path.with_suffix(".npz"), predicted=model.predict(x, verbose=0), loss=loss)
    print(path.stem, [layer.name for layer in model.layers], file=sys.stderr)
"""

OWN_LAYERS = """
import keras

@keras.saving.register_keras_serializable(package="own")
class Stack(keras.Model):
    def __init__(self, body, head, **kwargs):
        super().__init__(**kwargs)
        self.body, self.head = body, head

    def call(self, inputs):
        return self.head(self.body(inputs))

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        parts = {"body": serialize(self.body), "head": serialize(self.head)}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config.pop(name))
            for name in ("body", "head")
        }
        return cls(**parts, **config)
"""


def dense(units, name):
    return keras.layers.Dense(units, activation="tanh", name=name)


def backbone():
    inputs = keras.Input((4,))
    x = LaplacePrior().wrap(dense(6, "inner"))(inputs)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, dense(3, "features")(x), name="backbone")


def functional():
    inputs = keras.Input((4,))
    x = LaplacePrior().wrap(backbone())(inputs)
    fresh = WithPrior(dense(3, "inner"), None, name="fresh")
    x = keras.layers.Add()([x, fresh(inputs)])
    return keras.Model(inputs, dense(2, "inner")(x))


def sequential():
    layers = [LaplacePrior().wrap(dense(3, "body")), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((4,)), *layers, dense(2, "head")])


def bare():
    layers = [dense(3, "body"), dense(2, "head")]
    return keras.Sequential([keras.Input((4,)), *layers])


def stage_one():
    model = sequential()
    optimizer = BayesTuneSGLD(1e-3, warmup_steps=1, burn_in_steps=2, thinning=1)
    model.compile(optimizer, loss="mse", metrics=["mae"])
    return model


def stage_one_without_prior():
    model = bare()
    optimizer = BayesTuneSGLD(1e-3, warmup_steps=1, burn_in_steps=2, thinning=1)
    model.compile(optimizer, loss="mse", metrics=["mae"])
    return model


def stage_two():
    model = bare()
    shapes = {v.path: tuple(v.shape) for v in model.trainable_variables}
    mask = SparseMask({path: [0] for path in shapes}, shapes)
    optimizer = SparseOptimizer(keras.optimizers.Adam(1e-2), mask)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, loss="mse", metrics=["mae"])
    return model


def adam():
    model = sequential()
    model.compile("adam", loss="mse", metrics=["mae"])
    return model


MODELS = [
    functional,
    sequential,
    stage_one,
    stage_one_without_prior,
    stage_two,
    adam,
]


def changed(make):
    """A model, a tuned copy of it, and the delta between them."""
    base, tuned = new(make), new(make)
    rng = np.random.default_rng(1)
    tuned.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in base.get_weights()])
    return base, tuned, SparseDelta.from_checkpoints(base, tuned)


def new(make):
    keras.utils.set_random_seed(3)
    return make()


def test_without_the_library(tmp_path, monkeypatch):
    (tmp_path / "own_layers.py").write_text(OWN_LAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    import own_layers

    def subclassed():
        parts = LaplacePrior().wrap(dense(3, "body")), dense(2, "head")
        model = own_layers.Stack(*parts)
        model(X)
        return model

    expected = {}
    for make in [*MODELS, subclassed]:
        base, tuned, delta = changed(make)
        before = base.get_weights(), base.optimizer if base.compiled else None
        compiled = base.get_compile_config() if base.compiled else None
        save_merged(base, delta, tmp_path / f"{make.__name__}.keras")
        for one, two in zip(base.get_weights(), before[0], strict=True):
            np.testing.assert_array_equal(one, two)
        if base.compiled:
            assert base.optimizer is before[1]
            assert base.get_compile_config() == compiled
        expected[make.__name__] = tuned.predict(X, verbose=0)
    np.save(tmp_path / "x.npy", X)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Skipping variable loading" not in run.stderr
    for name, predicted in expected.items():
        with np.load(tmp_path / f"{name}.npz") as loaded:
            np.testing.assert_allclose(loaded["predicted"], predicted, rtol=1e-6)
            if name not in ("functional", "sequential", "subclassed"):
                mse, mae = loaded["loss"]
                np.testing.assert_allclose(mse, np.mean(predicted**2), rtol=1e-5)
                np.testing.assert_allclose(mae, np.abs(predicted).mean(), rtol=1e-5)
    lines = dict(line.split(" ", 1) for line in run.stderr.splitlines() if "[" in line)
    assert lines["sequential"] == "['body', 'dropout', 'head']"
    # The name inside the wrapper, unless another layer has it.
    names = lines["functional"]
    assert "'backbone'" in names
    assert names.count("'inner'") == 1
    assert names.count("'fresh'") == 1


def test_weights_fit_a_bare_model(tmp_path):
    base, tuned, delta = changed(stage_one)
    save_merged(base, delta, tmp_path / "m.weights.h5")
    layers = [dense(3, "body"), keras.layers.Dropout(0.5), dense(2, "head")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.load_weights(tmp_path / "m.weights.h5")
    for one, two in zip(model.get_weights(), tuned.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_failure_leaves_the_compilation(tmp_path, monkeypatch):
    base, _, delta = changed(stage_two)
    optimizer, compiled = base.optimizer, base.get_compile_config()

    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(base, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_merged(base, delta, tmp_path / "m.keras")
    assert base.optimizer is optimizer
    assert base.get_compile_config() == compiled


@keras.saving.register_keras_serializable(package="test_plain")
class OwnPrior(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = LaplacePrior().wrap(keras.layers.Dense(2))

    def call(self, inputs):
        return self.body(inputs)


def own_prior():
    model = OwnPrior()
    model(X)
    return model


def regularized():
    layer = keras.layers.Dense(2, kernel_regularizer=LaplacePrior())
    return keras.Sequential([keras.Input((4,)), layer])


def vocabulary():
    inputs = keras.Input((4,))
    numbers = keras.layers.IntegerLookup(vocabulary=[1, 2], output_mode="multi_hot")
    x = keras.layers.Concatenate()([numbers(inputs), inputs])
    return keras.Model(inputs, LaplacePrior().wrap(keras.layers.Dense(2))(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_prior, "OwnPrior makes a WithPrior in its own code"),
        (regularized, "holds keras_bayestune>LaplacePrior.*weights.h5"),
        (vocabulary, "'integer_lookup' holds a vocabulary"),
    ],
)
def test_what_cannot_do_without(make, message, tmp_path):
    base, _, delta = changed(make)
    before = base.get_weights()
    with pytest.raises(ValueError, match=message):
        save_merged(base, delta, tmp_path / "m.keras")
    for one, two in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)
    assert list(pathlib.Path(tmp_path).iterdir()) == []
