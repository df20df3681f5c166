"""Collapsed Langevin dynamics: the scale is integrated out. The default."""

import keras
from keras import ops

from keras_bayestune.noise import Noise
from keras_bayestune.samplers.metric import Metric
from keras_bayestune.samplers.partially_adaptive_metric import PartiallyAdaptiveMetric
from keras_bayestune.samplers.sampler import Sampler, pull_and_spread


def shrink_factor(displacement, ratio, prior):
    """Safe form of the prior drift: `max(0, 1 - (h/N) kappa(|d|) / d^2)`.

    One factor in [0, 1] per scalar. It never overshoots 0 and converges to the
    drift `-(h/N) kappa(|d|) / d` as `ratio = h/N -> 0`.
    """
    square = displacement * displacement + 1e-30
    return ops.relu(1.0 - ratio * prior.shrinkage(displacement) / square)


@keras.saving.register_keras_serializable(package="keras_bayestune")
class Collapsed(Sampler):
    """Langevin dynamics on the displacement, scale integrated out (the default).

    Targets p(d | data) proportional to exp(-N L(d)) p(d), with p(d) the Laplace prior
    averaged over its Gamma hyper-prior (Kim & Hospedales 2023, equations 1 to 3). One
    update, with g the gradient of the mean minibatch loss and xi unit noise:

        warm-up:  d <- d - h g
        after it: d <- d max(0, 1 - (h/N) kappa(|d|) / d^2) - h g
                       + gamma sqrt(2 h / N) xi

    h is `metric`'s step size, N the effective size, gamma the noise scale, kappa =
    `LaplacePrior.shrinkage`. The posterior mean of a scale averages
    m(|d|) = E[scale | d] = `LaplacePrior.scale_mean` over the samples, which has
    a smaller variance than averaging sampled scales (Rao-Blackwell).

    Args:
        metric: Turns the learning rate into h; `PartiallyAdaptiveMetric()`.
        noise: Unit noise; `Rademacher()`, or `Gaussian()`.

    Examples:
        >>> optimizer = BayesTuneSGLD(learning_rate=1e-4, sampler=Collapsed())
    """

    auto_noise_scale = 0.1

    def __init__(self, metric: Metric | None = None, noise: Noise | None = None):
        """Store the metric and the noise."""
        super().__init__(PartiallyAdaptiveMetric() if metric is None else metric, noise)

    def initial_slots(self, prior):
        """No state beside the optimizer's."""
        return {}

    def update(self, displacement, gradient, slots, noises, step, step_size, prior):
        """Return the displacement after one update."""
        ratio, spread = pull_and_spread(step, step_size)
        displacement = (
            displacement * shrink_factor(displacement, ratio, prior)
            - step_size * gradient
            + spread * noises[0]
        )
        return displacement, {}

    def score(self, displacement, slots, prior):
        """E[scale | d]."""
        return prior.scale_mean(displacement)
