"""Counter-based noise: a pure function of (seed, step, stream, position).

Nothing is stored between steps, so every replica draws the same numbers and a
resumed run repeats them. A word of 32 random bits comes from two keyed rounds of
the finaliser of MurmurHash3 (Appleby, 2011) with the constants of `lowbias32`
(Wellons, 2018). All arithmetic is int32 with wrap-around, because that is the one
integer type whose products wrap alike on TensorFlow, JAX and PyTorch.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_bayestune.arguments import show_arguments

Tensor = Any  # a backend tensor

_GOLDEN = -1640531527  # 2**32 / golden ratio, as int32
_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - 2**32


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Shift without sign extension, which int32 would otherwise have."""
    return ops.right_shift(word, bits) & ((1 << (32 - bits)) - 1)


def _mix(word: Tensor) -> Tensor:
    """Permute the 2**32 words so that every input bit reaches every output bit."""
    # Operators and not `ops`, by which a Python number becomes a tensor: on PyTorch a
    # copy to the device, in every step.
    word = (word ^ _shift_right(word, 16)) * _MULTIPLY_1
    word = (word ^ _shift_right(word, 15)) * _MULTIPLY_2
    return word ^ _shift_right(word, 16)


def stream_keys(seed: Tensor, step: Tensor, streams: Any) -> Tensor:
    """Return what `random_words` needs of streams: int32 `(*streams.shape, 2)`.

    Args:
        seed: int32 scalar. Runs with different seeds are independent.
        step: int32 scalar. Different steps are independent.
        streams: int32 tensor, or a Python int: a number for each array and purpose.
    """
    key = _mix(ops.cast(seed, "int32") + _GOLDEN)
    key = _mix(_mix(key ^ ops.cast(step, "int32")) + streams)
    # Two keys, because with one the words of two steps would be one sequence
    # read from two starting points.
    return ops.stack([key, _mix(key + _GOLDEN)], axis=-1)


def random_words(keys: Tensor, count: int, start: int = 0) -> Tensor:
    """Return the words of 32 random bits of a stream from position `start` on.

    Args:
        keys: int32 `(2,)`, the stream's `stream_keys`.
        count: How many words.
        start: Position of the first word.

    Returns:
        int32 tensor `(count,)`, equal on every backend and device.
    """
    position = ops.arange(start, start + count, dtype="int32")
    return _mix(_mix(position ^ keys[0]) + keys[1])


class Noise:
    """Abstract source of independent unit noise: mean 0, variance 1.

    A subclass implements `__call__` as a pure function, so that the same arguments
    always give the same array.
    """

    def __call__(self, keys: Tensor, shape: tuple[int, ...], start: int = 0) -> Tensor:
        """Draw a float32 tensor of `shape`.

        Args:
            keys: int32 `(2,)`, the `stream_keys` of one stream at one update.
            shape: Shape of the draw.
            start: Number of scalars of this stream that are passed over: a long draw
                may be made in pieces.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the class with those of its arguments that are not the defaults."""
        return show_arguments(self)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Noise":
        """Rebuild from `get_config()`."""
        return cls(**config)


def standard_normal(words: Tensor) -> Tensor:
    """Map words of random bits to standard normal numbers, `sqrt(2) erfinv(u)`.

    `u`, of 23 bits and symmetric about 0, ends at 1 - 2**-23, a result at 5.3. With
    one bit more `(1 + u) / 2`, which TensorFlow works out, would be 1 at its end, and
    the result infinite.
    """
    uniform = (ops.cast(ops.right_shift(words, 9), "float32") + 0.5) * 2.0**-22
    return math.sqrt(2.0) * ops.erfinv(uniform)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class Gaussian(Noise):
    """Standard normal noise by inversion; its tails end at 5.3 standard deviations."""

    def __call__(self, keys, shape, start=0):  # noqa: D102
        words = random_words(keys, math.prod(shape), start)
        return ops.reshape(standard_normal(words), shape)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class Rademacher(Noise):
    """Random signs, +1 or -1 with probability 1/2 each.

    One hashed word serves 32 scalars. A weak-order-1 integrator such as
    Euler-Maruyama keeps its order with any noise of mean 0, variance 1 and third
    moment 0 (Kloeden & Platen, 1992, section 14.1).
    """

    def __call__(self, keys, shape, start=0):  # noqa: D102
        size, skipped = math.prod(shape), start % 32
        count = -(-(skipped + size) // 32)
        words = random_words(keys, count, start // 32)
        # The 32 bits of a word lie side by side: XLA then finds word and bit of a
        # scalar by shifts, and its loop over the weights is vectorised.
        bits = ops.right_shift(ops.expand_dims(words, 1), ops.arange(32, dtype="int32"))
        signs = ops.cast((bits & 1) * 2 - 1, "float32")
        return ops.reshape(ops.reshape(signs, (-1,))[skipped : skipped + size], shape)
