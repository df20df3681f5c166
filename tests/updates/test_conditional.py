import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune.updates.conditional import branch


@pytest.mark.parametrize("condition", [True, False])
def test_returns_what_the_condition_says(condition):
    value = ops.convert_to_tensor(np.arange(3.0))
    found = branch(
        ops.convert_to_tensor(condition),
        lambda: (value + 1.0, value),
        lambda: (value, value),
    )
    expected = np.arange(3.0) + (1.0 if condition else 0.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(found[0]), expected)
    np.testing.assert_array_equal(ops.convert_to_numpy(found[1]), np.arange(3.0))


def test_outside_a_compiled_step_only_one_side_runs():
    ran = []

    def side(name):
        ran.append(name)
        return (ops.zeros(()),)

    for condition in (True, False):
        branch(
            ops.convert_to_tensor(condition),
            lambda: side("taken"),
            lambda: side("otherwise"),
        )
    assert ran == ["taken", "otherwise"]


def test_inside_a_compiled_step():
    class Layer(keras.layers.Layer):
        def call(self, inputs):
            (outputs,) = branch(
                ops.sum(inputs) > 0, lambda: (inputs + 1.0,), lambda: (inputs - 1.0,)
            )
            return outputs

    model = keras.Sequential([keras.Input((2,)), Layer()])
    for sign in (1.0, -1.0):
        inputs = np.full((3, 2), sign)
        outputs = model.predict(inputs, verbose=0)
        np.testing.assert_array_equal(outputs, 2 * inputs)
