"""What a notebook shows of a value says something."""

import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.deltas import DeltaSet, QuantizedBase
from keras_bayestune.samplers import Authors, Collapsed


def new_model():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, name="body")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="m")


def test_values_of_a_run():
    model = new_model()
    sampler = kbt.BayesTuneSGLD(
        1e-3, warmup_steps=1, burn_in_steps=2, thinning=1, exclude=["norm", "head"]
    )
    model.compile(sampler, loss="mse")
    select = kbt.SparseMaskCallback(
        0.2, selection_epochs=1, finetune_optimizer=keras.optimizers.SGD()
    )
    plan = "<SparseMaskCallback p = 0.2, stage 1 of 1 epochs, then SGD: "
    assert repr(select) == plan + "no mask yet>"
    with pytest.raises(ValueError, match="Stage 1 has not ended yet"):
        print(select.delta)
    assert repr(sampler) == (
        f"<BayesTuneSGLD {Collapsed()}, warmup_steps=1, burn_in_steps=2, thinning=1>"
    )
    x, y = np.random.default_rng(0).normal(size=(2, 16, 4)).astype("float32")
    arguments = {"batch_size": 4, "epochs": 2, "verbose": 0, "callbacks": [select]}
    model.fit(x, y[:, :2], **arguments)

    # 5 of the 25 scalars of `body`, and 10 + 12 of the others.
    mask = "SparseMask(20 % of 25 scalars (5) + all 22 of norm, head)"
    assert repr(select.mask) == mask
    assert repr(select) == f"{plan}{mask}>"
    assert repr(model.optimizer) == f"<SparseOptimizer SGD on {mask}>"
    delta = select.delta
    assert delta == kbt.SparseDelta.from_model(model, select)
    text = f"20 % of 25 scalars (5) + all 32 of norm, head; base {delta.fingerprint}"
    assert repr(delta) == f"<SparseDelta {text}>"
    assert repr(delta.variables["body/kernel"]) == (
        f"VariableDelta({len(select.mask.indices['body/kernel'])} of 20, "
        "shape (4, 5), float32)"
    )
    assert repr(delta.variables["head/bias"]) == (
        "VariableDelta(whole, shape (2,), float32)"
    )
    tuned = model.get_weights()
    fresh = new_model()
    fresh.set_weights(model.get_weights())
    for path, anchor in select.anchors.items():
        next(v for v in fresh.weights if v.path == path).assign(anchor)
    tasks = DeltaSet(fresh)
    tasks.add("one", delta)
    tasks.activate("one")
    assert repr(tasks) == "<DeltaSet of ['one'] on 'm', active: 'one'>"
    for one, two in zip(fresh.get_weights(), tuned, strict=True):
        np.testing.assert_array_equal(one, two)

    model.fit(x, y[:, :2], **arguments)  # stage 2 goes on, and so does the delta
    assert select.delta != delta


def test_values_without_a_run():
    assert repr(Authors()) == "Authors(noise=Gaussian())"
    base = QuantizedBase(new_model())
    assert repr(base) == (
        "<QuantizedBase 'm', 2 weights of int8, float values beside 0 of them>"
    )
    many = {f"a/layer_{i}/kernel": (2,) for i in range(5)}
    mask = kbt.SparseMask({p: [0, 1] for p in many}, many, always=list(many))
    assert repr(mask) == "SparseMask(all 10 of layer_0, layer_1, layer_2, 2 more)"
