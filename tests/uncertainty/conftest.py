"""A small classifier or regression with a new head, and deltas of it."""

from typing import NamedTuple

import keras
import numpy as np
import pytest

from keras_bayestune import SparseDelta, SparseMask


class Tuned(NamedTuple):
    model: keras.Model  # holds the base
    base: dict[str, np.ndarray]
    mask: SparseMask
    deltas: list[SparseDelta]


def build(classes=3, seed=0, activation=None):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(6, activation="tanh", name="hidden")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    outputs = keras.layers.Dense(classes, activation=activation, name="head")(x)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


def numpy_of(model):
    return {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}


def tune(model, mask, seed):
    """Move what the mask selects, make the delta, and put the base back."""
    rng = np.random.default_rng(seed)
    base = numpy_of(model)
    for variable in model.trainable_variables:
        values = base[variable.path].copy()
        indices = mask.indices[variable.path]
        values.reshape(-1)[indices] += rng.normal(size=len(indices))
        variable.assign(values)
    delta = SparseDelta.from_model(model, mask=mask, base=base)
    for variable in model.weights:
        variable.assign(base[variable.path])
    return delta


def tuned(classes=3, count=3, seed=0, activation=None):
    model = build(classes, seed, activation)
    rng = np.random.default_rng(seed)
    body = [v for v in model.trainable_variables if "head" not in v.path]
    head = {
        v.path: tuple(v.shape) for v in model.trainable_variables if "head" in v.path
    }
    mask = SparseMask.from_scores(
        {v.path: rng.random(v.shape) for v in body}, 0.3, always=head
    )
    deltas = [tune(model, mask, seed=100 + k) for k in range(count)]
    return Tuned(model, numpy_of(model), mask, deltas)


@pytest.fixture
def make_tuned():
    """`make_tuned(classes=3, count=3, seed=0, activation=None)`, a `Tuned`."""
    return tuned


@pytest.fixture
def unchanged():
    """`unchanged(model, before)` fails unless every weight has its bits."""

    def check(model, before):
        for path, now in numpy_of(model).items():
            assert now.tobytes() == before[path].tobytes(), path

    return check
