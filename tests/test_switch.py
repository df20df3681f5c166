import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, SparseDelta, switch
from keras_bayestune.deltas import base_values


def new_model():
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, name="body")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


@pytest.mark.parametrize("start", [{}, {"stage_2_start": "last values"}])
def test_a_loop_of_ones_own_ends_in_a_delta(start):
    model = new_model()
    base = base_values(model)
    exclude = ["norm", "head"]
    plan = {"warmup_steps": 1, "burn_in_steps": 2, "thinning": 1, "seed": 0}
    stage_1 = BayesTuneSGLD(1e-2, exclude=exclude, **plan)
    stage_1.build(model.trainable_variables)
    rng = np.random.default_rng(0)

    def step(optimizer):
        gradients = [
            ops.convert_to_tensor(rng.normal(size=v.shape).astype("float32"))
            for v in model.trainable_variables
        ]
        optimizer.apply(gradients)
        norm = model.get_layer("norm")
        norm.moving_mean.assign(norm.moving_mean + 1.0)

    adam = keras.optimizers.Adam(1e-2)
    with pytest.raises(ValueError, match="No posterior sample was taken"):
        switch(model, stage_1, base, adam)
    for _ in range(4):
        step(stage_1)
    with pytest.raises(TypeError, match="must be the BayesTuneSGLD .* Received: Adam"):
        switch(model, adam, base, adam)
    bodies = {path: value for path, value in base.items() if "norm" not in path}
    moved = base_values(model)
    with pytest.raises(ValueError, match="lacks 2 variables, e.g. norm/moving_mean"):
        switch(model, stage_1, bodies, adam, fraction=0.2)
    np.testing.assert_equal(base_values(model), moved)

    with pytest.raises(ValueError, match="must be one of 'anchors', 'last values'"):
        switch(model, stage_1, base, adam, stage_2_start="last state")
    stage_2 = switch(model, stage_1, base, adam, fraction=0.2, **start)
    now = base_values(model)
    whole = {path for path in base if path in stage_2.mask.always}
    assert len(whole) == 4  # gamma and beta, and the head
    for path in base:
        learns = path in whole or start
        kept = stage_2.mask.indices.get(path, []) if learns else []
        expected = base[path].copy()
        expected.flat[kept] = moved[path].flat[kept]
        np.testing.assert_array_equal(now[path], expected, path)
        assert (now[path].flat[kept] != base[path].flat[kept]).all()
    assert stage_2.mask.count == 5 + 10 + 12
    step(stage_2)
    delta = SparseDelta.from_model(model, mask=stage_2.mask, base=base)
    tuned = base_values(model)
    for path, variable in zip(base, model.weights, strict=True):
        variable.assign(base[path])
    delta.apply(model)
    np.testing.assert_equal(base_values(model), tuned)
    assert (tuned["norm/moving_mean"] == 1.0).all()
