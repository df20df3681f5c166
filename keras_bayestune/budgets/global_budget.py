"""One budget for all: the paper's."""

from collections.abc import Mapping
from typing import Any

from keras_bayestune.budgets.budget import Budget, Indices, count_of
from keras_bayestune.selection import Ranking


class Global(Budget):
    """All scalars compete with each other: the default.

    Kim & Hospedales, "BayesTune", NeurIPS 2023, section 3.3. The `floor(fraction * n)`
    largest of n scores are selected, or all above a threshold.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"a": np.array([1.0, 4.0]), "b": np.array([3.0, 2.0])}
        >>> mask = SparseMask.from_scores(scores, 0.5, budget=budgets.Global())
        >>> {path: found.tolist() for path, found in mask.indices.items()}
        {'a': [1], 'b': [0]}
    """

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of all."""
        return ranking.top(count_of(fraction, ranking))

    def check(self, fraction: float | str | None, threshold: float | None) -> None:
        """Raise unless there is one of the two."""
        if fraction is None and threshold is None:
            raise ValueError(
                "Give `fraction` or `threshold`, which say how many scalars to select. "
                "Received neither."
            )
