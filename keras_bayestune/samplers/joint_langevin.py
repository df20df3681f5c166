"""The paper's joint Langevin dynamics on weights and scales."""

import math
from typing import Any

import keras
from keras import ops

from keras_bayestune.arguments import check_number
from keras_bayestune.noise import Noise
from keras_bayestune.samplers.metric import Metric
from keras_bayestune.samplers.sampler import Sampler, pull_and_spread

_LARGEST = 1e30  # of |d| / scale, so that the tamed drift stays a number
_SMALLEST_LOG_SCALE = -69.0  # log(1e-30)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class JointLangevin(Sampler):
    """Joint Langevin dynamics on (d, log scale): the paper's equation 5.

    Kim & Hospedales 2023, equation 5 with eta = 2 h / N. With u = log scale, D the
    drift of u, which holds the Jacobian of the logarithm, and two unit noises:

        d <- d - h (g + sign(d) / (scale N)) + gamma sqrt(2 h / N) xi
        D  = (alpha - 1) - beta scale + |d| / scale
        u <- u + k D / (1 + k |D|) + gamma sqrt(2 k) xi'

    The scale itself is not stepped: kept positive by clamping or reflection, its
    drift |d| / scale^2 diverges. The tamed drift on u converges as h and k shrink
    (Hutzenthaler, Jentzen & Kloeden, 2012). In warm-up d <- d - h g, u stays.

    Args:
        scale_step_size: k, > 0, no unit.
        metric: Turns the learning rate into h; `ScalarMetric()`.
        noise: Unit noise; `Rademacher()`, or `Gaussian()`.

    Raises:
        ValueError: if `scale_step_size` is not a finite number above 0.

    Examples:
        >>> sampler = JointLangevin(scale_step_size=0.02)
        >>> optimizer = BayesTuneSGLD(learning_rate=1e-4, sampler=sampler)
    """

    num_noises = 2

    def __init__(
        self,
        scale_step_size: float = 0.05,
        metric: Metric | None = None,
        noise: Noise | None = None,
    ):
        """Check the step size."""
        super().__init__(metric, noise)
        self.scale_step_size = check_number(
            "scale_step_size", scale_step_size, "(0, inf)", "JointLangevin"
        )

    def initial_slots(self, prior):
        """The logarithm of each scale."""
        return {"log_scale": math.log(prior.scale_init)}

    def update(self, displacement, gradient, slots, noises, step, step_size, prior):
        """Return the displacement and the log scale after one update."""
        log_scale = slots["log_scale"]
        scale = ops.exp(log_scale)
        ratio, spread = pull_and_spread(step, step_size)
        k = self.scale_step_size * ops.cast(step.active, "float32")
        pull = -ops.threshold(-ops.abs(displacement) / scale, -_LARGEST, -_LARGEST)
        drift = (prior.alpha - 1.0) - prior.beta * scale + pull
        new_log_scale = (
            log_scale
            + k * drift / (1.0 + k * ops.abs(drift))
            + step.noise_scale * ops.sqrt(2.0 * k) * noises[1]
        )
        new_displacement = (
            displacement
            - step_size * gradient
            - ratio * ops.sign(displacement) / scale
            + spread * noises[0]
        )
        return new_displacement, {
            "log_scale": ops.threshold(
                new_log_scale, _SMALLEST_LOG_SCALE, _SMALLEST_LOG_SCALE
            )
        }

    def score(self, displacement, slots, prior):
        """The sampled scale."""
        return ops.exp(slots["log_scale"])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "scale_step_size": self.scale_step_size}
