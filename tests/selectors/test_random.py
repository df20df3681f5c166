"""Random scores: one sequence on every backend."""

import numpy as np
import pytest

from keras_bayestune.selectors import Random
from tests.selectors.network import PATHS, new_model


def _mix(word):
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _expected(seed, place, size):
    """`noise.random_words` at step 0, with unsigned arithmetic."""
    golden = np.uint32(2654435769)
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed], "uint32") + golden)
        key = _mix(_mix(key) + np.uint32(place))
        second = _mix(key + golden)
        words = _mix(_mix(np.arange(size, dtype="uint32") ^ key) + second)
    return (words >> 8).astype("float64") * 2.0**-24


def test_scores_are_the_same_everywhere():
    scores = Random(seed=12345).scores(new_model())
    for place, path in enumerate(PATHS):
        expected = _expected(12345, place, scores[path].size)
        assert np.array_equal(scores[path].ravel(), expected)


def test_scores_do_not_depend_on_what_is_excluded():
    model = new_model()
    every = Random(seed=3).scores(model)
    some = Random(seed=3).scores(model, exclude=["body"])
    assert set(some) == {"head/kernel", "head/bias"}
    assert all(np.array_equal(score, every[path]) for path, score in some.items())
    other = Random(seed=4).scores(model)
    assert not any(np.array_equal(score, every[path]) for path, score in other.items())


@pytest.mark.parametrize("seed", [-1, 2**31, 1.0, None])
def test_the_seed_is_checked(seed):
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0"):
        Random(seed=seed)


def test_the_largest_seed_works():
    Random(seed=2**31 - 1).scores(new_model())
