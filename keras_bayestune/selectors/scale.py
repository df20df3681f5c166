"""BayesTune: the posterior mean of every scalar's scale."""

import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np

from keras_bayestune.paths import variables_by_path
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.steps import check_duration
from keras_bayestune.selectors.training import Training, fresh_copy


@runtime_checkable
class ScaleOptimizer(Protocol):
    """What `ScaleSelector` needs of `BayesTuneSGLD`, besides Keras's interface."""

    exclude: tuple[str, ...]
    burn_in_steps: int
    thinning: int
    skipped_steps: int
    gradient_accumulation_steps: int | None

    def posterior_scales(self) -> dict[str, np.ndarray]:
        """Return `{variable path: posterior mean of each scale}`."""


class ScaleSelector(Selector):
    """Posterior mean of the scale of every scalar's Laplace prior: stage 1.

    BayesTune: Kim & Hospedales, "BayesTune: Bayesian Sparse Deep Model Fine-tuning",
    NeurIPS 2023, algorithm 1. What is sampled and averaged say the optimizer's
    `sampler` and `prior`; see `BayesTuneSGLD`. Weights without a prior train along,
    and get their values back as all others.

    Cost: a fine-tuning run; on the device the anchor, the running mean and the
    sampler's state, 8 bytes per scalar for the default sampler.

    Args:
        optimizer: A `BayesTuneSGLD`; every call samples with a copy of it. What its
            `exclude` matches gets no score either.
        epochs: Passes over the data.
        steps: Instead of `epochs`: batches. At least 400 updates are advisable.

    Raises:
        TypeError: if `optimizer` is not a `BayesTuneSGLD`.
        ValueError: if not exactly one of `epochs` and `steps` is given, >= 1; when
            scoring, if the planned updates end before the first posterior sample.

    Examples:
        >>> from keras_bayestune import BayesTuneSGLD
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = np.random.rand(8, 4), np.random.rand(8, 3)
        >>> selector = ScaleSelector(
        ...     BayesTuneSGLD(1e-3, warmup_steps=4, burn_in_steps=8, thinning=2),
        ...     steps=16,
        ... )
        >>> scores = selector.scores(model, data, loss="mse", batch_size=4)
        >>> all(np.all(score > 0) for score in scores.values())
        True
    """

    def __init__(
        self,
        optimizer: ScaleOptimizer,
        epochs: int | None = None,
        steps: int | None = None,
    ):
        if not isinstance(optimizer, ScaleOptimizer):
            raise TypeError(
                "`optimizer` of ScaleSelector must be a BayesTuneSGLD. Received: "
                f"{optimizer!r}. For the movement under another optimizer, take the "
                "Movement selector."
            )
        self.epochs, self.steps = check_duration(epochs, steps)
        self.optimizer = optimizer

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Run stage 1 and return the posterior scales."""
        self._check_plan(training)
        competing = {id(v) for v in variables}
        paths = variables_by_path(training.model.trainable_variables)
        others = [
            f"^{re.escape(path)}$"
            for path, v in paths.items()
            if id(v) not in competing
        ]
        optimizer: Any = fresh_copy(
            self.optimizer, exclude=[*self.optimizer.exclude, *others]
        )
        training.train(optimizer, self.epochs, self.steps)
        if optimizer.skipped_steps:
            warnings.warn(
                f"{optimizer.skipped_steps} updates of stage 1 were skipped because a "
                "gradient was not finite. Look at the data and the loss; a lower "
                "learning rate or `global_clipnorm` may help.",
                stacklevel=2,
            )
        scales = optimizer.posterior_scales()
        return [scales.get(p) for p, v in paths.items() if id(v) in competing]

    def _check_plan(self, training: Training) -> None:
        steps = self.steps
        if self.epochs is not None:
            steps = self.epochs * (training.batches_per_epoch or 0)
        if not steps:
            return  # data of unknown length: the optimizer reports it, afterwards
        updates = steps // (self.optimizer.gradient_accumulation_steps or 1)
        needed = self.optimizer.burn_in_steps + self.optimizer.thinning
        if updates < needed:
            raise ValueError(
                f"Stage 1 is planned for {updates} updates, but the first posterior "
                f"sample comes after {needed}: burn_in_steps="
                f"{self.optimizer.burn_in_steps} plus thinning="
                f"{self.optimizer.thinning}. Plan more, or lower warmup_steps and "
                "burn_in_steps (about a quarter and a half of the planned updates)."
            )
