"""Scores read against the cut of their weight."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from keras_bayestune.arguments import check_number
from keras_bayestune.budgets.budget import Budget, Indices, count_of
from keras_bayestune.selection import Ranking, Subset, to_numpy


class Relative(Budget):
    r"""All scalars compete, each by its score over the cut of its variable.

    Between `PerTensor`, which it is for `strength=0` but for the rounding of shares,
    and `Global`, which it is for a large one: a large weight is read against itself,
    and a small one, whose own cut says little, against the whole. With `n_j` scalars
    in variable j, `q_j` the score at which a fraction p of them is selected, q the
    same of all together, and nu = `strength`:

        score / t_j        t_j = (nu q + n_j q_j) / (nu + n_j)

    If the scores of the variables have distributions that differ by a factor alone,
    `q_j / q` is that factor, and `t_j` its estimate, pulled to 1 by as much as nu
    scalars say (empirical Bayes). A mean would do for this, too, but not where most
    scalars of a variable learn nothing, as in an embedding whose words do not occur:
    divided by its small mean, the others would take the whole budget.

    Args:
        strength: nu >= 0: how many scalars the cut of all counts for.

    Raises:
        ValueError: if `strength` is negative or not finite; when selecting, if a cut
            is negative, as with selectors whose scores have a sign.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"a": np.array([80.0, 90.0]), "b": np.array([1.0, 0.1])}
        >>> for strength in (0.0, 1e6):
        ...     budget = budgets.Relative(strength)
        ...     mask = SparseMask.from_scores(scores, 0.5, budget=budget)
        ...     print({path: found.tolist() for path, found in mask.indices.items()})
        {'a': [1], 'b': [0]}
        {'a': [0, 1], 'b': []}
    """

    def __init__(self, strength: float = 1e5):
        self.strength = check_number("strength", strength, "[0, inf)", "Relative")

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of all, relative to the cuts."""
        count = count_of(fraction, ranking)
        cuts = self.cuts(scores, ranking, count)
        return Ranking(_Divided(scores, cuts)).top(count)

    def cuts(
        self, scores: Mapping[str, Any], ranking: Ranking, count: int
    ) -> dict[str, float]:
        """Return `t_j` by path.

        Args:
            scores: `{path: array}`.
            ranking: Of the same.
            count: How many are to be selected.
        """
        whole = float(ranking.values_at([count])[0])
        found = {}
        for path, size in ranking.sizes.items():
            if not size:
                continue
            # Rounded up, so that a small variable has one, its largest.
            rank = math.ceil(count * size / ranking.size)
            own = float(Ranking(Subset(scores, [path])).values_at([rank])[0])
            if min(own, whole) < 0:
                raise ValueError(
                    f"{self!r} divides by scores, which must not be negative. "
                    f"Received: {min(own, whole):.3g} for {path!r}. Take another "
                    "budget for scores that have a sign."
                )
            total = self.strength + size
            found[path] = (self.strength * whole + size * own) / total
        return found

    def __repr__(self) -> str:
        """Show the argument."""
        return f"Relative(strength={self.strength!r})"


class _Divided(Mapping):
    """Scores over a number for each path, each when it is asked for."""

    def __init__(self, scores: Mapping[str, Any], divisors: Mapping[str, float]):
        self._scores, self._divisors = scores, divisors

    def __getitem__(self, path: str) -> Any:
        array = to_numpy(path, self._scores[path])
        if array.dtype.itemsize < 4:
            array = array.astype("float32")
        divisor = self._divisors.get(path, 1.0)
        return array / array.dtype.type(divisor) if divisor > 0 else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)
