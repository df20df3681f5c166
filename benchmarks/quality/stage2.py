"""Stage 2 of every method: one model, one mask, one rate after the other."""

from typing import Any

import keras
import numpy as np
from keras import ops

import keras_bayestune as kbt


class MaskedAdam(keras.optimizers.Adam):
    """Adam on the masked scalars, the mask being state: compiled once for all masks.

    `SparseOptimizer(Adam)` has vectors as long as the mask, so each mask compiles anew;
    for a model that trains in a quarter of a second that would be nine tenths of the
    time. Here the gradient is multiplied by 0 or 1: with a gradient that was always 0,
    Adam stands still. A test compares the two.
    """

    def build(self, variables):
        """Create the masks."""
        if self.built:
            return
        super().build(variables)
        self.masks = [
            self.add_variable_from_reference(variable, name="mask", initializer="ones")
            for variable in variables
        ]

    def apply(self, grads, trainable_variables=None):
        """Update with what the masks leave of the gradients."""
        if trainable_variables is not None:
            self.build(list(trainable_variables))
        grads = [
            g * ops.convert_to_tensor(m) for g, m in zip(grads, self.masks, strict=True)
        ]
        super().apply(grads, trainable_variables)


class Stage2:
    """Trains `model` from its present weights, again for every rate.

    Args:
        model: The model, at its start.
        mask: What is trained; `None` for all that is trainable.
        loss: A Keras loss.
        compiles_once: Whether `model` serves many masks, see `MaskedAdam`.
    """

    def __init__(
        self,
        model: keras.Model,
        mask: kbt.SparseMask | None,
        loss: Any,
        compiles_once: bool,
    ):
        self.model = model
        self.weights = model.get_weights()
        if compiles_once:
            self.optimizer = self._masked(mask, loss)
            self.adam = self.optimizer
        else:
            self.adam = keras.optimizers.Adam(global_clipnorm=1.0)
            self.optimizer = self.adam
            if mask is not None:
                self.optimizer = kbt.SparseOptimizer(self.adam, mask)
            self.optimizer.build(model.trainable_variables)
            model.compile(self.optimizer, loss)
        self.state = [np.array(v) for v in self.optimizer.variables]

    def _masked(self, mask, loss):
        variables = self.model.trainable_variables
        # A KerasHub task compiles itself.
        if not isinstance(getattr(self.model, "optimizer", None), MaskedAdam):
            self.model.compile(MaskedAdam(global_clipnorm=1.0), loss)
            self.model.optimizer.build(variables)
        optimizer = self.model.optimizer
        for variable in optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        for variable, target in zip(variables, optimizer.masks, strict=True):
            chosen = np.ones(int(np.prod(variable.shape)), "float32")
            if mask is not None:
                chosen[:] = 0
                chosen[mask.indices[variable.path]] = 1
            target.assign(chosen.reshape(variable.shape))
        return optimizer

    def train(self, batches: Any, steps: int, rate: float, callbacks: Any = ()) -> None:
        """Train for `steps` from the start."""
        self.model.set_weights(self.weights)
        for variable, value in zip(self.optimizer.variables, self.state, strict=True):
            variable.assign(value)
        self.adam.learning_rate = rate
        self.model.fit(
            batches,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
