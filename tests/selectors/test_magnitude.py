"""Magnitudes of the pre-trained weights."""

import numpy as np
import pytest

from keras_bayestune.selectors import Magnitude, SmallMagnitude
from tests.selectors.network import new_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_absolute_values_in_float32(dtype):
    model = new_model(dtype=dtype)
    scores = Magnitude().scores(model)
    for variable in model.weights:
        score = scores[variable.path]
        assert score.dtype == np.float32
        assert np.array_equal(score, np.abs(variable.numpy().astype("float32")))


def test_the_smallest_come_first():
    model = new_model()
    scores = SmallMagnitude().scores(model)
    for path, score in Magnitude().scores(model).items():
        assert np.array_equal(scores[path], -score)
