"""A step size between that of one normaliser for all and that of one per scalar."""

import math
from typing import Any

import keras
from keras import ops

from keras_bayestune.arguments import check_number
from keras_bayestune.samplers.metric import SMALLEST_SQUARE, ScalarMetric

Tensor = Any  # a backend tensor

# A weight of fewer scalars keeps the mean square of each of them.
SMALLEST_FACTORED = 1 << 14


@keras.saving.register_keras_serializable(package="keras_bayestune")
class PartiallyAdaptiveMetric(ScalarMetric):
    """One step size per scalar, adapted to how large its gradient is, but not fully.

    With v the running mean square of a scalar's gradient, s the mean of it over all
    scalars, q = `exponent` and f = `floor`:

        h = lr / (sqrt(s) + 1e-5) (v / s + f)^(-q)

    q = 0 is `ScalarMetric`, which on a transformer selects the scalars with the
    largest gradients, and those have the largest curvature as well. q = 1/2 is the
    step size of RMSprop and Adam, under which each scalar moves alike and little is
    left to select by. q = 1/4, half way, orders scalars by `|mean g| / v^(1/4)`, the
    square root of what one step of Adam on that scalar takes off the loss, to first
    order. The default, 3/8, did slightly better than 1/4 on validation data of STS-B.
    `f` keeps scalars without a gradient from drawing noise without bound.

    A weight of several rows and columns and of 16,384 scalars or more keeps the mean
    squares of its rows r and columns c (the last axis) in place of v (Adafactor,
    Shazeer & Stern 2018), so that the state of large weights does not grow:

        v / s + f  becomes  (r / s + f) (c / mean(r) + f)

    Means of rows, columns and scalars are kept up to the end of burn-in and stay from
    then on. A step size that went on following the chain would need the correction
    term of Riemannian Langevin dynamics; without it the draws are biased (by 8 % in
    a test of ours). With constant ones the posterior is the same as with any other.

    Sources: partially adaptive momentum (Padam), Chen et al. 2020; preconditioned
    Langevin dynamics, Li et al. 2016.

    Args:
        exponent: q, in [0, 0.5].
        floor: f, > 0, no unit.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> from keras_bayestune.samplers import PartiallyAdaptiveMetric
        >>> sampler = Collapsed(metric=PartiallyAdaptiveMetric(exponent=0.4))
    """

    def __init__(self, exponent: float = 0.375, floor: float = 0.01):
        """Check the arguments."""
        owner = "PartiallyAdaptiveMetric"
        hint = "0 is one step size for all, 0.5 is that of RMSprop."
        self.exponent = check_number("exponent", exponent, "[0, 0.5]", owner, hint)
        self.floor = check_number("floor", floor, "(0, inf)", owner)

    def initial_state(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Mean squares of rows and columns of a large weight, else of each scalar."""
        size = math.prod(shape)
        if size < SMALLEST_FACTORED or shape[-1] in (1, size):
            return {"square": shape}
        return {
            "row_square": (*shape[:-1], 1),
            "column_square": (1,) * (len(shape) - 1) + shape[-1:],
        }

    def factors(self, state, mean_square):
        """`(x + f)^(-q)` of each scalar, or of each row and of each column."""
        if "square" in state:
            return (self._factor(state["square"] / mean_square),)
        rows, columns = state["row_square"], state["column_square"]
        mean_row = ops.threshold(ops.mean(rows), SMALLEST_SQUARE, SMALLEST_SQUARE)
        return self._factor(rows / mean_square), self._factor(columns / mean_row)

    def _factor(self, relative_square: Tensor) -> Tensor:
        return (relative_square + self.floor) ** -self.exponent

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"exponent": self.exponent, "floor": self.floor}
