"""Trace of sampled scores with running means."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_bayestune.diagnostics import MINIMUM_DRAWS, effective_sample_size
from keras_bayestune.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 2000
_MOST_NAMED_SCALARS = 8


class TraceStatistics(NamedTuple):
    """Statistics behind `plot_trace`."""

    running_mean: np.ndarray  # float64, (samples, scalars)
    effective_sample_size: np.ndarray  # float64, (scalars,); NaN with too few samples


def trace_statistics(trace: npt.ArrayLike) -> TraceStatistics:
    """Running mean and effective sample size of every scalar.

    Args:
        trace: Sampled scores, real and finite, shape (samples, scalars).

    Returns:
        The running mean after each sample, and `effective_sample_size(trace)`: NaN
        for fewer than 10 samples, which are too few to tell.

    Raises:
        TypeError: The samples are not real numbers.
        ValueError: Not two axes, no sample, no scalar, or a sample that is not finite.
        ImportError: arviz-stats is not installed, and there are 10 samples.

    Examples:
        >>> from keras_bayestune.plots.trace import trace_statistics
        >>> trace_statistics([[1.0], [3.0], [5.0]]).running_mean.ravel().tolist()
        [1.0, 2.0, 3.0]
    """
    samples = np.asarray(trace)
    if samples.dtype.kind not in "biuf":
        raise TypeError(
            f"`trace` must hold real numbers. Received: dtype {samples.dtype}. "
            "Pass a float array."
        )
    if samples.ndim != 2 or not samples.size:
        raise ValueError(
            "`trace` must have shape (samples, scalars), one of each at least. "
            f"Received: shape {samples.shape}. For one scalar pass `trace[:, None]`."
        )
    invalid = samples.size - np.count_nonzero(np.isfinite(samples))
    if invalid:
        raise ValueError(
            f"`trace` must be finite. Received: {invalid} NaN or infinite sample(s) "
            f"of {samples.size}. Sample with a smaller learning rate."
        )
    count = np.arange(1.0, len(samples) + 1)[:, None]
    sizes = np.full(samples.shape[1], np.nan)
    if len(samples) >= MINIMUM_DRAWS:
        sizes[:] = effective_sample_size(samples)
    # Relative to the first sample, so that a constant trace has a constant mean.
    moved = samples - samples[0].astype(float)
    return TraceStatistics(samples[0] + np.cumsum(moved, axis=0) / count, sizes)


def plot_trace(trace: npt.ArrayLike, *, ax: "Axes | None" = None) -> "Axes":
    """Draw sampled scores of tracked scalars, their running means and sample sizes.

    Source: this library; the numbers are `trace_statistics(trace)`. A running mean
    that still drifts at the right end, or an effective sample size of a few, says
    that the ranking of these scalars is not settled. The axis is logarithmic when
    the samples are positive and differ by more than a factor of 100.

    Args:
        trace: Sampled scores, real and finite, shape (samples, scalars). Every sample
            is used; of more than 2000, 2000 evenly spaced ones are drawn.
        ax: Axes to draw on; a new figure by default.

    Returns:
        The Axes. Close its figure after use.

    Raises:
        TypeError: The samples are not real numbers.
        ValueError: Not two axes, no sample, no scalar, or a sample that is not finite.
        ImportError: matplotlib or arviz-stats is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from keras_bayestune import plot_trace
        >>> generator = np.random.default_rng(0)
        >>> axes = plot_trace(generator.gamma(2.0, 1e-4, size=(200, 3)))
        >>> axes.get_ylabel()
        'Sampled scale'
        >>> plt.close(axes.figure)
    """
    samples = np.asarray(trace)
    running_mean, sizes = trace_statistics(samples)
    draws, scalars = samples.shape
    if ax is None:
        ax = new_axes(9, 4.5)
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    named = scalars <= _MOST_NAMED_SCALARS
    shown = np.unique(np.linspace(0, draws - 1, _MOST_POINTS).round().astype(int))
    sample_style = {
        "alpha": 0.35,
        "linewidth": 0.8,
        "marker": "." if draws <= 30 else None,
    }
    mean_style = {"linewidth": 2 if named else 1.2}
    for scalar in range(scalars):
        colour = f"C{scalar}" if named else colormaps["viridis"](scalar / scalars)
        ax.plot(shown + 1, samples[shown, scalar], color=colour, **sample_style)
        label = f"scalar {scalar}: mean {running_mean[-1, scalar]:.2e}"
        if draws >= MINIMUM_DRAWS:
            label += f", ESS {sizes[scalar]:,.0f}"
        ax.plot(
            shown + 1,
            running_mean[shown, scalar],
            color=colour,
            label=label if named else None,
            **mean_style,
        )

    if samples.min() > 0 and samples.max() > 100 * samples.min():
        ax.set_yscale("log")
    else:
        ax.ticklabel_format(
            axis="y", scilimits=(-3, 4), useMathText=True, useOffset=False
        )
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    ax.set_xlabel("Posterior sample")
    ax.set_ylabel("Sampled scale")
    title = "Trace of sampled scores"
    if draws >= MINIMUM_DRAWS:
        title += (
            f"\neffective sample size (ESS) of {draws:,} samples: "
            f"median {np.median(sizes):,.0f}, least {sizes.min():,.0f}"
        )
    # Clear of the axis's power of ten, which stands above its left end.
    ax.set_title(title, fontsize=11, pad=14)
    handles = [
        Line2D([], [], color="0.3", label="sample", **sample_style),
        Line2D([], [], color="0.3", label="running mean", **mean_style),
    ]
    handles += ax.get_legend_handles_labels()[0]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
