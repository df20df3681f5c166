"""Budgets of their own for the variables that patterns match."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from keras_bayestune.arguments import check_number
from keras_bayestune.budgets.budget import (
    Budget,
    Indices,
    count_of,
)
from keras_bayestune.selection import Ranking, Subset


class ByPattern(Budget):
    """Variables whose path matches compete among themselves, for their own fraction.

    All others compete among themselves for `fraction`. Of a pool of n scalars exactly
    `floor(its fraction * n)` are selected.

    Args:
        fractions: `{regex: fraction in (0, 1]}`; `re.search`, the first match counts.

    Raises:
        TypeError: if it is not a mapping.
        ValueError: if it is empty, a regex is invalid or a fraction out of range; when
            selecting, if a regex matches nothing, a pool selects nothing or its scores
            are all equal.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"a/kernel": np.arange(4.0), "b/kernel": np.arange(4.0)}
        >>> budget = budgets.ByPattern({"^a/": 0.25})
        >>> mask = SparseMask.from_scores(scores, fraction=0.5, budget=budget)
        >>> {path: found.tolist() for path, found in mask.indices.items()}
        {'a/kernel': [3], 'b/kernel': [2, 3]}
    """

    def __init__(self, fractions: Mapping[str, float]):
        if not isinstance(fractions, Mapping):
            raise TypeError(
                "`fractions` of ByPattern must be a mapping {regex: fraction}. "
                f"Received: {fractions!r}."
            )
        if not fractions:
            raise ValueError(
                "`fractions` of ByPattern must hold a pattern. Received none: for one "
                "budget for all leave `budget` out."
            )
        for pattern, share in fractions.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"ByPattern has an invalid regex {pattern!r}: {error}."
                ) from error
            check_number("fraction", share, "(0, 1]", f"ByPattern for {pattern!r}")
        self.fractions = dict(fractions)

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of each pool."""
        found: Indices = {}
        for name, share, paths in self._pools(list(scores), fraction):
            ranking = Ranking(Subset(scores, paths))
            found |= ranking.top(count_of(share, ranking, name))
        return found

    def check(self, fraction: float | str | None, threshold: float | None) -> None:
        """Raise if there is a threshold."""
        super().check(1.0 if fraction is None else fraction, threshold)

    def _pools(
        self, rest: list[str], fraction: float | None
    ) -> Iterator[tuple[str, float, list[str]]]:
        """Yield name, fraction and paths."""
        for pattern, share in self.fractions.items():
            matched = [path for path in rest if re.search(pattern, path)]
            if not matched:
                raise ValueError(
                    f"The regex {pattern!r} of ByPattern matches none of the "
                    f"{len(rest)} variables that compete and that no regex before it "
                    f"matched: {rest[:5]}."
                )
            rest = [path for path in rest if path not in set(matched)]
            yield f" where the path matches {pattern!r}", share, matched
        if rest and fraction is None:
            raise ValueError(
                f"ByPattern leaves {len(rest)} variables without a budget: {rest[:5]}. "
                "Give `fraction` for them."
            )
        if rest and fraction is not None:
            yield " where no regex of ByPattern matches", fraction, rest

    def __repr__(self) -> str:
        """Show the fractions."""
        return f"ByPattern({self.fractions!r})"
