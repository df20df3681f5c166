"""Only the optimizer changes: in the model, its files and its copies."""

import copy
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_bayestune import SparseMask, fine_tune
from keras_bayestune.callbacks.switching import switch_optimizer
from keras_bayestune.optimizers import SparseOptimizer
from keras_bayestune.selectors import Magnitude
from tests.selectors.network import new_data, new_model

BACKEND = keras.backend.backend()
QUICK = {
    "selector": Magnitude(),
    "fraction": 0.2,
    "finetune_epochs": 1,
    "verbose": 0,
    "batch_size": 2,
}
# What is not the default of the backend.
SETTINGS = {
    "jax": {"jit_compile": False, "steps_per_execution": 2},
    "tensorflow": {"jit_compile": True, "steps_per_execution": 2},
    "torch": {"run_eagerly": True},
}[BACKEND]
CHANGES = {"nothing": {}, "loss": {"loss": "mae"}, "metrics": {"metrics": ["mse"]}}


def settings(model):
    names = "jit_compile", "steps_per_execution", "run_eagerly"
    return {name: getattr(model, name) for name in names}


@pytest.mark.parametrize("change", CHANGES)
def test_compile_settings_stay(change):
    model = new_model("adam", loss="mse", metrics=["mae"], **SETTINGS)
    before = settings(model)
    result = fine_tune(model, new_data(), **QUICK, **CHANGES[change])
    assert settings(model) == before
    assert {name: before[name] for name in SETTINGS} == SETTINGS
    expected = {"loss", "mse" if change == "metrics" else "mae"}
    assert set(result.history.history) == expected


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def checkpointed(model, folder):
    checkpoint = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
    model.fit(*new_data(), callbacks=[checkpoint], verbose=0)
    return keras.saving.load_model(folder / "1.keras")


def copied(model, folder):
    return copy.deepcopy(model)


@pytest.mark.parametrize(
    ("way", "change"),
    [(way, "nothing") for way in (reloaded, checkpointed, copied)]
    + [(reloaded, "loss"), (reloaded, "metrics")],
)
def test_another_copy_moves_the_same_scalars(way, change, tmp_path):
    model = new_model("adam", loss="mse", metrics=["mae"])
    result = fine_tune(model, new_data(), **QUICK, **CHANGES[change])
    other = way(model, tmp_path)
    assert isinstance(other.optimizer, SparseOptimizer)
    assert other.loss == model.loss == ("mae" if change == "loss" else "mse")
    before = other.get_weights()
    logs = other.fit(*new_data(), batch_size=2, verbose=0).history
    assert set(logs) == {"loss", "mse" if change == "metrics" else "mae"}
    for v, old, new in zip(other.weights, before, other.get_weights(), strict=True):
        assert np.array_equal(np.flatnonzero(new != old), result.mask.indices[v.path])


def test_loss_weights_and_weighted_metrics_stay_in_the_file(tmp_path):
    x, y = new_data()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"one": keras.layers.Dense(2, name="one")(inputs)})
    model.compile(
        "sgd", {"one": "mse"}, {"one": 0.5}, weighted_metrics={"one": ["mse"]}
    )
    data = x, {"one": y}
    fine_tune(model, data, **QUICK)
    logs = reloaded(model, tmp_path).evaluate(*data, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], 0.5 * logs["mse"], rtol=1e-5)
    fine_tune(model, data, **QUICK, metrics={"one": ["mae"]})
    logs = reloaded(model, tmp_path).evaluate(*data, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "mae"}
    expected = 0.5 * np.mean((model.predict(x, verbose=0)["one"] - y) ** 2)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def new_scaled(**arguments):
    return new_model(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1), initial_scale=64.0, dynamic_growth_steps=3
        ),
        loss="mse",
        **arguments,
    )


@pytest.mark.parametrize("change", CHANGES)
def test_the_loss_scale_goes_on(change):
    x, y = new_data()
    model = new_scaled()
    model.fit(x, y, batch_size=2, verbose=0)  # 5 updates: doubled once
    mask = SparseMask.from_scores(Magnitude().scores(model), fraction=0.2)
    switch_optimizer(
        model, SparseOptimizer(keras.optimizers.SGD(0.1), mask), **CHANGES[change]
    )
    model.fit(x[:2], y[:2], batch_size=2, verbose=0)
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(optimizer.inner_optimizer, SparseOptimizer)
    assert optimizer.dynamic_growth_steps == 3
    assert float(optimizer.dynamic_scale.numpy()) == 128.0


def test_a_loss_that_was_never_scaled_is_not():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = new_model(loss="mse", auto_scale_loss=False)
    finally:
        keras.config.set_dtype_policy("float32")
    fine_tune(model, new_data(), **QUICK, metrics=["mae"])
    assert isinstance(model.optimizer, SparseOptimizer)


STRATEGY = """
import json

import keras
import numpy as np
import tensorflow as tf

import keras_bayestune as kbt

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 4)), rng.normal(size=(16, 3))
selectors = {
    "sum": kbt.selectors.GradientSum(),
    "movement": kbt.selectors.Movement(keras.optimizers.SGD(0.1), epochs=1),
    "scale": None,
}


def run(scope, name):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    with scope:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
        model.compile("adam", loss="mse")
    selector = selectors[name]
    result = kbt.fine_tune(
        model, (x, y), validation_data=(x, y), selector=selector, fraction=0.3,
        selection_epochs=None if selector else 5, finetune_epochs=2, batch_size=8,
        verbose=0, seed=0,
    )
    values = getattr(model.layers[0].kernel.value, "values", [0])
    return {
        "replicas": len(values),
        "mask": {path: list(map(int, i)) for path, i in result.mask.indices.items()},
        "weights": [w.tolist() for w in model.get_weights()],
    }


import contextlib

print(json.dumps([
    [run(contextlib.nullcontext(), name), run(strategy.scope(), name)]
    for name in selectors
]))
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="strategies are TensorFlow's")
def test_outside_the_scope_of_the_model(root):
    found = subprocess.run(
        [sys.executable, "-c", STRATEGY],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    runs = json.loads(found.stdout.splitlines()[-1])
    assert len(runs) == 3
    for one, two in runs:
        assert (one["replicas"], two["replicas"]) == (1, 2)
        assert one["mask"] == two["mask"]
        for mine, expected in zip(two["weights"], one["weights"], strict=True):
            np.testing.assert_allclose(mine, expected, rtol=2e-4, atol=1e-6)
