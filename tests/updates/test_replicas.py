"""The two stages on several devices against the same run on one.

Devices must be set up before a backend starts, so each case is a process of its own.
"""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune.updates.replicas import dense_gradients

BACKEND = keras.backend.backend()

TRAIN = """
import json
import sys
import warnings

import keras
import numpy as np
from keras import ops

import keras_bayestune as kbt


def train(scope):
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    x[7, 0] = np.nan  # in the second of six batches, on the second of two devices
    with scope:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(
                    6,
                    activation="tanh",
                    kernel_constraint=keras.constraints.MaxNorm(1.0),
                    name="a",
                ),
                keras.layers.Dense(2, name="head"),
            ]
        )
        model.compile(
            kbt.BayesTuneSGLD(
                1e-2,
                warmup_steps=2,
                burn_in_steps=3,
                thinning=1,
                exclude="head",
                weight_decay=0.1,
                seed=3,
                use_ema=True,
            ),
            loss="mse",
        )
        select = kbt.SparseMaskCallback(
            fraction=0.4,
            selection_epochs=2,
            finetune_optimizer=keras.optimizers.AdamW(0.01, use_ema=True),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(
            x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=[select]
        )
    weights = map(ops.convert_to_numpy, model.trainable_variables)
    return {
        "weights": [weight.tolist() for weight in weights],
        "scores": [s.tolist() for s in select.scores.values()],
        "mask": [i.tolist() for i in select.mask.indices.values()],
        "skipped": history.history["skipped_steps"],
        "samples": history.history["samples"],
        **replicas(model),
    }
"""

TENSORFLOW = """
import contextlib

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)


def replicas(model):
    def differ(variable):
        values = getattr(variable.value, "values", [variable.value])
        return any((values[0].numpy() != v.numpy()).any() for v in values)

    variables = [*model.variables, *model.optimizer.variables]
    return {
        "replicas": len(getattr(model.variables[0].value, "values", [0])),
        "differ": [v.path for v in variables if differ(v)],
    }


strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(json.dumps([train(contextlib.nullcontext()), train(strategy.scope())]))
"""

JAX = """
import contextlib


def replicas(model):
    sharding = model.layers[0].kernel.value.sharding
    return {
        "replicas": len(sharding.device_set),
        "sharded": not sharding.is_fully_replicated,
        "differ": [],
    }


mesh = keras.distribution.DeviceMesh((2,), ["model"], keras.distribution.list_devices())
layouts = keras.distribution.LayoutMap(mesh)
layouts[".*a/kernel"] = (None, "model")
distributions = [
    keras.distribution.DataParallel(devices=keras.distribution.list_devices()),
    keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="model"),
]
runs = [train(contextlib.nullcontext())]
for distribution in distributions:
    keras.distribution.set_distribution(distribution)
    runs.append(train(contextlib.nullcontext()))
print(json.dumps(runs))
"""


def run(script, root):
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "KERAS_BACKEND": BACKEND,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    found = subprocess.run(
        [sys.executable, "-c", TRAIN + script],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.skipif(BACKEND == "torch", reason="Keras 3.15 has no strategy for it")
def test_two_devices_train_like_one(root):
    script = {"tensorflow": TENSORFLOW, "jax": JAX}[BACKEND]
    expected, *others = run(script, root)
    assert expected["replicas"] == 1
    assert expected["skipped"] == [1, 2, 3]
    assert others
    if BACKEND == "jax":
        assert [run["sharded"] for run in others] == [False, True]
    for found in others:
        assert found["replicas"] == 2
        assert found["differ"] == []  # the replicas among themselves
        assert found["skipped"] == expected["skipped"]
        assert found["samples"] == expected["samples"]
        assert found["mask"] == expected["mask"]
        for name in ("weights", "scores"):
            for one, other in zip(found[name], expected[name], strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
            pairs = zip(found[name], expected[name], strict=True)
            largest = max(
                np.abs(np.subtract(a, b)).max() / max(np.abs(b).max(), 1e-30)
                for a, b in pairs
            )
            print(f"{name} deviate by {largest:.2g} of the largest of their array")


def test_dense_gradients():
    gradient = np.arange(6.0, dtype="float32").reshape(3, 2)
    variables = [keras.Variable(gradient), keras.Variable(gradient)]
    first, none = dense_gradients([ops.convert_to_tensor(gradient), None], variables)
    np.testing.assert_array_equal(ops.convert_to_numpy(first), gradient)
    assert none is None


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a kind of TensorFlow's gradients")
def test_rows_of_a_sparse_gradient_are_added_up():
    import tensorflow as tf

    rows = tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    slices = tf.IndexedSlices(rows, tf.constant([2, 0, 2]), tf.constant([4, 2]))
    (dense,) = dense_gradients([slices], [keras.Variable(np.zeros((4, 2)))])
    assert isinstance(dense, tf.Tensor) and dense.shape == (4, 2)
    expected = [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [0.0, 0.0]]
    np.testing.assert_array_equal(dense, expected)
