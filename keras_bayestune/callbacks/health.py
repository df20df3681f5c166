"""Whether stage 1 has found out anything: its numbers, and what to do about them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_bayestune.knee import find_knees
from keras_bayestune.optimizers import BayesTuneSGLD
from keras_bayestune.optimizers.bayestune_sgld import LARGEST_NOISE
from keras_bayestune.selection import Ranking

FEW_SAMPLES = 20
# What noise alone gives at most: the 99.5th percentile of |z| over the median of |z|,
# z standard normal. Means of several samples differ less.
CONTRAST_OF_NOISE = 4.2
_TOP = 0.005  # of the scalars


@dataclass(frozen=True)
class Health:
    """What stage 1 has left, in numbers; `print` shows them with the cures.

    Attributes:
        samples: Posterior samples that the scales are means of.
        first_loss: Mean loss of the first epoch of stage 1, `None` if not known.
        last_loss: Of the last one.
        contrast: The scale that 0.5 % of the scalars exceed over the median scale.
            Noise alone gives 4.2 at most.
        noise_per_step: Standard deviation of the noise of an update over the spread of
            the pre-trained weights.
        effective_sample_size: Median over the scalars that are followed
            (`trace_scalars`), `None` without them or with too few samples.
        suggested_fraction: The knee of the sorted scales, `None` if there is none.
        without_gradient: Fraction of the scalars that no gradient came to, such as the
            rows of unused tokens; `None` if the sampler's metric does not know.
    """

    samples: int
    first_loss: float | None
    last_loss: float | None
    contrast: float | None
    noise_per_step: float
    effective_sample_size: float | None
    suggested_fraction: float | None
    without_gradient: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, each with its cure; empty if all is well."""
        found = []
        if self.samples < FEW_SAMPLES:
            found.append(
                f"{self.samples} samples are few: the order of the scales is not "
                f"settled below about {FEW_SAMPLES}. Plan more updates of stage 1, or "
                "lower burn_in_steps or thinning."
            )
        if None not in (self.first_loss, self.last_loss) and not (
            self.last_loss < self.first_loss  # type: ignore[operator]
        ):
            found.append(
                "The loss did not fall: the scales follow the noise. Look at data and "
                "loss, and try other learning rates."
            )
        if self.contrast is not None and self.contrast < CONTRAST_OF_NOISE:
            found.append(
                "The scales are as flat as those of noise, and the mask is close to a "
                "random one. Run stage 1 for longer, or lower noise_scale; if the loss "
                "hardly falls, raise learning_rate."
            )
        if self.noise_per_step > LARGEST_NOISE:
            found.append(
                "The noise of an update is large beside the weights: the model is "
                "being destroyed. Lower learning_rate."
            )
        return tuple(found)

    def __str__(self) -> str:
        """Return the report as lines of text."""
        rows = [("samples", f"{self.samples:,}")]
        if self.first_loss is not None and self.last_loss is not None:
            rows.append(("loss", f"{self.first_loss:.4g} to {self.last_loss:.4g}"))
        if self.contrast is not None:
            text = f"the top {100 * _TOP:g} % exceed {self.contrast:.3g} times the "
            text += f"median; of noise alone {CONTRAST_OF_NOISE} times"
            rows.append(("scales", text))
        noise = f"{100 * self.noise_per_step:.2g} % of the weights' spread"
        rows.append(("noise per step", noise))
        if self.effective_sample_size is not None:
            rows.append(("effective samples", f"{self.effective_sample_size:.0f}"))
        if self.without_gradient:
            rows.append(("without gradient", f"{100 * self.without_gradient:.3g} %"))
        if self.suggested_fraction is not None:
            text = f"{100 * self.suggested_fraction:.3g} % (knee of the sorted scales)"
            rows.append(("suggested p", text))
        lines = [f"  {name:18}{text}" for name, text in rows]
        lines += [f"  Warning: {text}" for text in self.warnings]
        return "\n".join(["Health of stage 1:", *lines])


def health_of(
    optimizer: BayesTuneSGLD,
    scores: Mapping[str, np.ndarray],
    losses: Sequence[float],
    numbers: Mapping[str, float],
) -> Health:
    """Return the report of a stage 1 that has ended.

    Args:
        optimizer: That of stage 1, before the weights are restored.
        scores: Its posterior scales.
        losses: Of the epochs of stage 1, as far as they are known.
        numbers: What the epoch logs.
    """
    ranking = Ranking(scores)
    ranks = np.array([max(1, round(_TOP * ranking.size)), -(-ranking.size // 2)])
    top, median = map(float, ranking.values_at(ranks))
    try:
        knee = find_knees(ranking)[0]
    except ValueError:  # all scales are equal, or nearly all are 0
        knee = None
    return Health(
        samples=optimizer.num_samples,
        first_loss=losses[0] if len(losses) > 1 else None,
        last_loss=losses[-1] if len(losses) > 1 else None,
        contrast=top / median if median > 0 and math.isfinite(top / median) else None,
        noise_per_step=optimizer.relative_noise(),
        effective_sample_size=numbers.get("effective_sample_size") or None,
        suggested_fraction=knee,
        without_gradient=optimizer.fraction_without_gradient(),
    )
