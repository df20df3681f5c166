"""Fraction of the scalars that a mask chose, per layer and kind of weight."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from keras_bayestune.arguments import check_integer
from keras_bayestune.masks import SparseMask
from keras_bayestune.plots.axes import new_axes, percent
from keras_bayestune.plots.blocks import blocks, names_inside, shared_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LAYERS = 40
_MOST_ANNOTATED_CELLS = 60
_LONGEST_LABEL = 50
_FONT = 9.0
_SMALLEST_FONT = 6.0


class MaskFractions(NamedTuple):
    """Counts behind `plot_mask`, one row per layer, one column per kind of weight."""

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    selected: np.ndarray  # int64, (layers, kinds): selected scalars
    sizes: np.ndarray  # int64, (layers, kinds): all scalars, 0 where there are none
    always: np.ndarray  # bool, (layers, kinds): only variables taken whole

    @property
    def fractions(self) -> np.ndarray:
        """Fraction selected, float64 (layers, kinds), NaN without such a weight."""
        fractions = np.full(self.sizes.shape, np.nan)
        np.divide(self.selected, self.sizes, out=fractions, where=self.sizes > 0)
        return fractions


def mask_fractions(mask: SparseMask, most_layers: int = _MOST_LAYERS) -> MaskFractions:
    """Count the selected scalars per layer and kind of weight.

    The kind of a weight is the last part of its variable's path (`kernel`, `bias`,
    `gamma`, ...), its layer all parts before. Where that makes more than
    `most_layers` layers, numbered blocks are the layers and what is inside them the
    kinds, so that `transformer_layer_0/self_attention_layer/query/kernel` and `bias`
    count as `query` in `transformer_layer_0`. If these are still too many, paths are
    cut to their leading parts.

    Args:
        mask: Mask to count.
        most_layers: Layers above which paths are cut; at least 1.

    Returns:
        Layers in the mask's order, kinds by their number of scalars, largest first.

    Raises:
        TypeError: `mask` is not a `SparseMask`.
        ValueError: `most_layers` is below 1.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune import SparseMask
        >>> from keras_bayestune.plots.mask import mask_fractions
        >>> scores = {"dense/kernel": np.arange(8.0).reshape(4, 2),
        ...           "dense/bias": np.zeros(2), "head/kernel": np.ones((2, 1))}
        >>> mask = SparseMask.from_scores(scores, threshold=5.5)
        >>> fractions = mask_fractions(mask)
        >>> fractions.layers, fractions.kinds
        (('dense', 'head'), ('kernel', 'bias'))
        >>> fractions.selected.tolist(), fractions.sizes.tolist()
        ([[2, 0], [0, 0]], [[8, 2], [2, 0]])
    """
    if not isinstance(mask, SparseMask):
        raise TypeError(
            f"`mask` must be a SparseMask. Received: {type(mask).__name__}. Build one "
            "with `SparseMask.from_scores`."
        )
    most_layers = check_integer("most_layers", most_layers, 1)
    parts = {path: tuple(path.split("/")) for path in mask.shapes}
    shared = shared_length([part[:-1] for part in parts.values()])
    whole = {path: part[shared:-1] for path, part in parts.items()}
    owners, kinds_of = whole, {path: part[-1] for path, part in parts.items()}
    if len(set(whole.values())) > most_layers:
        owners = blocks(whole)
        inside = {path: whole[path][len(owners[path]) :] for path in whole}
        kinds_of |= names_inside(inside)
    for depth in range(max(map(len, owners.values()), default=0), 0, -1):
        if len(set(owners.values())) <= most_layers:
            break
        owners = {path: owner[:depth] for path, owner in owners.items()}

    totals: dict[str, int] = {}
    for path, kind in kinds_of.items():
        totals[kind] = totals.get(kind, 0) + _scalars(mask, path)
    kinds = sorted(totals, key=lambda kind: -totals[kind])
    layers = list(dict.fromkeys(owners.values()))
    row = {owner: index for index, owner in enumerate(layers)}
    column = {kind: index for index, kind in enumerate(kinds)}

    selected = np.zeros((len(layers), len(kinds)), np.int64)
    sizes = np.zeros_like(selected)
    competing = np.zeros(selected.shape, bool)
    for path, kind in kinds_of.items():
        cell = row[owners[path]], column[kind]
        selected[cell] += len(mask.indices[path])
        sizes[cell] += _scalars(mask, path)
        competing[cell] |= path not in mask.always
    labels = tuple("/".join(owner) or "(model)" for owner in layers)
    return MaskFractions(
        labels, tuple(kinds), selected, sizes, (sizes > 0) & ~competing
    )


def plot_mask(mask: SparseMask, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the fraction of scalars selected, per layer and kind of weight.

    Source: this library; the counts are `mask_fractions(mask)`. Colour is the fraction
    selected on a logarithmic scale. Cells with no selected scalar, and variables taken
    whole, have their own marks and stay out of the colour scale. The fractions are
    written into the cells when there are few.

    Args:
        mask: Mask to draw.
        ax: Axes to draw on; a new figure by default.

    Returns:
        The Axes, with the colour bar beside it. Close its figure after use.

    Raises:
        TypeError: `mask` is not a `SparseMask`.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from keras_bayestune import SparseMask, plot_mask
        >>> scores = {"dense/kernel": np.arange(8.0).reshape(4, 2),
        ...           "dense/bias": np.zeros(2), "head/kernel": np.ones((2, 1))}
        >>> mask = SparseMask.from_scores(scores, fraction=0.25)
        >>> axes = plot_mask(mask)
        >>> axes.get_xlabel(), axes.get_ylabel()
        ('Kind of weight', 'Layer')
        >>> plt.close(axes.figure)
    """
    data = mask_fractions(mask)
    rows, columns = data.sizes.shape
    layers, kinds = _shortened(data.layers), _shortened(data.kinds)
    longest = max(map(len, kinds))
    crowded = columns > 8 or longest > 12
    if ax is None:
        width = 1.8 + 0.07 * max(map(len, layers)) + columns
        height = 1.9 + 0.27 * rows + 0.04 * longest * crowded
        ax = new_axes(np.clip(width, 6.5, 14), np.clip(height, 3.2, 13))
    _draw_cells(ax, data)

    height = ax.figure.get_figheight() * ax.get_position().height
    font = float(np.clip(0.85 * 72 * height / rows, _SMALLEST_FONT, _FONT))
    step = int(np.ceil(rows * font * 1.1 / (72 * height)))
    ax.set_yticks(np.arange(0, rows, step) + 0.5, layers[::step], fontsize=font)
    ax.set_xticks(
        np.arange(columns) + 0.5,
        kinds,
        fontsize=_FONT,
        rotation=30 if crowded else 0,
        ha="right" if crowded else "center",
    )
    ax.tick_params(length=0)
    ax.set_xlabel("Kind of weight")
    ax.set_ylabel("Layer")
    ax.set_title(
        "Fraction of scalars selected per layer and kind of weight\n"
        f"{mask.count:,} of {mask.size:,} scalars ({percent(mask.fraction)})",
        fontsize=11,
        pad=26 if ax.get_legend() else 8,
    )
    return ax


