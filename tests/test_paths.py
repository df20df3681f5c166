import keras
import numpy as np

from keras_bayestune.paths import variable_paths, variables_by_path


def layer(name, units=2):
    built = keras.layers.Dense(units, name=name)
    built.build((None, 2))
    return built


def test_later_layers_of_one_path_are_numbered():
    layers = [layer("fc1"), layer("head"), layer("fc1"), layer("fc1")]
    variables = [variable for one in layers for variable in one.variables]
    assert variable_paths(variables) == [
        "fc1/kernel",
        "fc1/bias",
        "head/kernel",
        "head/bias",
        "fc1#2/kernel",
        "fc1#2/bias",
        "fc1#3/kernel",
        "fc1#3/bias",
    ]
    assert list(variables_by_path(variables).values()) == variables
    assert variable_paths([]) == []


def test_a_number_is_never_a_path_that_exists():
    layers = [layer("fc1"), layer("fc1#2"), layer("fc1"), layer("fc1#2"), layer("fc1")]
    paths = variable_paths([one.kernel for one in layers])
    assert [path.removesuffix("/kernel") for path in paths] == [
        "fc1",
        "fc1#2",
        "fc1#3",
        "fc1#2#2",
        "fc1#4",
    ]


def test_a_variable_without_a_layer():
    variables = [keras.Variable(np.zeros(2), name="scale") for _ in range(2)]
    assert variable_paths(variables) == ["scale", "scale#2"]
