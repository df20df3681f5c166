"""Draws of the selected scalars, taken while a sampler runs as stage 2."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_bayestune.arguments import check_integer
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.masks import SparseMask


class PosteriorDraws(keras.callbacks.Callback):
    """Keep the selected scalars every `thinning` batches, each time as a delta.

    For stage 2 as a sampler, `SparseOptimizer(BayesTuneSGLD(...), mask)`: after
    burn-in its states are draws of the posterior of the selected scalars, given that
    all others stay (Welling & Teh, "Bayesian Learning via Stochastic Gradient
    Langevin Dynamics", ICML 2011). Each draw costs the memory of a delta and not of a
    model. `average_predictions` predicts with all of them.

    `BayesTuneSGLD(effective_size=n)`, with n the number of training examples, samples
    at temperature 1. A head that is new goes into its `exclude`.

    Args:
        mask: `SparseMask` of the model.
        base: `{variable path: array}`, the values before tuning, of every variable in
            the mask that it does not take whole.
        burn_in_steps: Batches before the first draw, >= 0, counted over all `fit`s.
        thinning: Batches from one draw to the next, >= 1.

    Attributes:
        deltas: The draws so far, a list of `SparseDelta`.

    Raises:
        TypeError: if `mask` is no `SparseMask`.
        ValueError: if a number is out of range.

    Example:
    >>> from keras_bayestune import BayesTuneSGLD, SparseMask, SparseOptimizer
    >>> from keras_bayestune.callbacks import PosteriorDraws
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> base = {v.path: v.numpy() for v in model.weights}
    >>> scores = {path: np.random.rand(*w.shape) for path, w in base.items()}
    >>> mask = SparseMask.from_scores(scores, fraction=0.4)
    >>> sampler = BayesTuneSGLD(1e-2, effective_size=32, warmup_steps=4)
    >>> model.compile(SparseOptimizer(sampler, mask), loss="mse")
    >>> draws = PosteriorDraws(mask, base, burn_in_steps=6, thinning=2)
    >>> x, y = np.random.rand(32, 4), np.random.rand(32, 3)
    >>> history = model.fit(x, y, batch_size=2, callbacks=[draws], verbose=0)
    >>> len(draws.deltas)
    5
    """

    def __init__(
        self,
        mask: SparseMask,
        base: Mapping[str, Any],
        burn_in_steps: int,
        thinning: int,
    ):
        super().__init__()
        if not isinstance(mask, SparseMask):
            raise TypeError(
                "`mask` of PosteriorDraws must be a SparseMask. Received: "
                f"{type(mask).__name__}."
            )
        self.mask = mask
        # Copies: on JAX the arrays behind variables are given away to the next step.
        self.base = {path: np.array(value) for path, value in base.items()}
        self.burn_in_steps = check_integer("burn_in_steps", burn_in_steps, 0)
        self.thinning = check_integer("thinning", thinning, 1)
        self.deltas: list[SparseDelta] = []
        self._batches = self._previous = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Count this epoch's batches from its start."""
        self._previous = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Take a draw if one is due."""
        # With `steps_per_execution` Keras calls once for several batches.
        self._batches += batch - self._previous
        self._previous = batch
        due = (self._batches - self.burn_in_steps) // self.thinning
        if due > len(self.deltas):
            draw = SparseDelta.from_model(self.model, mask=self.mask, base=self.base)
            self.deltas.append(draw)
