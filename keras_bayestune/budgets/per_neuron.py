"""A budget for each output neuron."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bayestune.budgets.budget import Budget, Indices, count_of
from keras_bayestune.selection import Ranking, index_dtype, to_numpy

_CHUNK = 1 << 17  # scalars that are looked at together


class PerNeuron(Budget):
    """The scalars that lead into one output neuron compete with each other.

    With `selectors.GradientSum` this is the rule of GPS (Zhang et al., "Gradient-based
    Parameter Selection for Efficient Fine-Tuning", CVPR 2024), with
    `selectors.Magnitude` that of NeuroAda (EMNLP 2025); there every neuron has the same
    number of scalars, here the same share of its inputs.

    A neuron is a column: an index of the last axis with all of the others. Of a Keras
    attention layer's query, key and value, of shape (width, heads, size), it is one
    place in all heads together. A variable of one axis, as biases and norms are, is one
    column. Every column gets its share, `floor(fraction * n)` in all: the exact share,
    rounded up where the next score is largest, else down.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"kernel": np.array([[9.0, 1.0], [8.0, 2.0]])}
        >>> mask = SparseMask.from_scores(scores, 0.5, budget=budgets.PerNeuron())
        >>> mask.indices["kernel"].tolist()  # one in each column
        [0, 3]
    """

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of each column."""
        count = count_of(fraction, ranking)
        paths = sorted(scores)
        found: Indices = {}
        values, places, owners = [], [], []  # of the scores that are next in line
        for number, path in enumerate(paths):
            matrix = _columns(to_numpy(path, scores[path]))
            whole, rest = divmod(count * len(matrix), ranking.size)
            found[path], following = _top_of_columns(matrix, whole, bool(rest))
            values.append(matrix.reshape(-1)[following].astype(np.float64))
            places.append(following)
            owners.append(np.full(len(following), number))
        left = count - sum(map(len, found.values()))
        place, owner = np.concatenate(places), np.concatenate(owners)
        first = np.lexsort((place, owner, -np.concatenate(values)))[:left]
        for number, path in enumerate(paths):
            added = place[first[owner[first] == number]]
            merged = np.sort(np.concatenate([found[path], added]))
            found[path] = merged.astype(index_dtype(ranking.sizes[path]))
        return found


def _columns(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def _top_of_columns(
    matrix: np.ndarray, count: int, with_next: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the `count` largest of each column, and of the one after them."""
    rows, columns = matrix.shape
    width = max(1, _CHUNK // max(1, rows))
    found: list[np.ndarray] = [np.empty(0, np.int64)]
    following = found.copy()
    for start in range(0, columns, width):
        block = np.ascontiguousarray(matrix[:, start : start + width].T)
        top = _is_top(block, count)
        found.append(_flat(top, start, columns))
        if with_next:
            more = _is_top(block, count + 1) & ~top
            following.append(_flat(more, start, columns))
    return np.concatenate(found), np.concatenate(following)


def _is_top(block: np.ndarray, count: int) -> np.ndarray:
    """Whether each score is among the `count` largest of its line; ties by index."""
    if not count:
        return np.zeros(block.shape, bool)
    cut = np.partition(block, -count, axis=1)[:, -count, None]
    above, equal = block > cut, block == cut
    room = count - above.sum(axis=1, keepdims=True)
    return above | (equal & (np.cumsum(equal, axis=1) <= room))


def _flat(top: np.ndarray, start: int, columns: int) -> np.ndarray:
    column, row = np.nonzero(top)
    return row * columns + start + column
