"""A budget for each weight."""

from collections.abc import Mapping
from typing import Any

from keras_bayestune.budgets.budget import Budget, Indices, count_of
from keras_bayestune.budgets.dividing import divide
from keras_bayestune.selection import Ranking


class PerTensor(Budget):
    """The scalars of one variable compete with each other.

    Every variable gets its share, `floor(fraction * n)` in all: the exact share,
    rounded up where the next score is largest, else down. So a bias of 64 scalars gets
    none or one at 0.5 %: on small networks, where biases and norms are worth much,
    this is no better than `Global`. It is for large ones, where a few weights with
    the largest scores of all would take most of the budget.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"a": np.array([8.0, 9.0]), "b": np.array([3.0, 2.0])}
        >>> mask = SparseMask.from_scores(scores, 0.5, budget=budgets.PerTensor())
        >>> {path: found.tolist() for path, found in mask.indices.items()}
        {'a': [1], 'b': [0]}
    """

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of each variable."""
        count = count_of(fraction, ranking)
        return divide(scores, [[path] for path in scores], ranking.sizes, count)
