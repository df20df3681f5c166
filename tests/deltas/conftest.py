"""A small model with a head and statistics, and tuned copies of it."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from hypothesis import settings

from keras_bayestune import SparseMask
from keras_bayestune.deltas import SparseDelta

# Hypothesis fails an example that takes 200 ms, which on a busy machine any may.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


class Tuned(NamedTuple):
    model: keras.Model
    mask: SparseMask
    base: dict[str, np.ndarray]
    delta: SparseDelta


def build_model(seed=0, classes=3, width=6, dtype=None):
    """The same base for the same seed, with names numbered anew in each call."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(width, activation="tanh", dtype=dtype)(inputs)
    x = keras.layers.BatchNormalization(dtype=dtype)(x)
    block = keras.Sequential([keras.layers.Dense(width, dtype=dtype)])
    x = keras.layers.Dropout(0.5, dtype=dtype)(block(x))
    outputs = keras.layers.Dense(classes, name="logits", dtype=dtype)(x)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


def tune(model, seed=0, fraction=0.2, **metadata):
    """Changes selected scalars, the head and the statistics; makes the delta."""
    rng = np.random.default_rng(seed)
    body = [v for v in model.trainable_variables if "logits" not in v.path]
    head = [v for v in model.trainable_variables if "logits" in v.path]
    mask = SparseMask.from_scores(
        {v.path: rng.random(v.shape) for v in body},
        fraction=fraction,
        always={v.path: tuple(v.shape) for v in head},
    )
    base = {
        v.path: array_of(v)
        for v in [*body, *model.non_trainable_variables]
        if "logits" not in v.path and "seed" not in v.path
    }
    for variable in head + model.non_trainable_variables:
        if "logits" in variable.path or "moving" in variable.path:
            variable.assign(rng.random(variable.shape) + 2.0)
    for variable in body:
        values = array_of(variable)
        chosen = mask.indices[variable.path]
        values.reshape(-1)[chosen] += rng.normal(size=len(chosen)).astype(values.dtype)
        variable.assign(values)
    delta = SparseDelta.from_model(model, mask=mask, base=base, metadata=metadata)
    return Tuned(model, mask, base, delta)


def array_of(variable):
    """A copy of a variable's values."""
    return np.array(keras.ops.convert_to_numpy(variable.value))


def bits_of(model):
    """Every byte of a model's weights."""
    return b"".join(array_of(weight).tobytes() for weight in model.weights)


def floating_of(model):
    """The model's floating weights, in its order."""
    return [w for w in model.weights if keras.backend.is_float_dtype(w.dtype)]


@pytest.fixture
def small():
    """The functions above, for tests that build several models."""
    return SmallModels


class SmallModels:
    build = staticmethod(build_model)
    tune = staticmethod(tune)
    array = staticmethod(array_of)
    bits = staticmethod(bits_of)
    floating = staticmethod(floating_of)


@pytest.fixture
def base():
    return build_model()


@pytest.fixture
def tuned():
    return tune(build_model())
