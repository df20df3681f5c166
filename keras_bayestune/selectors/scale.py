"""BayesTune: the posterior mean of every scalar's scale."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import check_integer
from keras_bayestune.paths import variables_by_path
from keras_bayestune.selectors.selector import Selector, weights_restored
from keras_bayestune.selectors.steps import check_duration
from keras_bayestune.selectors.training import Training, fresh_copy


@runtime_checkable
class ScaleOptimizer(Protocol):
    """What `ScaleSelector` needs of `BayesTuneSGLD`, besides Keras's interface."""

    exclude: tuple[str, ...]
    burn_in_steps: int
    thinning: int
    seed: int | None
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

    Cost: a fine-tuning run for each chain; on the device the anchor, the running mean
    and the sampler's state, 8 bytes per scalar for the default sampler.

    Args:
        optimizer: A `BayesTuneSGLD`; every call samples with a copy of it. What its
            `exclude` matches gets no score either.
        epochs: Passes over the data.
        steps: Instead of `epochs`: batches. At least 400 updates are advisable.
        chains: K runs, one after the other, each from the weights that the model has
            now and with noise of its own; the scores are the mean over them.
            `run_chains` keeps the runs apart and says whether they agree.

    Raises:
        TypeError: if `optimizer` is not a `BayesTuneSGLD`.
        ValueError: if not exactly one of `epochs` and `steps` is given, >= 1, or
            `chains` is below 1; when scoring, if the planned updates end before the
            first posterior sample.

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
        chains: int = 1,
    ):
        if not isinstance(optimizer, ScaleOptimizer):
            raise TypeError(
                "`optimizer` of ScaleSelector must be a BayesTuneSGLD. Received: "
                f"{optimizer!r}. For the movement under another optimizer, take the "
                "Movement selector."
            )
        self.epochs, self.steps = check_duration(epochs, steps)
        self.optimizer = optimizer
        self.chains = check_integer("chains", chains, 1)

    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> list[Any]:
        """Run stage 1 and return the posterior scales."""
        self._check_plan(training)
        if self.chains == 1:
            return self._scales(self.optimizer, variables, training)
        means: list[Any] = []
        for number in range(self.chains):
            with other_noise(training.model, number):
                optimizer = chain_optimizer(self.optimizer, number)
                scales = self._scales(optimizer, variables, training)
            if not means:
                means = scales
            means = [
                None if mean is None else mean + (scale - mean) / (number + 1)
                for mean, scale in zip(means, scales, strict=True)
            ]
        return means

    def _scales(
        self,
        optimizer: ScaleOptimizer,
        variables: Sequence[keras.Variable],
        training: Training,
    ) -> list[Any]:
        """Run one chain."""
        competing = {id(v) for v in variables}
        paths = variables_by_path(training.model.trainable_variables)
        others = [
            f"^{re.escape(path)}$"
            for path, v in paths.items()
            if id(v) not in competing
        ]
        sampling: Any = fresh_copy(optimizer, exclude=[*optimizer.exclude, *others])
        training.train(sampling, self.epochs, self.steps)
        if sampling.skipped_steps:
            warnings.warn(
                f"{sampling.skipped_steps} updates of stage 1 were skipped because a "
                "gradient was not finite. Look at the data and the loss; a lower "
                "learning rate or `global_clipnorm` may help.",
                stacklevel=2,
            )
        scales = sampling.posterior_scales()
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


def chain_optimizer(optimizer: Any, number: int) -> Any:
    """Return an unbuilt copy with the seed of one of several chains, from 0.

    Without a seed each copy draws its own from Keras's global generator.
    """
    seed = optimizer.seed
    return fresh_copy(optimizer, seed=None if seed is None else seed + number)


@contextmanager
def other_noise(model: keras.Model, number: int) -> Iterator[None]:
    """Within the block dropout draws as no other `number` does; at the end all is back.

    The weights as well, as `weights_restored` has it.
    """
    with weights_restored(model):
        weights = {id(weight) for weight in model.weights}
        for variable in model.variables:
            if id(variable) not in weights:  # the state of a random generator
                state = ops.convert_to_numpy(variable.value)
                variable.assign(state + np.asarray(number, state.dtype))
        yield
