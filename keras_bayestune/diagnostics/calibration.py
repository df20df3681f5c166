"""How honest predicted probabilities are, in NumPy."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from keras_bayestune.arguments import check_integer


def negative_log_likelihood(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> float:
    """Mean negative logarithm of the probability of the right class.

    Good, "Rational Decisions", Journal of the Royal Statistical Society B 1952.

    ```
    NLL = -(1/n) sum_n log p_n(y_n)
    ```

    Args:
        probabilities: `p`, shape (n, classes), each row adding up to 1.
        labels: `y`, integers, shape (n,).

    Returns:
        Nats per example, >= 0. A probability of 0 counts as the smallest float32
        above it, so that one wrong certainty leaves a finite number.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Other shapes, labels outside the classes, rows that are not
            probabilities.

    Examples:
        >>> from keras_bayestune.diagnostics import negative_log_likelihood
        >>> round(negative_log_likelihood([[0.5, 0.5], [0.1, 0.9]], [0, 1]), 4)
        0.3993
    """
    p, y = _checked(probabilities, labels)
    right = np.maximum(p[np.arange(len(y)), y], np.finfo(np.float32).tiny)
    return float(-np.mean(np.log(right)))


class Reliability(NamedTuple):
    """Predictions sorted into bins by how sure they are.

    Attributes:
        edges: float64, (bins + 1,), from 0 to 1; a bin holds its upper edge.
        counts: int64, (bins,), examples in each bin.
        confidence: float64, (bins,), their mean largest probability; NaN for none.
        accuracy: float64, (bins,), the fraction of them that is right; NaN for none.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error over these bins."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.counts[filled]))


def reliability(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15
) -> Reliability:
    """Sort predictions into equal intervals of the largest probability.

    Args:
        probabilities: Shape (n, classes), each row adding up to 1.
        labels: Integers, shape (n,).
        bins: Number of intervals (0, 1/bins], ..., >= 1.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Other shapes, labels outside the classes, rows that are not
            probabilities, fewer than one bin.

    Examples:
        >>> from keras_bayestune.diagnostics import reliability
        >>> found = reliability([[0.7, 0.3], [0.9, 0.1]], [0, 1], bins=2)
        >>> found.counts.tolist(), found.accuracy.tolist()
        ([0, 2], [nan, 0.5])
    """
    bins = check_integer("bins", bins, 1)
    p, y = _checked(probabilities, labels)
    confidence = p.max(axis=1)
    right = p.argmax(axis=1) == y
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin
        return Reliability(
            np.linspace(0.0, 1.0, bins + 1),
            count,
            np.bincount(bin_of, weights=confidence, minlength=bins) / count,
            np.bincount(bin_of, weights=right, minlength=bins) / count,
        )


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15
) -> float:
    """Mean distance between how sure the predictions are and how often they are right.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3,
    over `bins` equal intervals of the largest probability.

    ```
    ECE = sum_b (n_b / n) | accuracy_b - confidence_b |
    ```

    Args:
        probabilities: As in `reliability`, and so are the others.
        labels: Integers, shape (n,).
        bins: Number of intervals.

    Returns:
        From 0 (calibrated) to 1. With few examples it is biased upwards.

    Raises:
        TypeError: As `reliability`.
        ValueError: As `reliability`.

    Examples:
        >>> from keras_bayestune.diagnostics import expected_calibration_error
        >>> probabilities = [[0.75, 0.25]] * 4
        >>> expected_calibration_error(probabilities, [0, 0, 0, 1])
        0.0
    """
    return reliability(probabilities, labels, bins).error


def brier_score(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean squared distance of the probabilities from the truth, over all classes.

    Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly
    Weather Review 1950.

    ```
    Brier = (1/n) sum_n sum_c (p_n(c) - [c = y_n])^2
    ```

    Args:
        probabilities: `p`, shape (n, classes), each row adding up to 1.
        labels: `y`, integers, shape (n,).

    Returns:
        From 0 to 2.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Other shapes, labels outside the classes, rows that are not
            probabilities.

    Examples:
        >>> from keras_bayestune.diagnostics import brier_score
        >>> brier_score([[0.5, 0.5], [0.0, 1.0]], [0, 1])
        0.25
    """
    p, y = _checked(probabilities, labels)
    distance = p.copy()
    distance[np.arange(len(y)), y] -= 1
    return float(np.mean(np.square(distance).sum(axis=1)))


def _checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    p = np.asarray(probabilities, np.float64)
    y = np.asarray(labels)
    if y.dtype.kind not in "iu":
        raise TypeError(
            f"`labels` must be integers, the numbers of the classes. Received: dtype "
            f"{y.dtype}."
        )
    if p.ndim != 2 or y.shape != p.shape[:1] or not p.size:
        raise ValueError(
            "`probabilities` must have shape (n, classes) and `labels` (n,), with one "
            f"example at least. Received: shapes {p.shape} and {y.shape}."
        )
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(
            f"`labels` must lie in [0, {p.shape[1]}). Received: {y.min()} to {y.max()}."
        )
    # Rows of float16 or bfloat16 add up to 1 only so closely.
    if not (p.min() >= 0 and np.all(np.abs(p.sum(axis=1) - 1) < 0.02)):
        raise ValueError(
            "Each row of `probabilities` must be >= 0 and add up to 1. Received: "
            f"values from {p.min():.3g} to {p.max():.3g}, sums from "
            f"{p.sum(1).min():.3g} to {p.sum(1).max():.3g}. Apply a softmax to logits; "
            "outputs of a regression are not probabilities."
        )
    return p, y
