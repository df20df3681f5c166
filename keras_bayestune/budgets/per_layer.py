"""A budget for each layer."""

from collections.abc import Mapping
from typing import Any

from keras_bayestune.budgets.budget import Budget, Indices, count_of
from keras_bayestune.budgets.dividing import divide
from keras_bayestune.paths import layer_of
from keras_bayestune.selection import Ranking


class PerLayer(Budget):
    """The scalars of one layer compete with each other.

    A layer holds the variables whose paths are equal up to the last "/". Every layer
    gets its share, `floor(fraction * n)` in all, divided as by `PerTensor`.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"a/kernel": np.array([8.0, 9.0]), "b/kernel": np.arange(2.0)}
        >>> mask = SparseMask.from_scores(scores, 0.5, budget=budgets.PerLayer())
        >>> {path: found.tolist() for path, found in mask.indices.items()}
        {'a/kernel': [1], 'b/kernel': [1]}
    """

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of each layer."""
        layers: dict[str, list[str]] = {}
        for path in scores:
            layers.setdefault(layer_of(path), []).append(path)
        count = count_of(fraction, ranking)
        return divide(scores, list(layers.values()), ranking.sizes, count)
