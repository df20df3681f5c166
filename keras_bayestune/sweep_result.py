"""What a sweep found: its runs, the best, a table and a picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np

from keras_bayestune.deltas import SparseDelta
from keras_bayestune.plots import plot_error_vs_sparsity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SELECTED, HEAD, FULL = "selected", "head only", "full"


class SweepRun(NamedTuple):
    """One run of stage 2."""

    method: str  # "selected", "head only" or "full"
    fraction: float  # of the scalars that compete, of all of them for the other two
    learning_rate: float
    scalars: int  # that trained
    validation: dict[str, float]  # loss and metrics after the last epoch
    delta: SparseDelta | None  # what it learned; `None` of "full"


class Sweep:
    """What `sweep` returns; `print` shows a table.

    Attributes:
        runs: All runs, in the order in which they were done.
        scores: `{variable path: score of each scalar}` of stage 1.
        selection_history: Keras's history of stage 1.
        monitor: What `best` goes by.
    """

    def __init__(
        self,
        runs: Sequence[SweepRun],
        scores: dict[str, np.ndarray],
        selection_history: keras.callbacks.History,
        monitor: str,
        mode: str,
    ):
        """Keep the runs."""
        self.runs = tuple(runs)
        self.scores = scores
        self.selection_history = selection_history
        self.monitor = monitor
        self._mode = mode

    def error(self, run: SweepRun) -> float:
        """What is to be small: the monitored number, or 1 minus one to maximise."""
        value = run.validation[self.monitor]
        return 1.0 - value if self._mode == "max" else value

    @property
    def best(self) -> SweepRun:
        """The best run on selected scalars."""
        return min((r for r in self.runs if r.method == SELECTED), key=self._order)

    def _order(self, run: SweepRun) -> float:
        error = self.error(run)
        return math.inf if math.isnan(error) else error

    @property
    def errors(self) -> dict[str, dict[float, float]]:
        """`{method: {fraction: error}}` at each one's best learning rate."""
        found: dict[str, dict[float, float]] = {}
        for run in sorted(self.runs, key=self._order):
            if math.isfinite(self.error(run)):
                by_fraction = found.setdefault(run.method, {})
                by_fraction.setdefault(run.fraction, self.error(run))
        return {name: found[name] for name in (SELECTED, HEAD, FULL) if name in found}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw `errors`; head only and full are horizontal lines."""
        ax = plot_error_vs_sparsity(self.errors, ax=ax)
        name = f"validation {self.monitor}"
        ax.set_ylabel(f"1 - {name}" if self._mode == "max" else name.capitalize())
        return ax

    def __repr__(self) -> str:
        """Return the table, the best run marked."""
        names = list(self.runs[0].validation)
        rows = [("", "method", "fraction", "learning rate", "scalars", *names)]
        for run in self.runs:
            rows.append(
                (
                    "*" if run is self.best else "",
                    run.method,
                    f"{100 * run.fraction:.3g} %",
                    f"{run.learning_rate:.3g}",
                    f"{run.scalars:,}",
                    *(f"{run.validation[name]:.4g}" for name in names),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(map(str.rjust, row, widths)).rstrip() for row in rows
        )
