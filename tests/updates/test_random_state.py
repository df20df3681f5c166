"""The global generators go on where they were."""

import random

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune.updates.random_state import random_state, set_random_state


def draw():
    drawn = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal()]
    drawn.append(float(ops.convert_to_numpy(keras.random.normal(()))))
    if keras.backend.backend() == "torch":
        import torch

        drawn.append(float(torch.rand(())))
    return drawn


def test_the_same_numbers_again():
    draw()  # half of each pair of normal numbers is left
    states = [np.array(state) for state in random_state()]
    expected = [draw(), draw()]
    set_random_state(states)
    assert [draw(), draw()] == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("damage", range(5))
def test_damaged_states(damage):
    states = random_state()
    states[damage] = np.full((2, 2), 3.5)
    with pytest.raises(ValueError, match="random generators do not fit together"):
        set_random_state(states)
    with pytest.raises(ValueError, match="random generators do not fit together"):
        set_random_state(states[:2])
