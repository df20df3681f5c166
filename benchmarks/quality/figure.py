"""Test error against sparsity, of finished cells."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import keras_bayestune as kbt
from benchmarks.quality import methods
from benchmarks.quality.table import primary, values_of


def errors_of(found: Mapping[Any, Mapping[str, Any]], head: str):
    """Return {method: {share: errors of the seeds, each the mean over tasks}}.

    A method counts where all its tasks and seeds are there; those with a size of their
    own have one share, the one they train, or 1 for all scalars.
    """
    cells = {cell: record for cell, record in found.items() if cell.head == head}
    errors: dict[str, dict[float, list[float]]] = {}
    for fraction in sorted({c.fraction for c in cells if c.fraction is not None}):
        for method, blocks in values_of(cells, fraction).items():
            seeds: dict[int, list[float]] = {}
            for (_, seed), record in blocks.items():
                seeds.setdefault(seed, []).append(100 - primary(record))
            share = 1.0 if method in methods.NO_FRACTION else fraction
            of_seeds = [float(np.mean(seeds[seed])) for seed in sorted(seeds)]
            if of_seeds:
                errors.setdefault(method, {})[share] = of_seeds
    return dict(sorted(errors.items(), key=lambda row: row[0] != methods.OURS))


def save(found: Mapping[Any, Mapping[str, Any]], head: str, file) -> None:
    """Draw the figure into `file`."""
    import matplotlib

    axes = kbt.plot_error_vs_sparsity(errors_of(found, head))
    axes.set_ylabel("Test error, %")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text, not outlines
        axes.figure.savefig(file, bbox_inches="tight", dpi=120)
