"""Exact selection of the largest scores, without concatenating or sorting them.

A radix selection on the bits of the floats: a histogram of the leading 16 bits says
in which of 65,536 bins the k-th largest score lies, further passes resolve the
remaining bits of that bin only. Every pass reads the scores in small chunks, so the
memory beyond the scores is a few megabytes plus the indices that come out.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_bayestune.selection.arrays import index_dtype, is_float64, to_numpy
from keras_bayestune.selection.radix import FIRST_BITS, Descent, to_floats, to_keys

Scores = Mapping[str, Any] | Callable[[], Iterable[tuple[str, Any]]]

# Scalars: temporaries of 1 MB at most stay in the cache, and the allocator reuses them
# (measured: those of 2 MB go back to the system each time, at four times the cost).
_CHUNK = 1 << 17

_CHANGED = (
    "The scores changed between two passes. A callable has to return a fresh iterable "
    "of the same scores at each call, and arrays must not be written to meanwhile."
)


class _Float64Met(Exception):
    """A float64 array came after the pass had started in float32."""


class Ranking:
    """Scores of many variables, ranked together.

    The order is: score from large to small, then path in sorted order, then flat
    (C order) index from small to large. `-0.0` equals `0.0`. All scores are compared
    in float32, or in float64 when one of the arrays is float64, so that no score is
    rounded.

    Args:
        scores: `{path: array}`, or, for scores that do not fit in memory, a callable
            that returns an iterable of `(path, array)` pairs. It is called once per
            pass, four times for float32 and up to seven for float64, and has to give
            the same pairs each time; the pieces of one path follow one another in flat
            order. Arrays of any shape and float type: NumPy, JAX, TensorFlow, torch,
            Keras variables; they are converted one at a time.

    Raises:
        TypeError: `scores` is something else, or an array is not of a float type.
        ValueError: a score is NaN or infinite, or there are none.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.selection import Ranking
        >>> ranking = Ranking({"a": np.array([0.1, 0.9]), "b": np.array([0.5])})
        >>> ranking.values_at([1, 3]).tolist()
        [0.9, 0.1]
        >>> {path: found.tolist() for path, found in ranking.top(2).items()}
        {'a': [1], 'b': [0]}
    """

    def __init__(self, scores: Scores):
        self._read: Callable[[], Iterable[tuple[str, Any]]]
        if isinstance(scores, Mapping):
            self._read = scores.items
        elif callable(scores):
            self._read = scores
        else:
            raise TypeError(
                "scores must be a mapping {variable path: array}, or a callable that "
                f"returns (path, array) pairs. Received: {type(scores).__name__}."
            )
        self._dtype: np.dtype = np.dtype(np.float32)
        self.sizes: Counter[str] = Counter()  # scalars per path, after the first pass
        try:
            self._survey()
        except _Float64Met:
            self._dtype = np.dtype(np.float64)
            self._survey()

    def _survey(self) -> None:
        """First pass: check every score; count the leading bits."""
        words = self._dtype.itemsize // 2
        high = words - 1 if sys.byteorder == "little" else 0
        half = 1 << (FIRST_BITS - 1)  # bins with the sign bit set lie above
        exponent_bits = 8 if self._dtype == np.float32 else 11
        edge = 1 << (FIRST_BITS - 1 - exponent_bits)  # bins of inf and NaN, per sign
        bins = np.zeros(2 * half, np.int64)
        sums: Counter[str] = Counter()
        not_finite: Counter[str] = Counter()
        for path, _, chunk in self._chunks():
            prefixes = (chunk + 0).view(np.uint16)[high::words]  # + 0: -0.0 is 0.0
            counts = np.bincount(prefixes, minlength=2 * half)
            bad = int(counts[half - edge : half].sum() + counts[-edge:].sum())
            if bad:
                not_finite[path] += bad
                continue
            bins += counts
            sums[path] += chunk.sum(dtype=np.float64)
        if not_finite:
            raise ValueError(
                "Scores must be finite. NaN or infinite scores: "
                + _listing(
                    f"{path!r} ({n} of {self.sizes[path]})"
                    for path, n in not_finite.items()
                )
                + ". Look at the gradients and the learning rate of the run that made "
                "them."
            )
        self.size = sum(self.sizes.values())  # all scalars
        if not self.size:
            raise ValueError("There are no scores to rank: no variable has a scalar.")
        self.means = {
            path: float(sums[path]) / n for path, n in self.sizes.items() if n
        }
        # Of negative floats, those with more bits are smaller: turned round, in front.
        self._bins = np.concatenate([bins[: half - 1 : -1], bins[:half]])

    def values_at(self, ranks: Any) -> np.ndarray:
        """The scores at the given ranks, exactly (rank 1 is the largest).

        Args:
            ranks: integers from 1 to `size`, any number of them in any order.

        Returns:
            The scores, float32 or float64, one for each rank.
        """
        ranks = np.asarray(ranks, np.int64).reshape(-1)
        if not ranks.size or ranks.min() < 1 or ranks.max() > self.size:
            raise ValueError(
                f"Ranks go from 1 to {self.size}. Received: {ranks.tolist()[:5]}."
            )
        descent = Descent(self.size - ranks, 8 * self._dtype.itemsize, self._bins)
        low, high = to_floats(descent.bounds(), self._dtype)
        while descent.bits_left:
            counts: Any = 0
            for _, _, chunk in self._chunks():
                near = chunk[(chunk >= low) & (chunk <= high)]
                counts = counts + descent.count(to_keys(near))
            if counts.sum() != descent.inside:
                raise ValueError(_CHANGED)
            descent.narrow(counts)
        return to_floats(descent.keys(), self._dtype)

    def top(self, k: int) -> dict[str, np.ndarray]:
        """The indices of the `k` largest scores, exactly `k` of them.

        Args:
            k: how many, from 1 to `size`.

        Returns:
            `{path: sorted flat indices}`, int32 (int64 for a variable with more than
            2**31 - 1 scalars), every path present.
        """
        if not 1 <= k <= self.size:
            raise ValueError(
                f"k must be from 1 to the number of scores, {self.size}. Received: {k}."
            )
        cut = self.values_at([k])[0]
        room = k
        ties: Counter[str] = Counter()
        for path, _, chunk in self._chunks():
            room -= int(np.count_nonzero(chunk > cut))
            ties[path] += int(np.count_nonzero(chunk == cut))
        for path in sorted(ties):
            ties[path] = min(ties[path], room)
            room -= ties[path]
        indices = self._select(cut, ties)
        if sum(map(len, indices.values())) != k:
            raise ValueError(_CHANGED)
        return indices

    @property
    def all_equal(self) -> bool:
        """Whether all scores have one value, so that there is nothing to rank by.

        Up to 4 units of rounding: a formula evaluated at equal arguments may differ in
        its last bits from one place of an array to another (vector loop and remainder).
        """
        if np.count_nonzero(self._bins) > 2:
            return False
        largest, smallest = self.values_at([1, self.size])
        rounding = 4 * np.finfo(self._dtype).eps * max(abs(largest), abs(smallest))
        return bool(largest - smallest <= rounding)

    def above(self, threshold: float) -> dict[str, np.ndarray]:
        """The indices of all scores larger than `threshold`, in the form of `top`.

        The comparison is NumPy's `scores > threshold`, in the dtype of the ranking.
        """
        with np.errstate(over="ignore"):
            cut = self._dtype.type(threshold)
        return self._select(cut, Counter())

    def _select(self, cut: np.floating, ties: Counter[str]) -> dict[str, np.ndarray]:
        """Indices of the scores above `cut`, and of the first `ties` equal to it."""
        room = Counter(ties)
        found: dict[str, list[np.ndarray]] = {path: [] for path in self.sizes}
        for path, start, chunk in self._chunks():
            flat_indices = np.flatnonzero(chunk >= cut)
            equal = chunk[flat_indices] == cut
            taken = np.cumsum(equal)
            flat_indices = flat_indices[~equal | (taken <= room[path])]
            room[path] -= min(room[path], int(taken[-1]) if taken.size else 0)
            found[path].append(
                (flat_indices + start).astype(index_dtype(self.sizes[path]))
            )
        return {
            path: np.concatenate([np.empty(0, index_dtype(self.sizes[path])), *parts])
            for path, parts in found.items()
        }

    def _chunks(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """One pass: (path, flat index of the first score, scores)."""
        sizes: Counter[str] = Counter()
        for path, array in self._read():
            array = to_numpy(path, array)
            if is_float64(array.dtype) and self._dtype != np.float64:
                raise _Float64Met
            # `flat` copies slices only, where reshape would copy the whole array.
            flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
            sizes[path] += 0
            for begin in range(0, array.size, _CHUNK):
                chunk = np.asarray(flat[begin : begin + _CHUNK], self._dtype)
                yield path, sizes[path], chunk
                sizes[path] += chunk.size
        if not self.sizes:
            self.sizes = sizes
        elif sizes != self.sizes:
            raise ValueError(_CHANGED)


def top_k(scores: Scores, k: int) -> dict[str, np.ndarray]:
    """The flat indices of the `k` largest scores of all variables together.

    Args:
        scores: as for `Ranking`.
        k: how many, from 1 to the number of scores.

    Returns:
        `{path: sorted flat indices}`, exactly `k` in all, every path present.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.selection import top_k
        >>> found = top_k({"a": np.array([0.1, 0.9, 0.5]), "b": np.array([0.5])}, k=2)
        >>> {path: k.tolist() for path, k in found.items()}
        {'a': [1, 2], 'b': []}
    """
    return Ranking(scores).top(k)


def fraction_of(count: int, size: int) -> float:
    """The smallest float `fraction` with `floor(fraction * size) == count`, or above.

    `count / size` alone can fall short: `floor(1 / 49 * 49)` is 0.
    """
    fraction = count / size
    while math.floor(fraction * size) < count:
        fraction = math.nextafter(fraction, 2.0)
    return fraction


def _listing(items: Iterable[str], limit: int = 5) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
