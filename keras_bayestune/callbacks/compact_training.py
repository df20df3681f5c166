"""Switch compact gradients on for the time of stage 2."""

from typing import Any

import keras

from keras_bayestune.optimizers import SparseOptimizer, unscaled
from keras_bayestune.optimizers.compact_gradients import CompactGradients
from keras_bayestune.updates.replicas import strategy_scope


class CompactTraining(keras.callbacks.Callback):
    """Train a model under a `SparseOptimizer` with compact gradients where they pay.

    Args:
        when: "auto" for the layers where they are estimated to be faster, `True` for
            every layer that can, `False` for none.

    Raises:
        ValueError: if `when` is none of the three.
    """

    def __init__(self, when: bool | str = "auto"):
        """Check the argument."""
        super().__init__()
        if when not in ("auto", True, False):
            raise ValueError(
                "`compact_gradients` must be 'auto', True or False. Received: "
                f"{when!r}."
            )
        self.when = when
        self.gradients: CompactGradients | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start if stage 2 has begun."""
        self.start()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Let the step that follows use them: it belongs to this `fit`."""
        if self.gradients is not None:
            self.gradients.announce()

    def start(self) -> None:
        """Install them from the next step on, unless they are."""
        optimizer = unscaled(self.model.optimizer)
        if self.gradients is not None and self.gradients.optimizer is optimizer:
            return
        self.on_train_end()
        if not self.when or not isinstance(optimizer, SparseOptimizer):
            return
        if not self.model.built:
            return  # the first batch builds it; the next epoch comes round here
        if not optimizer.built:
            with strategy_scope(self.model):
                self.model.optimizer.build(self.model.trainable_variables)
        self.gradients = CompactGradients(self.model, force=self.when is True)
        self.gradients.install()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the model as it was."""
        if self.gradients is not None:
            self.gradients.remove()
            self.gradients = None
