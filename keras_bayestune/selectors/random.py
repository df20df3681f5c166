"""Baseline: random scores."""

from collections.abc import Sequence
from math import prod
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import check_integer
from keras_bayestune.noise import random_words, stream_keys
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.training import Training


class Random(Selector):
    """Independent uniform scores in [0, 1), equal on every backend.

    The random mask of Fu et al., "On the Effectiveness of Parameter-Efficient
    Fine-Tuning", AAAI 2023, and a strong rival at small budgets. The score of a
    scalar depends on the seed, the place of its variable among the trainable ones and
    its index, not on what is excluded. Cost: no pass over the data; 4 bytes per
    scalar.

    Args:
        seed: Int in [0, 2**31).

    Raises:
        ValueError: if `seed` is not such a number.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> scores = Random(seed=1).scores(model)
        >>> all(np.all((0 <= s) & (s < 1)) for s in scores.values())
        True
    """

    def __init__(self, seed: int = 0):
        self.seed = check_integer("seed", seed, 0)

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return random scores."""
        places = {id(v): i for i, v in enumerate(training.model.trainable_variables)}
        return [self._draw(places[id(v)], v.shape) for v in variables]

    def _draw(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
        words = random_words(stream_keys(self.seed, 0, place), prod(shape))
        bits = ops.convert_to_numpy(words).view("uint32")
        # 24 bits: what a float32 in [0, 1) holds exactly.
        return ((bits >> 8) * np.float32(2.0**-24)).reshape(shape)
