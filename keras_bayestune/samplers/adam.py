"""Adam's change of a weight, in the bias-corrected form with epsilon outside."""

import math
from typing import Any

from keras import ops

Tensor = Any  # a backend tensor

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


def bias_correction(decay: float, count: Tensor) -> Tensor:
    """Return `1 - decay^t`, by which a running mean that began at 0 is too small.

    Args:
        decay: What the mean keeps of itself at each update, in (0, 1).
        count: t >= 1, scalar: updates of the mean so far.
    """
    # 1 - power(0.999, 1) has lost five of float32's seven digits.
    return -ops.expm1(math.log(decay) * ops.cast(count, "float32"))


def adam_change(
    gradient: Tensor,
    momentum: Tensor,
    velocity: Tensor,
    learning_rate: Tensor,
    count: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what Adam adds to a weight, and its new moments.

    Kingma & Ba, ICLR 2015, algorithm 1, with t = `count`, counted from 1:

        m <- 0.9 m + 0.1 g;   v <- 0.999 v + 0.001 g^2
        change = -lr (m / (1 - 0.9^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-8)

    Keras folds the bias corrections into the step size, which multiplies epsilon by
    sqrt(1 - 0.999^t); gradients of a prior over N can be as small as that epsilon.
    All arrays are float32 of one shape.
    """
    momentum = _BETA_1 * momentum + (1.0 - _BETA_1) * gradient
    velocity = _BETA_2 * velocity + (1.0 - _BETA_2) * gradient * gradient
    mean = momentum / bias_correction(_BETA_1, count)
    root = ops.sqrt(velocity / bias_correction(_BETA_2, count))
    return -learning_rate * mean / (root + _EPSILON), momentum, velocity