def _draw_cells(ax: "Axes", data: MaskFractions) -> None:
    """One square per cell, the colour bar, and a legend of the cells without colour."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch, Rectangle

    fractions = data.fractions
    coloured = (data.selected > 0) & ~data.always
    ticks = _colour_ticks(fractions[coloured])
    colours = ScalarMappable(LogNorm(ticks[0], ticks[-1]), "viridis")
    marks = {
        "none selected": {"facecolor": "0.9", "edgecolor": "white"},
        "always trained": {"facecolor": "white", "edgecolor": "0.7", "hatch": "////"},
    }
    used = {}
    for row, column in np.argwhere(data.sizes > 0):
        text_colour = "black"
        if coloured[row, column]:
            colour = colours.to_rgba(fractions[row, column])
            style = {"facecolor": colour, "edgecolor": "white"}
            if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5:
                text_colour = "white"
        else:
            mark = "always trained" if data.always[row, column] else "none selected"
            style = used[mark] = marks[mark]
        ax.add_patch(Rectangle((column, row), 1, 1, linewidth=0.5, **style))
        if fractions.size <= _MOST_ANNOTATED_CELLS and "hatch" not in style:
            ax.text(
                column + 0.5,
                row + 0.5,
                percent(fractions[row, column]),
                ha="center",
                va="center",
                color=text_colour,
                fontsize=_FONT,
            )
    ax.set_xlim(0, fractions.shape[1])
    ax.set_ylim(fractions.shape[0], 0)
    if coloured.any():
        bar = ax.figure.colorbar(colours, ax=ax, label="Fraction of scalars selected")
        # Up to three decades have room for 1, 2 and 5; more of them only for 1.
        shown = [tick for tick in ticks if len(ticks) <= 10 or f"{tick:e}"[0] == "1"]
        bar.set_ticks(shown, labels=[percent(fraction) for fraction in shown])
        bar.ax.minorticks_off()
    if used:
        ax.legend(
            [Patch(**style) for style in used.values()],
            list(used),
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
            fontsize=_FONT,
        )


def _colour_ticks(fractions: np.ndarray) -> np.ndarray:
    """The 1-2-5 steps from below the least positive fraction to above the largest."""
    steps = np.append(np.outer(10.0 ** np.arange(-12, 0), (1, 2, 5)), 1.0)
    if not fractions.size:
        return steps[-2:]
    low = np.searchsorted(steps, fractions.min() * (1 + 1e-9), side="right") - 1
    high = np.searchsorted(steps, fractions.max() * (1 - 1e-9))
    low = min(low, len(steps) - 2)
    return steps[low : max(high, low + 1) + 1]


def _scalars(mask: SparseMask, path: str) -> int:
    return math.prod(mask.shapes[path])


def _shortened(labels: Sequence[str]) -> list[str]:
    """Labels with their middle left out where they are long, but all different."""
    short = [_ends(label) for label in labels]
    # What tells them apart may be the middle: then the end, or everything.
    for label in (lambda label: f"…{label[-_LONGEST_LABEL + 1 :]}", str):
        if len(set(short)) == len(set(labels)):
            break
        short = [label(x) if len(x) > _LONGEST_LABEL else x for x in labels]
    return short


def _ends(label: str) -> str:
    parts = label.split("/")
    if len(label) > _LONGEST_LABEL and len(parts) > 2:
        label = f"{parts[0]}/…/{parts[-1]}"
    if len(label) > _LONGEST_LABEL:
        half = _LONGEST_LABEL // 2
        label = f"{label[:half]}…{label[-half + 1 :]}"
    return label
