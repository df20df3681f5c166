"""The selected scalars along a run, each time as a delta."""

import keras
import numpy as np

import keras_bayestune as kbt


class Iterates(keras.callbacks.Callback):
    """Keep a delta every `every` batches, after `start` of them."""

    def __init__(self, mask, base, start, every):
        super().__init__()
        self.mask = mask
        # Copies: on JAX the arrays behind variables are given away to the next step.
        self.base = {path: np.array(value) for path, value in base.items()}
        self.start, self.every = start, every
        self.deltas, self.batches = [], 0

    def on_train_batch_end(self, batch, logs=None):
        """Take a delta if one is due."""
        self.batches += 1
        if self.batches > self.start and (self.batches - self.start) % self.every == 0:
            self.deltas.append(
                kbt.SparseDelta.from_model(self.model, mask=self.mask, base=self.base)
            )
