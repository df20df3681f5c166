"""Stop a run whose every update is skipped, because its data are not numbers."""

import warnings

import keras

from keras_bayestune.arguments import check_integer
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer, unscaled


class SkippedUpdates:
    """Watches that updates are done, in both stages.

    It looks every `most` updates only, since a look waits for the device: the run
    stops after `most` to twice as many.

    Args:
        most: How many updates may be skipped in a row, >= 1.

    Raises:
        ValueError: if `most` is out of range.
    """

    def __init__(self, most: int):
        """Check the argument."""
        self.most = check_integer("max_skipped_steps", most, 1)
        self.begin()

    def begin(self) -> None:
        """Begin to count with the next look."""
        self._batches = 0
        # The stages count from 0 each.
        self._done: tuple[type | None, int] = None, 0

    def is_due(self, batches: int) -> bool:
        """Return whether to look, after `batches` batches."""
        return batches - self._batches >= self.most

    def look(self, optimizer: keras.optimizers.Optimizer, batches: int) -> str | None:
        """Return what to say if nothing was done since the last look."""
        own = unscaled(optimizer)
        accumulated, updates = 1, self._done[1]
        if isinstance(own, BayesTuneSGLD):
            accumulated, updates = own.gradient_accumulation_steps or 1, own.num_updates
        elif isinstance(own, SparseOptimizer):
            accumulated = own.inner.gradient_accumulation_steps or 1
            updates = int(keras.ops.convert_to_numpy(own.iterations))
        done = type(own), updates
        if done != self._done:
            self._batches, self._done = batches, done
            return None
        if batches - self._batches < self.most * accumulated:
            return None
        return (
            f"The last {(batches - self._batches) // accumulated} updates were all "
            "skipped, because a gradient was not finite: nothing is being trained. "
            "Look for NaN and infinity in the inputs and the labels (np.isfinite(x)."
            "all()) and for a loss that is not finite, such as the logarithm of 0; if "
            "there are none, lower the learning rate. SparseMaskCallback("
            f"max_skipped_steps={self.most}) says how many may be skipped in a row."
        )

    def warn(self, skipped: int) -> None:
        """Warn at the end of `fit` if any update was skipped."""
        if skipped:
            warnings.warn(
                f"{skipped} updates were skipped because a gradient was not finite. "
                "Look at the data and the loss; a lower learning rate or "
                "`global_clipnorm` may help.",
                stacklevel=2,
            )
