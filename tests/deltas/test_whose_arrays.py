"""Exactness where others hold the arrays, copy the delta, or load weights between."""

import copy
import pickle

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_bayestune.deltas import DeltaSet, SparseDelta
from keras_bayestune.deltas.model_variables import Target
from keras_bayestune.deltas.variable import VariableDelta
from keras_bayestune.updates import scatter


def large(names=("first", "second")):
    """Kernels large enough to be scattered in place on every backend."""
    layers = [keras.layers.Dense(300, use_bias=False, name=name) for name in names]
    return keras.Sequential([keras.Input((300,)), *layers])


def delta_of(model):
    """A delta that sets 50 scalars of each variable to 1."""
    variables = {
        v.path: VariableDelta.sparse(
            scatter.read_whole(v), np.arange(0, 50_000, 1000), np.ones(50, "float32")
        )
        for v in model.weights
    }
    return SparseDelta(variables)


def test_a_model_whose_weights_were_assigned_from_this_one(small):
    model, other = large(), large()
    for mine, its in zip(model.weights, other.weights, strict=True):
        its.assign(mine)  # on JAX both now hold one array
    delta, before = delta_of(model), small.bits(model)
    delta.apply(model)
    assert small.bits(other) == before
    assert small.bits(model) != before
    delta.revert(model)
    assert small.bits(model) == small.bits(other) == before


def test_two_variables_of_one_array(small):
    model = large()
    model.weights[1].assign(model.weights[0])
    delta, before = delta_of(model), small.bits(model)
    for _ in range(2):
        delta.apply(model)
        for weight in model.weights:
            assert small.array(weight).reshape(-1)[:2000:1000].tolist() == [1.0, 1.0]
        delta.revert(model)
        assert small.bits(model) == before


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX arrays are values")
def test_a_value_that_the_user_holds(small):
    model = large()
    held = [weight.value for weight in model.weights]
    before = small.bits(model)
    delta_of(model).apply(model)
    assert b"".join(np.asarray(array).tobytes() for array in held) == before


@pytest.mark.parametrize("whole", [True, False])
def test_every_bit_of_bfloat16(whole):
    """On PyTorch Keras converts by way of float32, which changes the bits of NaN."""
    bits = np.array([0x7FC0, 0xFFC0, 0x7F81, 0x8000, 0x0001, 0xFF80] * 2, "uint16")
    old, new = bits.view(ml_dtypes.bfloat16), bits[::-1].view(ml_dtypes.bfloat16)
    layer = keras.layers.Dense(4, use_bias=False, dtype="bfloat16")
    model = keras.Sequential([keras.Input((3,)), layer])
    scatter.assign_whole(layer.kernel, old.reshape(3, 4))
    stored = VariableDelta.sparse(old.reshape(3, 4), np.arange(12), new)
    if whole:
        stored = VariableDelta.whole(new.reshape(3, 4))
    delta = SparseDelta({layer.kernel.path: stored})
    delta.apply(model)
    assert scatter.read_whole(layer.kernel).tobytes() == new.tobytes()
    delta.revert(model)
    assert scatter.read_whole(layer.kernel).tobytes() == old.tobytes()


# The base weights loaded while a delta is applied.


def test_base_loaded_and_applied_again(tuned, base, small):
    weights, before = base.get_weights(), small.bits(base)
    tuned.delta.apply(base)
    base.set_weights([weight + 1.0 for weight in weights])
    with pytest.raises(ValueError, match="has changed since the delta was applied"):
        tuned.delta.revert(base)
    with pytest.raises(ValueError, match="not the base"):
        tuned.delta.apply(base)
    base.set_weights(weights)
    tuned.delta.apply(base)
    assert small.bits(base) == small.bits(tuned.model)
    with pytest.raises(ValueError, match="already applied"):
        tuned.delta.apply(base)
    tuned.delta.revert(base)
    assert small.bits(base) == before


def test_base_loaded_and_reverted(tuned, base, small):
    weights, before = base.get_weights(), small.bits(base)
    tuned.delta.apply(base)
    base.set_weights(weights)
    tuned.delta.revert(base)
    assert small.bits(base) == before
    with pytest.raises(ValueError, match="not applied to this model"):
        tuned.delta.revert(base)


def test_base_loaded_while_a_delta_of_a_set_is_active(tuned, base, small):
    weights, before = base.get_weights(), small.bits(base)
    tasks = DeltaSet(base)
    tasks.add("task", tuned.delta)
    tasks.activate("task")
    base.set_weights([weight + 1.0 for weight in weights])
    with pytest.raises(ValueError, match="load the base weights"):
        tasks.deactivate()
    base.set_weights(weights)
    tasks.deactivate()
    assert tasks.active is None
    assert small.bits(base) == before


# Copies.


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda delta: pickle.loads(pickle.dumps(delta))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_applied_to_nothing(tuned, base, small, copied):
    before = small.bits(base)
    tuned.delta.apply(base)
    other = copied(tuned.delta)
    assert other == tuned.delta
    with pytest.raises(ValueError, match="not applied to this model"):
        other.revert(base)
    tuned.delta.revert(base)
    assert small.bits(base) == before


# A write that fails, and cannot be undone either.


def test_what_can_be_put_back_is_put_back(tuned, base, small, monkeypatch):
    write, lost = Target.write, list(tuned.delta.variables)[2]

    def failing(target, values):
        if target.path == lost:
            raise RuntimeError("device lost")
        write(target, values)

    monkeypatch.setattr(Target, "write", failing)
    before = small.bits(base)
    with pytest.raises(RuntimeError, match="device lost") as raised:
        tuned.delta.apply(base)
    assert "was not put back: device lost" in raised.value.__notes__[0]
    assert small.bits(base) == before
