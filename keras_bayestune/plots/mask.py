"""Share of the scalars that a mask chose, per layer and kind of weight."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from keras_bayestune.arguments import check_integer
from keras_bayestune.masks import SparseMask
from keras_bayestune.plots.axes import new_axes, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LAYERS = 40
_MOST_ANNOTATED_CELLS = 60
_LONGEST_LABEL = 50
_FONT = 9.0
_SMALLEST_FONT = 6.0


class MaskShares(NamedTuple):
    """Counts behind `plot_mask`, one row per layer, one column per kind of weight."""

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    chosen: np.ndarray  # int64, (layers, kinds): selected scalars
    sizes: np.ndarray  # int64, (layers, kinds): all scalars, 0 where there are none
    always: np.ndarray  # bool, (layers, kinds): only variables taken whole

    @property
    def shares(self) -> np.ndarray:
        """Share chosen, float64 (layers, kinds), NaN where there is no such weight."""
        shares = np.full(self.sizes.shape, np.nan)
        np.divide(self.chosen, self.sizes, out=shares, where=self.sizes > 0)
        return shares


def mask_shares(mask: SparseMask, most_layers: int = _MOST_LAYERS) -> MaskShares:
    """Count the chosen scalars per layer and kind of weight.

    The kind of a weight is the last part of its variable's path (`kernel`, `bias`,
    `gamma`, ...), its layer all parts before. Where that makes more than
    `most_layers` layers, paths are cut to their leading parts, so that
    `transformer_layer_0/self_attention_layer/query` counts as `transformer_layer_0`.

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
        >>> from keras_bayestune.plots.mask import mask_shares
        >>> scores = {"dense/kernel": np.arange(8.0).reshape(4, 2),
        ...           "dense/bias": np.zeros(2), "head/kernel": np.ones((2, 1))}
        >>> mask = SparseMask.from_scores(scores, threshold=5.5)
        >>> shares = mask_shares(mask)
        >>> shares.layers, shares.kinds
        (('dense', 'head'), ('kernel', 'bias'))
        >>> shares.chosen.tolist(), shares.sizes.tolist()
        ([[2, 0], [0, 0]], [[8, 2], [2, 0]])
    """
    if not isinstance(mask, SparseMask):
        raise TypeError(
            f"`mask` must be a SparseMask. Received: {type(mask).__name__}. Build one "
            "with `SparseMask.from_scores`."
        )
    most_layers = check_integer("most_layers", most_layers, 1)
    parts = {path: tuple(path.split("/")) for path in mask.shapes}
    shared = _shared_length([part[:-1] for part in parts.values()])
    owners = {path: part[shared:-1] for path, part in parts.items()}
    for depth in range(max(map(len, owners.values()), default=0), 0, -1):
        cut = {path: owner[:depth] for path, owner in owners.items()}
        if depth == 1 or len(set(cut.values())) <= most_layers:
            owners = cut
            break

    totals: dict[str, int] = {}
    for path, part in parts.items():
        totals[part[-1]] = totals.get(part[-1], 0) + _scalars(mask, path)
    kinds = sorted(totals, key=lambda kind: -totals[kind])
    layers = list(dict.fromkeys(owners.values()))
    row = {owner: index for index, owner in enumerate(layers)}
    column = {kind: index for index, kind in enumerate(kinds)}

    chosen = np.zeros((len(layers), len(kinds)), np.int64)
    sizes = np.zeros_like(chosen)
    competing = np.zeros(chosen.shape, bool)
    for path, part in parts.items():
        cell = row[owners[path]], column[part[-1]]
        chosen[cell] += len(mask.indices[path])
        sizes[cell] += _scalars(mask, path)
        competing[cell] |= path not in mask.always
    labels = tuple("/".join(owner) or "(model)" for owner in layers)
    return MaskShares(labels, tuple(kinds), chosen, sizes, (sizes > 0) & ~competing)


def plot_mask(mask: SparseMask, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the share of scalars chosen, per layer and kind of weight.

    Source: this library; the counts are `mask_shares(mask)`. Colour is the share
    chosen on a logarithmic scale. Cells with no chosen scalar, and variables taken
    whole, have their own marks and stay out of the colour scale. The shares are
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
    data = mask_shares(mask)
    rows, columns = data.sizes.shape
    layers = [_shortened(layer) for layer in data.layers]
    kinds = [_shortened(kind) for kind in data.kinds]
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
        "Share of scalars chosen per layer and kind of weight\n"
        f"{mask.count:,} of {mask.size:,} scalars ({percent(mask.fraction)})",
        fontsize=11,
        pad=26 if ax.get_legend() else 8,
    )
    return ax


def _draw_cells(ax: "Axes", data: MaskShares) -> None:
    """One square per cell, the colour bar, and a legend of the cells without colour."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch, Rectangle

    shares = data.shares
    coloured = (data.chosen > 0) & ~data.always
    ticks = _colour_ticks(shares[coloured])
    colours = ScalarMappable(LogNorm(ticks[0], ticks[-1]), "viridis")
    marks = {
        "none chosen": {"facecolor": "0.9", "edgecolor": "white"},
        "always trained": {"facecolor": "white", "edgecolor": "0.7", "hatch": "////"},
    }
    used = {}
    for row, column in np.argwhere(data.sizes > 0):
        text_colour = "black"
        if coloured[row, column]:
            colour = colours.to_rgba(shares[row, column])
            style = {"facecolor": colour, "edgecolor": "white"}
            if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5:
                text_colour = "white"
        else:
            mark = "always trained" if data.always[row, column] else "none chosen"
            style = used[mark] = marks[mark]
        ax.add_patch(Rectangle((column, row), 1, 1, linewidth=0.5, **style))
        if shares.size <= _MOST_ANNOTATED_CELLS and "hatch" not in style:
            ax.text(
                column + 0.5,
                row + 0.5,
                percent(shares[row, column]),
                ha="center",
                va="center",
                color=text_colour,
                fontsize=_FONT,
            )
    ax.set_xlim(0, shares.shape[1])
    ax.set_ylim(shares.shape[0], 0)
    if coloured.any():
        bar = ax.figure.colorbar(colours, ax=ax, label="Share of scalars chosen")
        # Up to three decades have room for 1, 2 and 5; more of them only for 1.
        shown = [tick for tick in ticks if len(ticks) <= 10 or f"{tick:e}"[0] == "1"]
        bar.set_ticks(shown, labels=[percent(share) for share in shown])
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


def _colour_ticks(shares: np.ndarray) -> np.ndarray:
    """The 1-2-5 steps from below the least positive share to above the largest."""
    steps = np.append(np.outer(10.0 ** np.arange(-12, 0), (1, 2, 5)), 1.0)
    if not shares.size:
        return steps[-2:]
    low = np.searchsorted(steps, shares.min() * (1 + 1e-9), side="right") - 1
    high = np.searchsorted(steps, shares.max() * (1 - 1e-9))
    low = min(low, len(steps) - 2)
    return steps[low : max(high, low + 1) + 1]


def _scalars(mask: SparseMask, path: str) -> int:
    return math.prod(mask.shapes[path])


def _shared_length(owners: list[tuple[str, ...]]) -> int:
    """Number of leading parts that all owners have in common."""
    shared = 0
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return shared


def _shortened(label: str) -> str:
    """The label with its middle left out when it is long: its ends tell most."""
    parts = label.split("/")
    if len(label) > _LONGEST_LABEL and len(parts) > 2:
        label = f"{parts[0]}/…/{parts[-1]}"
    if len(label) > _LONGEST_LABEL:
        half = _LONGEST_LABEL // 2
        label = f"{label[:half]}…{label[-half + 1 :]}"
    return label
