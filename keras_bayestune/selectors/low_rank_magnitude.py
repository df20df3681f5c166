"""Rival: the largest entries of each weight's low-rank part."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import check_integer
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.training import Training


class LowRankMagnitude(Selector):
    """The absolute value of each matrix's best approximation of rank r.

    LIFT: Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank
    Reduction for Reasoning-Focused Supervised Fine-Tuning", ICML 2025. With the
    singular values of a weight W in falling order,

        | sum_{k <= r} sigma_k u_k v_k^T |

    The last axis of W numbers the columns, the others the rows. A bias is a matrix of
    one row, which is its own approximation: exclude biases for theirs, which moves
    matrices only. Not copied: there the matrices of one kind share the budget, and the
    mask is selected anew during training. Blind to the task.

    Cost: no pass over the data; one singular value decomposition per weight, on the
    host in float32; 4 bytes per scalar.

    Args:
        rank: r, at least 1. The paper's is of the order of a LoRA's.

    Raises:
        ValueError: if `rank` is not an integer >= 1.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> scores = LowRankMagnitude(rank=2).scores(model)
        >>> [score.shape for score in scores.values()]
        [(4, 3), (3,)]
    """

    def __init__(self, rank: int = 128):
        self.rank = check_integer("rank", rank, 1)

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Return `|low-rank part|`."""
        return [self._magnitude(v) for v in variables]

    def _magnitude(self, variable: keras.Variable) -> np.ndarray:
        weight = np.asarray(ops.convert_to_numpy(variable.value), "float32")
        matrix = weight.reshape(-1, weight.shape[-1] if weight.ndim else 1)
        if self.rank < min(matrix.shape):
            left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
            rank = self.rank
            matrix = (left[:, :rank] * sizes[:rank]) @ right[:rank]
        return np.abs(matrix).reshape(weight.shape)
