"""Whether stage 1 has learned anything that its scales could tell of."""

import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.optimizers import BayesTuneSGLD
from keras_bayestune.paths import variables_by_path


class Learning:
    """Watches the loss of stage 1, and at its end how far the weights moved.

    Scales say how far a weight had to move. Where the loss does not fall, or where
    steps are too small for the weights' dtype, they hold noise or nothing at all.
    """

    def __init__(self) -> None:
        """Begin with no epoch seen."""
        self.losses: list[float] = []

    def add_epoch(self, logs: dict[str, Any]) -> None:
        """Remember the loss of an epoch of stage 1."""
        loss = logs.get("loss", math.nan)
        if math.isfinite(loss):
            self.losses.append(float(loss))

    def warn(self, model: keras.Model, optimizer: BayesTuneSGLD) -> None:
        """Warn if the scales cannot say which weights matter.

        Args:
            model: The model, before its weights are restored.
            optimizer: That of stage 1.
        """
        rate = f"now {float(ops.convert_to_numpy(optimizer.learning_rate)):.2g}"
        still = share_that_stood_still(model, optimizer)
        if still > 0.5:
            warnings.warn(
                f"{still:.0%} of the weights under the prior are what they were before "
                "stage 1, bit for bit: no gradient reaches them, or their steps are "
                "too small for their dtype, and the scales say nothing. Raise "
                f"learning_rate ({rate}; 1e-5 to 1e-4 suit transformers, 3e-3 small "
                "models), and look at the loss.",
                stacklevel=2,
            )
        elif len(self.losses) > 1 and min(self.losses[1:]) >= self.losses[0]:
            warnings.warn(
                f"The loss never fell in stage 1: {self.losses[0]:.4g} in its first "
                f"epoch, {self.losses[-1]:.4g} in its last. The scales then follow "
                "the noise rather than the data, and the mask is close to a random "
                f"one. Look at data and loss, and try other learning rates ({rate}).",
                stacklevel=2,
            )


def share_that_stood_still(model: keras.Model, optimizer: BayesTuneSGLD) -> float:
    """Return the share of the weights under the prior that equal their anchors.

    0 without noise, where a weight without a gradient stands still with good reason,
    and 0 for weights narrower than float32, whose displacement lies beside them.
    """
    if optimizer.noise_scale == 0.0:
        return 0.0
    anchors = optimizer.anchors()
    still = total = 0
    for path, variable in variables_by_path(model.trainable_variables).items():
        anchor = anchors.get(path)
        if anchor is not None and anchor.dtype.itemsize >= 4:
            still += int(np.sum(ops.convert_to_numpy(variable) == anchor))
            total += anchor.size
    return still / total if total else 0.0
