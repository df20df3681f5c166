"""Noise: reproducible words, moments, and independence."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

from keras_bayestune.noise import (
    Gaussian,
    Noise,
    Rademacher,
    random_words,
    standard_normal,
    stream_keys,
)

SHAPE = (1000, 1001)
BOTH = pytest.mark.parametrize("noise", [Gaussian(), Rademacher()])


def _draw(noise, seed=7, step=3, stream=2, shape=SHAPE):
    return ops.convert_to_numpy(noise(stream_keys(seed, step, stream), shape))


def test_words_are_the_same_on_every_backend():
    words = ops.convert_to_numpy(random_words(stream_keys(7, 3, 2), 5))
    expected = [-164231287, -1007831378, 882495726, -2143945160, -2033251765]
    np.testing.assert_array_equal(words, expected)


def test_every_bit_of_a_word_is_fair():
    words = ops.convert_to_numpy(random_words(stream_keys(1, 1, 0), 200_000))
    ones = [np.mean((words >> bit) & 1) for bit in range(32)]
    assert np.abs(np.array(ones) - 0.5).max() < 4.5 * 0.5 / np.sqrt(200_000)


@pytest.mark.parametrize("argument", ["seed", "step", "streams"])
def test_one_changed_bit_changes_half_of_the_bits(argument):
    base = {"seed": 5, "step": 9, "streams": 1}
    words = ops.convert_to_numpy(random_words(stream_keys(**base), 20_000))
    for bit in (0, 1, 7, 20):
        changed = {**base, argument: base[argument] ^ (1 << bit)}
        other = ops.convert_to_numpy(random_words(stream_keys(**changed), 20_000))
        flipped = np.unpackbits((words ^ other).view("uint8")).mean()
        assert abs(flipped - 0.5) < 4.5 * 0.5 / np.sqrt(20_000 * 32)


@BOTH
def test_moments(noise):
    x = _draw(noise)
    deviation = 1 / np.sqrt(x.size)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 4.5 * deviation
    assert abs((x**2).mean() - 1) < 4.5 * np.sqrt(2) * deviation
    assert abs((x**3).mean()) < 4.5 * np.sqrt(15) * deviation


def test_gaussian_kurtosis_and_distribution():
    x = _draw(Gaussian()).ravel()
    assert abs((x**4).mean() - 3) < 4.5 * np.sqrt(96 / x.size)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert 4.5 < np.abs(x).max() < 6.0


def test_rademacher_takes_two_values():
    assert set(np.unique(_draw(Rademacher()))) == {-1.0, 1.0}


@BOTH
@pytest.mark.parametrize("lag", [1, 2, 31, 32, 33, 500, 1001, 31_282])
def test_no_correlation_along_a_draw(noise, lag):
    x = _draw(noise).ravel()
    correlation = np.mean(x[lag:] * x[:-lag])
    assert abs(correlation) < 4.5 / np.sqrt(x.size - lag)


@BOTH
@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"step": 4}, {"stream": 3}, {"seed": 3, "step": 7}]
)
def test_draws_are_independent(noise, other):
    x, y = _draw(noise).ravel(), _draw(noise, **other).ravel()
    for lag in (0, 1, 32):
        correlation = np.mean(x[lag:] * y[: y.size - lag])
        assert abs(correlation) < 4.5 / np.sqrt(x.size)


@BOTH
def test_no_correlation_between_consecutive_steps_of_a_scalar(noise):
    draws = np.stack([_draw(noise, step=t, shape=(500,)) for t in range(200)])
    for lag in (1, 2, 5):
        correlation = np.mean(draws[lag:] * draws[:-lag])
        assert abs(correlation) < 4.5 / np.sqrt(draws.size)


@BOTH
def test_equal_arguments_repeat(noise):
    np.testing.assert_array_equal(_draw(noise), _draw(noise))


@BOTH
@pytest.mark.parametrize("start", [0, 1, 31, 32, 45, 640])
def test_a_draw_in_pieces(noise, start):
    whole = _draw(noise, shape=(700,))
    piece = ops.convert_to_numpy(noise(stream_keys(7, 3, 2), (2, 21), start))
    np.testing.assert_array_equal(piece.ravel(), whole[start : start + 42])


def test_the_normal_number_of_extreme_words():
    """TensorFlow's own `erfinv` is infinite one bit further out."""
    words = np.array([-(2**31), 2**31 - 1, -1, 0], "int32")
    found = ops.convert_to_numpy(standard_normal(ops.convert_to_tensor(words)))
    tail = stats.norm.ppf(1 - 2.0**-24)
    np.testing.assert_allclose(found[:2], [-tail, tail], rtol=1e-3)
    np.testing.assert_allclose(found[2:], [-1.5e-7, 1.5e-7], rtol=0.01)


@BOTH
@pytest.mark.parametrize("shape", [(), (1,), (3,), (33, 1), (2, 3, 5)])
def test_shapes(noise, shape):
    assert _draw(noise, shape=shape).shape == shape


@BOTH
def test_config_round_trip(noise):
    config = keras.saving.serialize_keras_object(noise)
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is type(noise)


def test_noise_is_abstract():
    with pytest.raises(NotImplementedError):
        Noise()(stream_keys(0, 0, 0), (1,))
