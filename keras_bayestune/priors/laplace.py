"""The Laplace prior with a Gamma hyper-prior on its scale."""

import math
from typing import Any

import keras
from keras import ops

from keras_bayestune.arguments import check_number
from keras_bayestune.priors.bessel import (
    SMALLEST_ARGUMENT,
    log_bessel_k,
    log_bessel_ratio,
    shrinkage,
)

Tensor = Any  # a backend tensor


@keras.saving.register_keras_serializable(package="keras_bayestune")
class LaplacePrior(keras.Regularizer):
    r"""Laplace prior on a displacement, with a Gamma hyper-prior on its scale.

    Kim & Hospedales, "BayesTune", NeurIPS 2023, equations 1 and 2. For each scalar,
    with `d` its displacement from the pre-trained value:

        d | scale ~ Laplace(0, scale):   log p = -log(2 scale) - |d| / scale
        scale ~ Gamma(shape alpha, rate beta)

    The scale given the displacement is generalised inverse Gaussian of order
    `alpha - 1`, so with `w = 2 sqrt(beta |d|)` everything is closed:

        log p(d)        = alpha log beta - log Gamma(alpha)
                          + (alpha - 1) (log(w / 2) - log beta) + log K_(alpha-1)(w)
        E[scale | d]    = w / (2 beta) K_alpha(w) / K_|1-alpha|(w)
        |d| E[1/scale | d] = (w / 2) K_|2-alpha|(w) / K_|1-alpha|(w)

    Calling the prior returns `-sum(log p(x))`, so it also serves as a plain
    `kernel_regularizer` with mean 0. For `alpha <= 1` the density is unbounded at
    `d = 0`; no practical step size samples that spike faithfully, there the prior
    acts as a regulariser. Displacements with `w < 1e-8` are read as `w = 1e-8`.

    Args:
        alpha: Shape of the Gamma hyper-prior, > 0. Small values favour few large
            scales.
        beta: Rate of the Gamma hyper-prior, > 0, in 1 / (units of the weight).
        scale_init: Scale at which the samplers that carry a scale per scalar start,
            > 0, in units of the weight.

    Raises:
        ValueError: if an argument is not a finite number above 0.

    Examples:
        >>> prior = LaplacePrior(alpha=0.5, beta=100.0)
        >>> float(prior.scale_mean(0.04))  # sqrt(0.04 / 100)
        0.019999...
        >>> dense = keras.layers.Dense(4, kernel_regularizer=LaplacePrior())
    """

    def __init__(
        self, alpha: float = 0.01, beta: float = 100.0, scale_init: float = 1e-4
    ):
        """Check the arguments and fit the two Bessel ratios for `alpha`."""
        rest = (
            "(0, inf)",
            "LaplacePrior",
            "The paper uses alpha=0.01, beta=100.0, scale_init=1e-4.",
        )
        self.alpha = check_number("alpha", alpha, *rest)
        self.beta = check_number("beta", beta, *rest)
        self.scale_init = check_number("scale_init", scale_init, *rest)
        self._log_bessel_k = log_bessel_k(self.alpha - 1.0)
        self._log_mean_ratio = log_bessel_ratio(self.alpha, abs(1.0 - self.alpha))
        self._shrinkage = shrinkage(self.alpha)

    def _argument(self, displacement: Tensor) -> Tensor:
        magnitude = ops.abs(ops.convert_to_tensor(displacement))
        dtype = keras.backend.result_type(magnitude.dtype, "float32")
        magnitude = ops.cast(magnitude, dtype)  # float16 would underflow
        smallest = SMALLEST_ARGUMENT**2 / (4.0 * self.beta)
        # The larger of both. PyTorch's `threshold` is slow, and its `maximum` would
        # send the number to the device.
        magnitude = ops.relu(magnitude - smallest) + smallest
        return ops.sqrt(4.0 * self.beta * magnitude)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the negative log prior density of `x`, summed: a scalar."""
        return -ops.sum(self.log_prob(x))

    def log_prob(self, displacement: Tensor) -> Tensor:
        """Log density of each displacement with its scale integrated out."""
        w = self._argument(displacement)
        return (
            self.alpha * math.log(self.beta)
            - math.lgamma(self.alpha)
            + (self.alpha - 1.0) * (ops.log(0.5 * w) - math.log(self.beta))
            + self._log_bessel_k(w)
        )

    def conditional_log_prob(self, displacement: Tensor, scale: Tensor) -> Tensor:
        """Log density of each displacement given its scale: `Laplace(0, scale)`."""
        displacement, scale = map(ops.convert_to_tensor, (displacement, scale))
        return -ops.log(2.0 * scale) - ops.abs(displacement) / scale

    def scale_log_prob(self, scale: Tensor) -> Tensor:
        """Log density of each scale under the hyper-prior `Gamma(alpha, beta)`."""
        scale = ops.convert_to_tensor(scale)
        constant = self.alpha * math.log(self.beta) - math.lgamma(self.alpha)
        return constant + (self.alpha - 1.0) * ops.log(scale) - self.beta * scale

    def scale_mean(self, displacement: Tensor) -> Tensor:
        """Posterior mean of each scale given its displacement, `E[scale | d]`."""
        w = self._argument(displacement)
        return w * ops.exp(self._log_mean_ratio(w)) / (2.0 * self.beta)

    def shrinkage(self, displacement: Tensor) -> Tensor:
        """`|d| E[1/scale | d]`, the slope of `-log p(d)` in `log |d|`.

        The gradient of `-log p(d)` is `sign(d) shrinkage(d) / |d|`.
        """
        return self._shrinkage(self._argument(displacement))

    def wrap(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Return `WithPrior(layer, self)`: the weights of `layer` carry this prior."""
        from keras_bayestune.priors.with_prior import WithPrior

        return WithPrior(layer, self)

    def get_config(self) -> dict[str, float]:
        """Return the constructor's arguments."""
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "scale_init": self.scale_init,
        }

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        if not isinstance(other, LaplacePrior):
            return NotImplemented
        return self.get_config() == other.get_config()

    def __hash__(self) -> int:
        """Hash by value."""
        return hash((self.alpha, self.beta, self.scale_init))

    def __repr__(self) -> str:
        """Show the constructor's arguments."""
        return (
            f"LaplacePrior(alpha={self.alpha}, beta={self.beta}, "
            f"scale_init={self.scale_init})"
        )
