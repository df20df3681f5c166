"""The numbers of stage 1 that an epoch logs."""

import numpy as np

from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.diagnostics import MINIMUM_DRAWS, effective_sample_size
from keras_bayestune.optimizers import BayesTuneSGLD


def stage_one_numbers(
    optimizer: BayesTuneSGLD, threshold: float | None, trace: ScaleTrace | None
) -> dict[str, float]:
    """Return what is known by now; 0 where no sample says anything yet.

    Always the same keys for the same arguments, so that `History` stays aligned and
    `CSVLogger`, which takes its columns from the first epoch, has them all.
    """
    samples = optimizer.num_samples
    numbers: dict[str, float] = {"samples": samples}
    if threshold is not None:
        fraction = 0.0
        if samples:
            scores = optimizer.posterior_scales().values()
            above = sum(int((score > threshold).sum()) for score in scores)
            fraction = above / sum(score.size for score in scores)
        numbers["fraction_above_threshold"] = fraction
    if trace is not None:
        draws = trace.samples()
        size = 0.0
        if len(draws) >= MINIMUM_DRAWS:
            size = float(np.median(effective_sample_size(draws)))
        numbers["effective_sample_size"] = size
    return numbers
