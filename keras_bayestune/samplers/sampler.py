"""What every sampler of stage 1 offers, and what a step tells it."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bayestune.arguments import show_arguments
from keras_bayestune.noise import Noise, Rademacher
from keras_bayestune.priors import LaplacePrior
from keras_bayestune.samplers.metric import SMALLEST_SQUARE, Metric, ScalarMetric

Tensor = Any  # a backend tensor
Slots = dict[str, Tensor]


class Step(NamedTuple):
    """The scalars of one update, shared by all weights.

    V weight tensors are under a prior.
    """

    count: Tensor  # int32 (), updates that were not skipped, with this one
    counted: Tensor  # int32 (), at least 1: where the first one is skipped
    learning_rate: Tensor  # float32 ()
    gradient_scale: Tensor  # float32 (), what clipping leaves of every gradient
    step_size: Tensor  # float32 () or, if the metric is per tensor, (V,), h
    state_square: Tensor  # as h, s in the units of the metric's state
    adapting: Tensor  # bool (), False if skipped or after burn-in: that state stays
    effective_size: Tensor  # float32 (), N; 0 while it is not known
    noise_scale: float  # gamma
    active: Tensor  # bool (), False in warm-up: no prior, no noise
    active_count: Tensor  # float32 (), updates since warm-up, from 1
    finite: Tensor  # bool (), False: skip this update
    sample: Tensor  # bool (), take a posterior sample after this update
    num_samples: Tensor  # float32 (), samples including this update's
    keys: Tensor  # int32 (streams, 2) of noise; of a block its `num_noises` streams

    def of_row(self, row: int, sampler: "Sampler") -> "Step":
        """Return what the weights of a row read; with a metric per tensor it is one."""
        first = sampler.num_noises * row
        # Not a view: PyTorch would compile one that begins at 0 apart from the others.
        keys = self.keys[first : first + sampler.num_noises] + 0
        own = self._replace(keys=keys)
        if not sampler.metric.per_tensor:
            return own
        return own._replace(
            step_size=self.step_size[row], state_square=self.state_square[row]
        )


class Sampler:
    """Abstract rule of one stage-1 update of one weight tensor.

    A sampler is a value: pure functions of arrays, noise passed in. The optimizer
    stores the arrays. All arrays are float32 and have the weight's shape.

    Args:
        metric: Turns the learning rate into step sizes.
        noise: Source of unit noise.
    """

    num_noises = 1  # unit noise arrays per update
    auto_noise_scale = 1.0  # gamma, unless given, with `effective_size="auto"`

    def __init__(self, metric: Metric | None = None, noise: Noise | None = None):
        """Store the metric (`ScalarMetric()`) and the noise (`Rademacher()`)."""
        self.metric = ScalarMetric() if metric is None else metric
        self.noise = Rademacher() if noise is None else noise
        if not isinstance(self.metric, Metric):
            raise TypeError(
                f"`metric` of {type(self).__name__} must be a Metric such as "
                f"ScalarMetric(). Received: {metric!r}."
            )
        if not isinstance(self.noise, Noise):
            raise TypeError(
                f"`noise` of {type(self).__name__} must be a Noise such as "
                f"Rademacher() or Gaussian(). Received: {noise!r}."
            )

    def first_active_step(self, warmup_steps: int) -> int:
        """First update, counted from 1, at which prior and noise act."""
        return warmup_steps + 1

    def auto_effective_size(
        self, learning_rate: Tensor, step_size: Tensor, mean_square: Tensor
    ) -> Tensor:
        """N for `effective_size="auto"`: noise as large as the gradient step.

        sqrt(2 h / N) = h rms(g) gives N = 2 / (h rms(g)^2); with one normaliser for
        all weights that is 2 / (lr rms(g)). `noise_scale` then multiplies the noise.
        """
        rate = ops.mean(step_size * mean_square)
        return 2.0 / ops.threshold(rate, SMALLEST_SQUARE, SMALLEST_SQUARE)

    def noise_per_step(self, step: Step) -> Tensor:
        """Standard deviation of the noise that one update adds to a weight."""
        ratio = ops.max(step.step_size) / guarded_size(step)
        return step.noise_scale * ops.sqrt(2.0 * ratio)

    def initial_slots(self, prior: LaplacePrior) -> dict[str, float]:
        """Names of the extra arrays per weight tensor and their initial values."""
        raise NotImplementedError

    def update(
        self,
        displacement: Tensor,
        gradient: Tensor,
        slots: Slots,
        noises: tuple[Tensor, ...],
        step: Step,
        step_size: Tensor,
        prior: LaplacePrior,
    ) -> tuple[Tensor, Slots]:
        """Return the displacement and the slots after one update."""
        raise NotImplementedError

    def score(self, displacement: Tensor, slots: Slots, prior: LaplacePrior) -> Tensor:
        """Return the scale of each scalar that the posterior mean averages."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the class with those of its arguments that are not the defaults."""
        return show_arguments(self)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {"metric": serialize(self.metric), "noise": serialize(self.noise)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sampler":
        """Rebuild from `get_config()`."""
        config = dict(config)
        for name in {"metric", "noise"} & set(config):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def guarded_size(step: Step) -> Tensor:
    """N, kept away from 0 where it is not known yet and nothing uses it."""
    return ops.threshold(step.effective_size, 1e-30, 1e-30)


def pull_and_spread(step: Step, step_size: Tensor) -> tuple[Tensor, Tensor]:
    """Return `h/N` and `gamma sqrt(2 h/N)`; 0 in warm-up: neither prior nor noise."""
    # Numbers go together first: step_size may be an array, each product a pass.
    inverse_size = ops.cast(step.active, "float32") / guarded_size(step)
    spread = ops.sqrt(step_size * (2.0 * inverse_size * step.noise_scale**2))
    return step_size * inverse_size, spread
