"""Trace of the sampled scales of a few scalars."""

import math

import keras
import numpy as np
from keras import ops

from keras_bayestune.optimizers import BayesTuneSGLD
from keras_bayestune.updates.gather_scatter import gather


class ScaleTrace:
    """Samples of some scales, worked out from their running means.

    With mean_n the mean of n samples, n mean_n - (n - 1) mean_(n-1) is the n-th
    sample. Where several samples were taken since the last look, their mean counts as
    one.

    Args:
        means: Path and running mean of each variable under a prior; none for a trace
            whose stage 1 is over.
        scalars: How many scalars to follow, evenly over all of them.
        of_each: Whether so many of each variable, evenly over it.
    """

    def __init__(
        self,
        means: list[tuple[str, keras.Variable]],
        scalars: int,
        of_each: bool = False,
    ):
        """Choose the scalars."""
        self._samples: list[np.ndarray] = []
        self._count = 0
        self._total: np.ndarray | float = 0.0
        if of_each:
            self._positions = {
                path: _evenly(math.prod(mean.shape), scalars) for path, mean in means
            }
            return
        shapes = {path: mean.shape for path, mean in means}
        starts = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())])
        kept = _evenly(int(starts[-1]), scalars)
        self._positions = {
            path: (kept[(kept >= start) & (kept < end)] - start).astype("int32")
            for path, start, end in zip(shapes, starts, starts[1:], strict=False)
        }

    def record(self, optimizer: BayesTuneSGLD) -> None:
        """Add what was sampled since the last call, if anything was."""
        count = optimizer.num_samples
        if count == self._count:
            return
        means = np.concatenate(
            [
                ops.convert_to_numpy(gather(mean, self._positions[path]))
                for path, mean in optimizer.running_means()
                if len(self._positions[path])
            ]
        )
        total = count * means.astype("float64")
        self._samples.append((total - self._total) / (count - self._count))
        self._total, self._count = total, count

    def samples(self) -> np.ndarray:
        """Return the samples, shape `(samples, scalars)`."""
        return np.array(self._samples)

    def names(self) -> list[str]:
        """Return "path[flat index]" of each; none if stage 1 was over before."""
        return [f"{path}[{i}]" for path, at in self._positions.items() for i in at]

    def counts(self) -> dict[str, int]:
        """Return how many scalars of each variable are followed, in their order."""
        return {path: len(found) for path, found in self._positions.items()}

    def state(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Return what `restore` takes."""
        return self._count, self.samples(), np.asarray(self._total)

    def restore(self, count: int, samples: np.ndarray, total: np.ndarray) -> None:
        """Go on from the state of another trace of the same scalars."""
        self._count, self._samples, self._total = count, list(samples), total


def _evenly(size: int, count: int) -> np.ndarray:
    """Positions from the first to the last of `size`, at most `count` of them."""
    return np.linspace(0, size - 1, min(count, size)).astype("int64")
