"""Test error against the fraction of trained scalars."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_bayestune.plots.axes import new_axes, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Errors = Mapping[str, Mapping[float, npt.ArrayLike]]


class ErrorCurve(NamedTuple):
    """Statistics of one method behind `plot_error_vs_sparsity`."""

    fraction: np.ndarray  # float64, (fractions,), ascending
    mean: np.ndarray  # float64, (fractions,)
    standard_error: np.ndarray  # float64, (fractions,); NaN for a single run


def error_curves(errors: Errors) -> dict[str, ErrorCurve]:
    """Mean and standard error over runs, for each method and fraction.

    Args:
        errors: `{method: {fraction of trained scalars: errors of the runs}}`,
            fractions in (0, 1], errors real and finite, of any unit; a single error
            may be a number.

    Returns:
        `{method: ErrorCurve}`, in the order received.

    Raises:
        ValueError: No method, a method without a fraction, a fraction out of range, no
            run, or an error that is not finite.

    Examples:
        >>> from keras_bayestune.plots.error_vs_sparsity import error_curves
        >>> curve = error_curves({"random": {0.02: [4.0, 6.0], 0.005: [8.0, 8.0]}})
        >>> curve["random"].mean.tolist(), curve["random"].standard_error.tolist()
        ([8.0, 5.0], [0.0, 1.0])
    """
    if not errors:
        raise ValueError("`errors` names no method. Pass {method: {fraction: errors}}.")
    curves = {}
    for method, by_fraction in errors.items():
        fractions = sorted(by_fraction)
        if not fractions or not (fractions[0] > 0 and fractions[-1] <= 1):
            raise ValueError(
                f"The fractions of {method!r} must be numbers in (0, 1], one at least. "
                f"Received: {fractions}."
            )
        means, deviations = [], []
        for fraction in fractions:
            runs = np.atleast_1d(np.asarray(by_fraction[fraction], np.float64))
            if runs.ndim != 1 or not runs.size or not np.isfinite(runs).all():
                raise ValueError(
                    f"The errors of {method!r} at {fraction} must be finite numbers, "
                    f"one for each run. Received: {by_fraction[fraction]!r}."
                )
            means.append(runs.mean())
            spread = runs.std(ddof=1) if len(runs) > 1 else np.nan
            deviations.append(spread / len(runs) ** 0.5)
        curves[method] = ErrorCurve(
            np.array(fractions, np.float64), np.array(means), np.array(deviations)
        )
    return curves


def plot_error_vs_sparsity(errors: Errors, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the test error of several methods against the fraction of trained scalars.

    Kim & Hospedales, "BayesTune", NeurIPS 2023, figure 1 (right), with any methods
    beside each other: mean over runs, and a bar of one standard error to each side.
    A method with one fraction only, such as full fine-tuning at 1.0, is a dashed line
    over the whole width.

    Args:
        errors: `{method: {fraction of trained scalars: errors of the runs}}`,
            fractions in (0, 1], errors real and finite, of any unit; a single error
            may be a number.
        ax: Axes to draw on; a new figure by default.

    Returns:
        The Axes. Close its figure after use.

    Raises:
        ValueError: No method, a method without a fraction, a fraction out of range, no
            run, or an error that is not finite.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> from keras_bayestune import plot_error_vs_sparsity
        >>> axes = plot_error_vs_sparsity(
        ...     {
        ...         "random": {0.005: [12.0, 13.1], 0.02: [10.2, 9.9]},
        ...         "BayesTune": {0.005: [10.1, 10.8], 0.02: [8.9, 9.4]},
        ...         "full": {1.0: [8.0, 8.6]},
        ...     }
        ... )
        >>> axes.get_ylabel()
        'Test error'
        >>> plt.close(axes.figure)
    """
    curves = error_curves(errors)
    if ax is None:
        ax = new_axes(8, 4.5)
    from matplotlib import colormaps
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    palette = colormaps["tab10" if len(curves) <= 10 else "tab20"].colors
    handles = []
    for number, (method, curve) in enumerate(curves.items()):
        style = {"color": palette[number % len(palette)], "label": method}
        if len(curve.mean) == 1:
            handles.append(
                ax.axhline(curve.mean[0], linestyle="--", linewidth=1.2, **style)
            )
            continue
        handles.append(
            ax.errorbar(
                curve.fraction,
                curve.mean,
                yerr=np.nan_to_num(curve.standard_error),
                marker="os^Dv"[number % 5],
                markersize=4,
                capsize=2,
                **style,
            )
        )
    fractions = sorted(
        {
            float(fraction)
            for curve in curves.values()
            if len(curve.mean) > 1
            for fraction in curve.fraction
        }
    )
    ax.set_xscale("log")
    if fractions:
        ax.xaxis.set_major_locator(FixedLocator(fractions))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda part, _: percent(part)))
    ax.set_xlabel("Fraction of the competing scalars that trains")
    ax.set_ylabel("Test error")
    ax.set_title("Test error against sparsity (mean ± standard error)", fontsize=11)
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
