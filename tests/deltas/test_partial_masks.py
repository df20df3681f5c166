"""A mask of a few variables: the others are known by their base values."""

import keras
import numpy as np
import pytest

import keras_bayestune as kbt


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="last"),
        ]
    )


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def mask_of_two(model):
    kernel = model.get_layer("first").kernel
    return kbt.SparseMask({kernel.path: [0, 5]}, {kernel.path: tuple(kernel.shape)})


def test_the_others_need_no_place_in_the_mask(model):
    base, mask = values(model), mask_of_two(model)
    frozen = [v for v in model.trainable_variables if v.path not in mask.shapes]
    for variable in frozen:
        variable.trainable = False
    model.compile(kbt.SparseOptimizer(keras.optimizers.Adam(0.1), mask), loss="mse")
    model.fit(np.random.rand(8, 3), np.ones((8, 2)), verbose=0)
    for variable in frozen:
        variable.trainable = True
    delta = kbt.SparseDelta.from_model(model, mask=mask, base=base)
    tuned = values(model)
    statistics = 2 * 4  # of the batch normalisation, stored whole
    assert delta.count == 2 + statistics
    for variable in model.weights:
        variable.assign(base[variable.path])
    with delta.applied(model):
        for path, value in values(model).items():
            np.testing.assert_array_equal(value, tuned[path])


def test_one_that_moved_is_an_error(model):
    base, mask = values(model), mask_of_two(model)
    bias = model.get_layer("last").bias
    bias.assign(bias + 1.0)
    with pytest.raises(ValueError, match=r"2 scalars outside the mask .*last/bias: 2"):
        kbt.SparseDelta.from_model(model, mask=mask, base=base)


def test_without_base_value_it_is_unknown(model):
    base, mask = values(model), mask_of_two(model)
    del base[model.get_layer("last").bias.path]
    with pytest.raises(ValueError, match=r"1 trainable variables .*last/bias"):
        kbt.SparseDelta.from_model(model, mask=mask, base=base)
