"""Baseline: biases only."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.training import Training


class BitFit(Selector):
    """1 for the scalars of biases, 0 for all others.

    Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for
    Transformer-based Masked Language-models", ACL 2022: train the bias terms, those of
    layer normalisation included, which Keras calls `beta`. A mask with `threshold=0.5`
    takes exactly these; a fraction fills up or cuts off in the order of equal scores.
    Cost: no pass over the data; 4 bytes per scalar.

    Args:
        pattern: Regular expression that the path of a bias matches (`re.search`).

    Raises:
        ValueError: when scoring, if no variable matches `pattern`.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> scores = BitFit().scores(model)
        >>> [float(score.mean()) for score in scores.values()]  # kernel, bias
        [0.0, 1.0]
    """

    def __init__(self, pattern: str = r"(^|/)(bias|beta)$"):
        self.pattern = pattern

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return ones and zeros."""
        is_bias = [bool(re.search(self.pattern, v.path)) for v in variables]
        if not any(is_bias):
            raise ValueError(
                f"No variable is a bias: the pattern {self.pattern!r} matches none of "
                f"{len(is_bias)} paths, {', '.join(v.path for v in variables[:5])}. "
                "Pass another "
                "`pattern`."
            )
        return [
            np.full(variable.shape, float(found))
            for variable, found in zip(variables, is_bias, strict=True)
        ]
