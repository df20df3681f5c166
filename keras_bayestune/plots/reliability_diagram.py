"""How often predictions are right, against how sure they are."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from keras_bayestune.diagnostics import reliability
from keras_bayestune.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_reliability(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    bins: int = 15,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the reliability diagram of a classifier, with its calibration error.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, figure 1. Each
    bar is the accuracy of the predictions in one interval of the largest probability,
    with one standard error to each side; the mark is how sure they are on average. A
    mark above its bar is overconfidence. Pale bars below say how many there are.

    Args:
        probabilities: Shape (n, classes), each row adding up to 1, for instance
            `DeltaPosterior.predict(...).mean`.
        labels: Integers, shape (n,).
        bins: Number of intervals, >= 1.
        ax: Axes to draw on; a new figure by default.

    Returns:
        The Axes. Close its figure after use.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Other shapes, labels outside the classes, rows that are not
            probabilities, fewer than one bin.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> from keras_bayestune import plot_reliability
        >>> axes = plot_reliability([[0.75, 0.25]] * 4, [0, 0, 0, 1])
        >>> axes.get_title()
        'Reliability: ECE 0.000, accuracy 75.0 %, 4 examples'
        >>> plt.close(axes.figure)
    """
    found = reliability(probabilities, labels, bins)
    if ax is None:
        ax = new_axes(5.5, 5)
    filled = found.counts > 0
    count, accuracy = found.counts[filled], found.accuracy[filled]
    total = count.sum()
    middle = (found.edges[1:] + found.edges[:-1])[filled] / 2
    error = np.sqrt(accuracy * (1 - accuracy) / count)
    ax.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1, label="calibrated")
    ax.bar(
        middle,
        accuracy,
        width=0.92 / bins,
        color="tab:blue",
        alpha=0.75,
        yerr=error,
        ecolor="0.3",
        capsize=2,
        label="accuracy (± standard error)",
    )
    ax.bar(
        middle,
        count / total,
        width=0.92 / bins,
        color="white",
        edgecolor="0.3",
        alpha=0.6,
        label="fraction of the examples",
    )
    ax.plot(
        found.confidence[filled],
        found.confidence[filled],
        "D",
        color="tab:red",
        markersize=5,
        label="mean confidence",
    )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("Largest probability")
    ax.set_ylabel("Accuracy")
    overall = np.average(accuracy, weights=count)
    ax.set_title(
        f"Reliability: ECE {found.error:.3f}, accuracy {100 * overall:.1f} %, "
        f"{total:,} examples",
        fontsize=11,
    )
    ax.legend(loc="upper left", fontsize=9)
    return ax
