"""Curve of sorted posterior scales against the proportion of scalars."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_bayestune.knee import find_knees, sorted_curve
from keras_bayestune.masks import SparseMask
from keras_bayestune.plots.axes import even_ticks, new_axes, percent
from keras_bayestune.selection import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 500
_FEW_POINTS = 30  # so few are marked: the line alone would hide them
_MOST_LISTED_CANDIDATES = 4


class CutOff(NamedTuple):
    """A place to cut the curve."""

    proportion: float  # fraction of the competing scalars that come no later
    value: float  # the last of their scores
    rank: int  # of that score, which is how many scalars come no later


class ScaleCurve(NamedTuple):
    """Points and marks behind `plot_scales`."""

    proportions: np.ndarray  # float64, (points,), ascending
    values: np.ndarray  # float64, (points,), descending
    candidates: tuple[CutOff, ...]
    selected: CutOff | None


def scale_curve(
    scores: Mapping[str, Any], mask: SparseMask | None = None
) -> ScaleCurve:
    """Points of the sorted curve, its candidate cut-offs and the selected one.

    Only scalars that compete for a place are counted: variables that the mask takes
    whole (`mask.always`) are left out of the curve and of the selected fraction.

    Args:
        scores: Score per scalar, `{path: array}`, finite. Not sorted: 22 million take
            a second or two, and little memory.
        mask: The mask selected from these scores. Its candidates are marked; without
            any, the knees of the curve are.

    Returns:
        About 500 points of the curve at proportions spaced evenly in the logarithm.

    Raises:
        TypeError: `scores` is not a mapping, an array is not of a float type, or
            `mask` is not a `SparseMask`.
        ValueError: A score is NaN or infinite, there are none, or the mask is of
            another model.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.plots.scales import scale_curve
        >>> curve = scale_curve({"kernel": np.array([1.0, 8.0, 2.0, 4.0])})
        >>> curve.proportions.tolist(), curve.values.tolist()
        ([0.25, 0.5, 0.75, 1.0], [8.0, 4.0, 2.0, 1.0])
    """
    if not isinstance(scores, Mapping):
        raise TypeError(
            "`scores` must be a mapping {path: array}. Received: "
            f"{type(scores).__name__}. Pass `optimizer.posterior_scales()`."
        )
    if mask is not None and not isinstance(mask, SparseMask):
        raise TypeError(
            f"`mask` must be a SparseMask. Received: {type(mask).__name__}. Build one "
            "with `SparseMask.from_scores(scores, fraction=...)`."
        )
    if mask is not None:
        scores = {path: scores[path] for path in scores if path not in mask.always}
        _check_same_model(scores, mask)
    ranking = Ranking(scores)
    proportions, values = sorted_curve(ranking, _POINTS)

    if mask is not None and mask.candidates:
        fractions = tuple(mask.candidates)
    else:
        try:
            fractions = find_knees(ranking)[1]
        except ValueError:  # no knee, and the curve itself is sound: ranked above
            fractions = ()
    counts = [max(1, round(fraction * ranking.size)) for fraction in fractions]
    selected = 0
    if mask is not None:
        selected = sum(len(mask.indices[path]) for path in scores)
    ranks = np.array([*counts, max(1, selected)])
    marks = [
        CutOff(rank / ranking.size, float(value), int(rank))
        for rank, value in zip(ranks, ranking.values_at(ranks), strict=True)
    ]
    return ScaleCurve(
        proportions,
        values,
        tuple(marks[:-1]),
        marks[-1] if selected else None,
    )


def plot_scales(
    scores: Mapping[str, Any],
    mask: SparseMask | None = None,
    *,
    without_gradient: float | None = None,
    ax: "Axes | None" = None,
    log: bool = True,
) -> "Axes":
    """Draw the sorted posterior scales with candidate and selected cut-offs.

    Source: Kim & Hospedales, "BayesTune", NeurIPS 2023, Figure 1 left. The points are
    `scale_curve(scores, mask)`: the k-th largest score against k / n, for n competing
    scalars. A bend of the curve is a natural place to cut.

    Args:
        scores: Posterior mean scale per scalar, `{path: array}`, in the unit of the
            weights; or any other finite score.
        mask: The mask selected from these scores: its candidates and its fraction of
            the competing scalars, p, are marked. Without it, the knees are.
        without_gradient: Fraction of the scalars that no gradient came to, such as the
            callback's `health.without_gradient`, in [0, 1]: they make the cliff at the
            right end, and are shaded.
        ax: Axes to draw on; a new figure by default.
        log: Whether both axes are logarithmic. Scores of 0 and below are then left
            out of the picture.

    Returns:
        The Axes. Close its figure after use.

    Raises:
        TypeError: `scores` is not a mapping, an array is not of a float type, or
            `mask` is not a `SparseMask`.
        ValueError: A score is NaN or infinite, there are none, the mask is of another
            model, `without_gradient` is out of range, or `log=True` with no score
            above 0.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from keras_bayestune import plot_scales
        >>> scales = np.random.default_rng(0).lognormal(-9, 1.5, size=(100, 50))
        >>> axes = plot_scales({"dense/kernel": scales})
        >>> axes.get_xlabel(), axes.get_ylabel()
        ('Fraction of scalars', 'Posterior mean scale (units of the weight)')
        >>> plt.close(axes.figure)
    """
    curve = scale_curve(scores, mask)
    if without_gradient is not None and not 0.0 <= without_gradient <= 1.0:
        raise ValueError(
            "`without_gradient` must be a fraction in [0, 1]. Received: "
            f"{without_gradient!r}."
        )
    if log and curve.values[0] <= 0:
        raise ValueError(
            "Logarithmic axes need a score above 0. Received: a largest score of "
            f"{curve.values[0]:.3g}. Pass `log=False`."
        )
    if ax is None:
        ax = new_axes(7, 4.5)
    from matplotlib.ticker import FuncFormatter

    shown = curve.values > (0 if log else -np.inf)
    values = curve.values[shown]
    ax.plot(
        curve.proportions[shown],
        values,
        marker="." if shown.sum() <= _FEW_POINTS else None,
        label="sorted scales",
    )
    if curve.candidates:
        fractions = [percent(mark.proportion) for mark in curve.candidates]
        if len(fractions) > _MOST_LISTED_CANDIDATES:
            fractions[_MOST_LISTED_CANDIDATES:] = ["…"]
        ax.plot(
            [mark.proportion for mark in curve.candidates],
            [mark.value for mark in curve.candidates],
            "o",
            color="C1",
            markerfacecolor="white",
            label=f"candidate cut-offs: {', '.join(fractions)}",
        )
    if curve.selected:
        ax.axvline(curve.selected.proportion, color="C3", linestyle="--", linewidth=1)
        ax.plot(
            curve.selected.proportion,
            curve.selected.value,
            "o",
            color="C3",
            label=f"selected p = {percent(curve.selected.proportion)} "
            f"({curve.selected.rank:,} scalars)",
        )
    if without_gradient:
        ax.axvspan(
            1.0 - without_gradient,
            1.0,
            color="0.9",
            zorder=0,
            label=f"without a gradient: {percent(without_gradient)}\n"
            "(such as unused tokens)",
        )
    if log:
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis, shown_values in ((ax.xaxis, curve.proportions), (ax.yaxis, values)):
            even_ticks(axis, shown_values.min(), shown_values.max())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda part, _: percent(part)))
    ax.grid(alpha=0.3)
    ax.set_xlabel("Fraction of scalars")
    ax.set_ylabel("Posterior mean scale (units of the weight)")
    ax.set_title("Sorted posterior scales", fontsize=11)
    ax.legend(fontsize=9)
    return ax


def _check_same_model(scores: Mapping[str, Any], mask: SparseMask) -> None:
    """Competing scores and competing variables of the mask are the same."""
    scored = {path: tuple(np.shape(array)) for path, array in scores.items()}
    masked = {
        path: tuple(shape)
        for path, shape in mask.shapes.items()
        if path not in mask.always
    }
    if scored != masked:
        differing = sorted(
            path
            for path in scored.keys() | masked.keys()
            if scored.get(path) != masked.get(path)
        )
        listed = "; ".join(
            f"{path}: scores {scored.get(path, 'missing')}, "
            f"mask {masked.get(path, 'missing')}"
            for path in differing[:5]
        )
        raise ValueError(
            f"`mask` is for another model than `scores`. Received: {len(differing)} "
            f"variable(s) with other shapes or missing ({listed}). Pass the scores "
            "from which the mask was selected."
        )
