"""The pictures of a finished stage 1, as files."""

from pathlib import Path

import numpy as np

from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.masks import SparseMask
from keras_bayestune.plots import plot_mask, plot_scales, plot_trace


def save_plots(
    folder: Path,
    scores: dict[str, np.ndarray],
    mask: SparseMask,
    trace: ScaleTrace | None,
    without_gradient: float | None,
) -> None:
    """Write `scales.png`, `mask.png` and, given a trace, `trace.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    axes = {
        "scales": plot_scales(scores, mask, without_gradient=without_gradient),
        "mask": plot_mask(mask),
    }
    if trace is not None:
        axes["trace"] = plot_trace(trace.samples(), names=trace.names())
    for name, ax in axes.items():
        ax.figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        ax.figure.clear()
