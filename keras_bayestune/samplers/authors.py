"""The published code's stage 1, for reproduction."""

from typing import Any

import keras
from keras import ops

from keras_bayestune.arguments import check_number
from keras_bayestune.noise import Gaussian, Noise
from keras_bayestune.samplers.adam import adam_change
from keras_bayestune.samplers.sampler import Sampler, guarded_size

_SMALLEST_SCALE = 1e-8


@keras.saving.register_keras_serializable(package="keras_bayestune")
class Authors(Sampler):
    """Adam-fed noisy gradients on (weight, scale), as the authors coded it.

    github.com/minyoungkim21/BayesTune, commit 8eace13; for reproduction only, since
    noise inside Adam does not sample the posterior. From update t = `warmup_steps` on
    (before it: Adam on the weight alone), with scale read as max(scale, 1e-8):

        g_d     = g + sign(d) / (scale N) + gamma sqrt(2 / (N lr)) xi
        g_scale = (-((alpha - 1) / scale - beta) - (|d| / scale^2 - 1 / scale)) / N
                  + gamma sqrt(2 / (N lr_scale)) xi'
        d      <- Adam(g_d, lr, t),   scale <- Adam(g_scale, lr_scale, t - warmup + 1)

    Published settings: `effective_size=1e12` (what `"auto"` means here), learning
    rate 1e-4, warm-up 10,000, burn-in 12,000, thinning 100. Unlike the published
    code, weight decay spares frozen scalars and no sample is counted twice.

    Args:
        scale_learning_rate: lr_scale, > 0, in units of the weight.
        noise: Unit noise; `Gaussian()`, or `Rademacher()`.

    Raises:
        ValueError: if `scale_learning_rate` is not a finite number above 0.

    Examples:
        >>> sampler = Authors(scale_learning_rate=0.01)
        >>> optimizer = BayesTuneSGLD(learning_rate=1e-4, sampler=sampler)
    """

    num_noises = 2

    def __init__(self, scale_learning_rate: float = 0.01, noise: Noise | None = None):
        """Check the learning rate."""
        super().__init__(noise=Gaussian() if noise is None else noise)
        self.scale_learning_rate = check_number(
            "scale_learning_rate", scale_learning_rate, "(0, inf)", "Authors"
        )

    def first_active_step(self, warmup_steps):
        """Update `warmup_steps` itself is active, as published."""
        return max(warmup_steps, 1)

    def auto_effective_size(self, learning_rate, step_size, mean_square):
        """The published value."""
        return ops.convert_to_tensor(1e12, dtype="float32")

    def noise_per_step(self, step):
        """Adam moves a weight by about the learning rate, whatever the noise."""
        return step.learning_rate

    def initial_slots(self, prior):
        """Scale, and Adam's two moments of weight and scale."""
        return {
            "scale": prior.scale_init,
            "momentum": 0.0,
            "velocity": 0.0,
            "scale_momentum": 0.0,
            "scale_velocity": 0.0,
        }

    def update(self, displacement, gradient, slots, noises, step, step_size, prior):
        """Return the displacement and all slots after one update."""
        scale = ops.threshold(slots["scale"], _SMALLEST_SCALE, _SMALLEST_SCALE)
        size = guarded_size(step)
        active = ops.cast(step.active, "float32")
        lr, scale_lr = step.learning_rate, self.scale_learning_rate
        pull = ops.sign(displacement) / scale / size
        gradient = gradient + active * (
            pull + step.noise_scale * ops.sqrt(2.0 / (size * lr)) * noises[0]
        )
        scale_gradient = (
            prior.beta
            - (prior.alpha - 1.0) / scale
            - (ops.abs(displacement) / scale**2 - 1.0 / scale)
        ) / size + step.noise_scale * ops.sqrt(2.0 / (size * scale_lr)) * noises[1]

        new = {}
        change, new["momentum"], new["velocity"] = adam_change(
            gradient, slots["momentum"], slots["velocity"], lr, step.count
        )
        scale_change, momentum, velocity = adam_change(
            scale_gradient,
            slots["scale_momentum"],
            slots["scale_velocity"],
            scale_lr,
            step.active_count,
        )
        for name, value in (
            ("scale", slots["scale"] + scale_change),
            ("scale_momentum", momentum),
            ("scale_velocity", velocity),
        ):
            new[name] = ops.where(step.active, value, slots[name])
        return displacement + change, new

    def score(self, displacement, slots, prior):
        """The scale as read."""
        return ops.threshold(slots["scale"], _SMALLEST_SCALE, _SMALLEST_SCALE)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "noise": super().get_config()["noise"],
            "scale_learning_rate": self.scale_learning_rate,
        }
