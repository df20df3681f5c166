"""Trace of sampled scales with running means."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_bayestune.diagnostics import MINIMUM_DRAWS, effective_sample_size
from keras_bayestune.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_MOST_POINTS = 2000
_MOST_NAMED_SCALARS = 8
_WIDE_LABEL = 50  # characters
_LEAST_SETTLED = 4  # drawn by themselves where there are more


class TraceStatistics(NamedTuple):
    """Statistics behind `plot_trace`."""

    running_mean: np.ndarray  # float64, (samples, scalars)
    effective_sample_size: np.ndarray  # float64, (scalars,); NaN with too few samples


def trace_statistics(trace: npt.ArrayLike) -> TraceStatistics:
    """Running mean and effective sample size of every scalar.

    Args:
        trace: Sampled scales, real and finite, shape (samples, scalars).

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


def plot_trace(
    trace: npt.ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw sampled scales of the scalars followed, running means and sample sizes.

    Source: this library; the numbers are `trace_statistics(trace)`. A running mean
    that still drifts at the right end, or an effective sample size of a few, says
    that the ranking of these scalars is not settled. More than 8 scalars are drawn as
    their median and the bands that hold 50 % and 90 % of them, with the running means
    of the four of least effective sample size. The axis is logarithmic when
    the samples are positive and differ by more than a factor of 100.

    Args:
        trace: Sampled scales, real and finite, shape (samples, scalars). Every sample
            is used; of more than 2000, 2000 evenly spaced ones are drawn.
        names: Of the scalars, such as the callback's `trace_names`.
        ax: Axes to draw on; a new figure by default.

    Returns:
        The Axes. Close its figure after use.

    Raises:
        TypeError: The samples are not real numbers.
        ValueError: Not two axes, no sample, no scalar, a sample that is not finite, or
            another number of names.
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
        ax = new_axes(9, 6)
    from matplotlib.ticker import MaxNLocator

    if names is not None and len(names) != scalars:
        raise ValueError(
            f"`names` must have a name for each of the {scalars} scalars. Received: "
            f"{len(names)}. Pass the callback's `trace_names` with its `trace`."
        )
    names = [f"scalar {i}" for i in range(scalars)] if names is None else list(names)
    shown = np.unique(np.linspace(0, draws - 1, _MOST_POINTS).round().astype(int))
    draw = _draw_each if scalars <= _MOST_NAMED_SCALARS else _draw_bands
    handles = draw(ax, samples, running_mean, sizes, names, shown)

    if samples.min() > 0 and samples.max() > 100 * samples.min():
        ax.set_yscale("log")
    else:
        ax.ticklabel_format(
            axis="y", scilimits=(-3, 4), useMathText=True, useOffset=False
        )
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    ax.set_xlabel("Posterior sample")
    ax.set_ylabel("Sampled scale")
    title = "Trace of sampled scales"
    if draws >= MINIMUM_DRAWS:
        title += (
            f"\neffective sample size (ESS) of {draws:,} samples: "
            f"median {np.median(sizes):,.0f}, least {sizes.min():,.0f}"
        )
    # Clear of the axis's power of ten, which stands above its left end.
    ax.set_title(title, fontsize=11, pad=14)
    handles += ax.get_legend_handles_labels()[0]
    longest = max(len(str(handle.get_label())) for handle in handles)
    ax.legend(  # below, because paths are long
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.12),
        ncols=2 if longest < _WIDE_LABEL else 1,
        fontsize=9,
        frameon=False,
    )
    return ax


def _draw_each(
    ax: "Axes",
    samples: np.ndarray,
    running_mean: np.ndarray,
    sizes: np.ndarray,
    names: list[str],
    shown: np.ndarray,
) -> "list[Line2D]":
    """A line of samples and one of running means for each scalar; for the legend."""
    from matplotlib.lines import Line2D

    marker = "." if len(samples) <= 30 else None
    style: dict[str, Any] = {"alpha": 0.35, "linewidth": 0.8, "marker": marker}
    for scalar, name in enumerate(names):
        colour, means = f"C{scalar}", running_mean[shown, scalar]
        label = _label(name, running_mean[-1, scalar], sizes[scalar])
        ax.plot(shown + 1, samples[shown, scalar], color=colour, **style)
        ax.plot(shown + 1, means, color=colour, linewidth=2, label=label)
    return [
        Line2D([], [], color="0.3", label="sample", **style),
        Line2D([], [], color="0.3", label="running mean", linewidth=2),
    ]


def _draw_bands(
    ax: "Axes",
    samples: np.ndarray,
    running_mean: np.ndarray,
    sizes: np.ndarray,
    names: list[str],
    shown: np.ndarray,
) -> "list[Line2D]":
    """The spread of the samples over the scalars, and those that are least settled."""
    x, count = shown + 1, samples.shape[1]
    low, quarter, middle, upper, high = np.quantile(
        samples[shown], (0.05, 0.25, 0.5, 0.75, 0.95), axis=1
    )
    ax.fill_between(x, low, high, color="C0", alpha=0.15, linewidth=0, label="90 %")
    ax.fill_between(x, quarter, upper, color="C0", alpha=0.3, linewidth=0, label="50 %")
    ax.plot(x, middle, color="C0", linewidth=2, label=f"median of {count} scalars")
    # NaN, with too few samples, comes last: then the order is that of the scalars.
    for number, scalar in enumerate(np.argsort(sizes, kind="stable")[:_LEAST_SETTLED]):
        label = _label(names[scalar], running_mean[-1, scalar], sizes[scalar])
        means = running_mean[shown, scalar]
        ax.plot(x, means, color=f"C{number + 1}", linewidth=1.2, label=label)
    return []


def _label(name: str, mean: float, size: float) -> str:
    label = f"{name}: mean {mean:.2e}"
    return f"{label}, ESS {size:,.0f}" if np.isfinite(size) else label
