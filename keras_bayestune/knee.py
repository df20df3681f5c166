"""Knees of the curve of sorted scores: natural places to cut."""

import numpy as np

from keras_bayestune.arguments import check_integer
from keras_bayestune.selection import Ranking, Scores, fraction_of

# A sparse mask takes at most half; below 1e-5 single scalars shape the curve.
_SMALLEST, _LARGEST = 1e-5, 0.5


def sorted_curve(
    scores: Scores | Ranking,
    points: int = 200,
    smallest: float = 0.0,
    largest: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores sorted from large to small, against the proportion of scalars.

    This is the curve of Kim & Hospedales, "BayesTune", NeurIPS 2023, Figure 1 left.
    Its points are exact order statistics at proportions spaced evenly in the
    logarithm; nothing is sorted.

    Args:
        scores: `{path: array}`, or whatever else `selection.Ranking` takes, or a
            `Ranking`.
        points: How many, at most: proportions of less than one scalar fall together.
        smallest: Proportion at which to begin; 0 begins at the largest score.
        largest: Proportion at which to end; 1 ends at the smallest score.

    Returns:
        Two float64 arrays: `proportions`, ascending, each the share of scalars that
        come no later in the order, and `values`, descending: the last of these scores.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.knee import sorted_curve
        >>> proportions, values = sorted_curve({"a": np.array([1.0, 8.0, 2.0, 4.0])})
        >>> proportions.tolist(), values.tolist()
        ([0.25, 0.5, 0.75, 1.0], [8.0, 4.0, 2.0, 1.0])
    """
    ranking = scores if isinstance(scores, Ranking) else Ranking(scores)
    first = max(1.0, smallest * ranking.size)
    last = max(1.0, largest * ranking.size)
    ranks = np.unique(np.geomspace(first, last, points).round().astype(np.int64))
    return ranks / ranking.size, ranking.values_at(ranks).astype(np.float64)


def find_knees(
    scores: Scores | Ranking, points: int = 200, sensitivity: float = 4.0
) -> tuple[float, tuple[float, ...]]:
    """Candidate cut-offs: where the curve of sorted scores bends.

    Kneedle: Satopaa, Albrecht, Irwin & Raghavan, "Finding a Kneedle in a Haystack:
    Detecting Knee Points in System Behavior", ICDCS Workshops 2011, section III, on
    `y = log(score)` against `x = log(proportion)`, both scaled to [0, 1], for
    proportions from 1e-5 to 0.5. The curve's distance from its chord is

        D = y - (1 - x)

    A local maximum of -D is an elbow (a steep tail of high scores meets a flat bulk),
    one of D a knee (a plateau of high scores ends). It is a candidate if it is higher
    than `sensitivity` steps of x, and the distance falls by as much before the next
    local maximum. Quantiles are smooth, so Kneedle's smoothing is left out. Scores of
    0 and below have no logarithm: the curve ends before them.

    Args:
        scores: As for `sorted_curve`.
        points: Points of the curve.
        sensitivity: Kneedle's S, > 0: larger finds fewer candidates.

    Returns:
        The best fraction and all candidates, ascending, the best among them. The best
        is the furthest elbow, without elbows the furthest knee, without either the
        point furthest from the chord.

    Raises:
        ValueError: Fewer than three points of the curve are above 0, or those are
            all equal.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.knee import find_knees
        >>> scores = np.full(10_000, 1e-4)
        >>> scores[:100] = 1e-4 * (100 / np.arange(1, 101)) ** 2  # 1 % stand out
        >>> best, candidates = find_knees({"kernel": scores})
        >>> round(best, 3)
        0.01
    """
    ranking = scores if isinstance(scores, Ranking) else Ranking(scores)
    points = check_integer("points", points, 3)
    proportions, values = sorted_curve(ranking, points, _SMALLEST, _LARGEST)
    proportions, values = proportions[values > 0], values[values > 0]
    if len(values) < 3 or values[0] == values[-1]:
        raise ValueError(
            f"The curve of sorted scores has no knee: {len(values)} of its points are "
            "above 0; it takes three, not all equal. Give the fraction as a number."
        )
    x, y = _unit_interval(np.log(proportions)), _unit_interval(np.log(values))
    distance = y - (1.0 - x)
    drop = sensitivity * np.diff(x).mean()
    elbows, knees = _peaks(-distance, drop), _peaks(distance, drop)
    height = np.abs(distance)
    best = max(elbows or knees or range(len(x)), key=lambda index: height[index])
    fractions = [
        fraction_of(round(proportion * ranking.size), ranking.size)
        for proportion in proportions
    ]
    found = sorted({best, *elbows, *knees})
    return fractions[best], tuple(fractions[index] for index in found)


def _peaks(distance: np.ndarray, drop: float) -> list[int]:
    """Indices of the local maxima that Kneedle's threshold accepts."""
    inner = distance[1:-1]
    peaks = 1 + np.flatnonzero((inner > distance[:-2]) & (inner >= distance[2:]))
    ends = np.append(peaks, len(distance))[1:]
    return [
        int(peak)
        for peak, end in zip(peaks, ends, strict=True)
        if distance[peak] > drop and distance[peak:end].min() < distance[peak] - drop
    ]


def _unit_interval(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())
