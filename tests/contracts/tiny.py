"""A tiny model and data, and what the suites of this folder look at."""

import inspect

import keras
import numpy as np


def new_data(rows=20):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, (x[:, :2] * 2.0 + 0.1 * rng.normal(size=(rows, 2))).astype("float32")


def new_model(optimizer=None):
    keras.utils.clear_session(free_memory=False)  # the names begin anew
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, "tanh", name="body")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    if optimizer is not None:
        model.compile(optimizer, loss="mse")
    return model


def fit(model, epochs=4):
    """Train without shuffling, so that two runs see the same batches."""
    x, y = new_data()
    return model.fit(x, y, batch_size=5, epochs=epochs, shuffle=False, verbose=0)


def bits(variables):
    return [keras.ops.convert_to_numpy(v.value).tobytes() for v in variables]


def concrete_subclasses(module, base):
    """Names of the classes of `base` that a module makes public, without `base`."""
    return {
        name
        for name in module.__all__
        if inspect.isclass(value := getattr(module, name))
        and issubclass(value, base)
        and value is not base
    }
