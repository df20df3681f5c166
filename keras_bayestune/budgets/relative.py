"""Scores read against the typical score of their weight."""

from collections.abc import Iterator, Mapping
from typing import Any

from keras_bayestune.arguments import check_number
from keras_bayestune.budgets.budget import Budget, Indices, count_of
from keras_bayestune.selection import Ranking, to_numpy


class Relative(Budget):
    r"""All scalars compete, each by its score over the typical one of its variable.

    Between `Global`, which it is for a large `strength` or an `exponent` of 0, and
    `PerTensor`: a large weight is read against itself, and a small one, whose own mean
    says little, against the whole. With n scalars in all, `n_j` in variable j, m and
    `m_j` the mean scores, c = `exponent`, nu = `strength`:

        score / t_j^c        t_j = (nu m + n_j m_j) / (nu + n_j)

    For BayesTune's scores and c = 1 this is a hierarchical prior, in which the rate of
    the Gamma hyper-prior of Kim & Hospedales 2023, equation 2, belongs to the variable:

        scale ~ Gamma(alpha, rate b_j)        b_j ~ Gamma(nu alpha, rate nu alpha / b)
        E[b_j | scales] = alpha (nu + n_j) / (nu alpha / b + sum of scales)
                        = alpha / t_j

    with the posterior mean scales in place of the scales, and b = alpha / m for all
    together (empirical Bayes, one step). A scale's score is then in units of the mean
    that its variable's prior gives it, `scale b_j / alpha`.

    Args:
        strength: nu >= 0: how many scalars the common mean counts for.
        exponent: c in [0, 1].

    Raises:
        ValueError: if an argument is out of range; when selecting, if a mean score is
            negative, as with selectors whose scores have a sign.

    Examples:
        >>> from keras_bayestune import budgets
        >>> scores = {"a": np.array([80.0, 90.0]), "b": np.array([1.0, 0.1])}
        >>> for strength in (0.0, 1e6):
        ...     budget = budgets.Relative(strength)
        ...     mask = SparseMask.from_scores(scores, 0.25, budget=budget)
        ...     print({path: found.tolist() for path, found in mask.indices.items()})
        {'a': [], 'b': [0]}
        {'a': [1], 'b': []}
    """

    def __init__(self, strength: float = 1e5, exponent: float = 1.0):
        self.strength = check_number("strength", strength, "[0, inf)", "Relative")
        self.exponent = check_number("exponent", exponent, "[0, 1]", "Relative")

    def select(
        self, scores: Mapping[str, Any], ranking: Ranking, fraction: float | None
    ) -> Indices:
        """Return the largest of all, relative to the typical one."""
        count = count_of(fraction, ranking)
        typical = self.typical_scores(ranking.means, ranking.sizes)
        return Ranking(_Divided(scores, typical, self.exponent)).top(count)

    def typical_scores(
        self, means: Mapping[str, float], sizes: Mapping[str, int]
    ) -> dict[str, float]:
        """Return `t_j` by path.

        Args:
            means: Mean score of each variable.
            sizes: Its scalars.
        """
        negative = [path for path, mean in means.items() if mean < 0]
        if negative:
            raise ValueError(
                f"{self!r} divides by mean scores, which must not be negative. "
                f"Received: {means[negative[0]]:.3g} for {negative[0]!r}. Take another "
                "budget for scores that have a sign."
            )
        common = sum(means[p] * sizes[p] for p in means) / sum(sizes[p] for p in means)
        weight = {path: sizes[path] / (self.strength + sizes[path]) for path in means}
        return {
            path: (1 - weight[path]) * common + weight[path] * mean
            for path, mean in means.items()
        }

    def __repr__(self) -> str:
        """Show the arguments."""
        return f"Relative(strength={self.strength!r}, exponent={self.exponent!r})"


class _Divided(Mapping):
    """Scores over the power of a number for each path, each when it is asked for."""

    def __init__(
        self, scores: Mapping[str, Any], typical: Mapping[str, float], exponent: float
    ):
        self._scores = scores
        # A variable whose scores are all 0 keeps them.
        self._factors = {
            path: value**-exponent if value > 0 else 1.0
            for path, value in typical.items()
        }

    def __getitem__(self, path: str) -> Any:
        array = to_numpy(path, self._scores[path])
        if array.dtype.itemsize < 4:
            array = array.astype("float32")
        return array * array.dtype.type(self._factors[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)
