"""The protocol of all budgets."""

import abc
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bayestune.selection import Ranking, fraction_of

Indices = dict[str, np.ndarray]


class Budget(abc.ABC):
    """Abstract rule that says which scalars compete with which.

    A value without state, whose `repr` says all of it. `SparseMask.from_scores` checks
    the scores and hands them over; a subclass implements `select`.

    Examples:
        >>> from keras_bayestune import budgets
        >>> class TwoOfEach(budgets.Budget):
        ...     def select(self, scores, ranking, fraction):
        ...         order = {p: np.argsort(s.ravel()) for p, s in scores.items()}
        ...         return {p: np.sort(found[-2:]) for p, found in order.items()}
        >>> scores = {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3)}
        >>> SparseMask.from_scores(scores, fraction=0.5, budget=TwoOfEach()).count
        4
    """

    @abc.abstractmethod
    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return `{path: ascending flat indices}`; a path may be missing.

        Args:
            scores: `{path: array}` of what competes, finite. Each array may be loaded
                when it is asked for: hold one at a time.
            ranking: The same scores, ranked together.
            fraction: Of all of them, in (0, 1].
        """

    def check(self, fraction: float | str | None, threshold: float | None) -> None:
        """Raise a ValueError unless the two say how many scalars are selected."""
        if threshold is not None:
            raise ValueError(
                "`threshold` selects every score above it, wherever it is, which no "
                "budget but Global() allows. Give `fraction` instead, or leave "
                f"`budget` out. Received: threshold={threshold!r} with {self!r}."
            )
        if fraction is None:
            raise ValueError(
                f"{self!r} needs `fraction`, which says how many scalars to select. "
                "Received none."
            )

    def __repr__(self) -> str:
        """Return the class; a budget with arguments shows them."""
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        """Compare by what `repr` shows."""
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        """Hash by what `repr` shows."""
        return hash(repr(self))


def count_of(fraction: float | None, ranking: Ranking, pool: str = "") -> int:
    """Return `floor(fraction * n)`, if n scores can be told apart and it is not 0.

    Args:
        fraction: In (0, 1].
        ranking: Of the n scores.
        pool: Which ones, for the message.

    Raises:
        ValueError: if all are equal, or the fraction is too small to select one.
    """
    assert fraction is not None  # `Budget.check` saw to it
    check_not_equal(ranking, fraction, pool)
    count = math.floor(fraction * ranking.size)
    if not count:
        raise ValueError(
            f"The fraction {fraction} is too small to select one scalar: "
            f"{ranking.size} compete{pool}, so it must be at least "
            f"{fraction_of(1, ranking.size)}."
        )
    return count


def check_not_equal(ranking: Ranking, fraction: float | str | None, pool: str) -> None:
    """Raise a ValueError if the scores do not say which scalars to select."""
    if fraction != 1 and ranking.all_equal:
        raise ValueError(
            f"All {ranking.size} scores{pool} are equal "
            f"({ranking.values_at([1])[0]:.6g}), so they do not say which scalars to "
            "select. Was the sampler, or the selector, run at all?"
        )
