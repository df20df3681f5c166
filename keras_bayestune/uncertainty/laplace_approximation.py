"""A Gaussian about a delta, as wide as data and learned scales say."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.deltas import SparseDelta
from keras_bayestune.deltas.model_variables import Target, pair_with_model
from keras_bayestune.paths import variables_by_path
from keras_bayestune.selectors.gradients import GradientAccumulator
from keras_bayestune.selectors.training import Training
from keras_bayestune.uncertainty.calibration import checked_validation, validation_loss
from keras_bayestune.uncertainty.posterior import DeltaPosterior
from keras_bayestune.uncertainty.predicting import base_lent

EFFECTIVE_SIZES = tuple(10.0**k for k in range(9))


def laplace(
    model: keras.Model,
    delta: SparseDelta,
    train: Any,
    validation: Any,
    *,
    scales: Mapping[str, np.ndarray],
    effective_sizes: Sequence[float] = EFFECTIVE_SIZES,
    loss: Any = None,
    outputs: str = "logits",
    examples: int | None = None,
    draws: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    verbose: str | int = 0,
) -> DeltaPosterior:
    """Return the Laplace approximation about a delta, diagonal, over what it stores.

    MacKay, "A Practical Bayesian Framework for Backpropagation Networks", Neural
    Computation 1992; diagonal with the empirical Fisher information: Ritter, Botev &
    Barber, "A Scalable Laplace Approximation for Neural Networks", ICLR 2018. The prior
    is the Gaussian of the learned Laplace prior's variance, 2 scale^2:

    ```
    variance_i = 1 / (N F_i + 1 / (2 scale_i^2)),      F_i = mean_n (dL_n / dtheta_i)^2
    ```

    N, the effective number of examples, is the one of `effective_sizes` with the least
    negative log-likelihood of the validation data. A variable that is stored whole (a
    head) has no learned scale: 2 scale^2 is then its mean square.

    Cost: one pass over `train`, one example at a time, 4 bytes per trainable scalar;
    `draws` passes over the validation data for each N.

    Args:
        model: The base model, or tuned to `delta`.
        delta: The point estimate.
        train: As in `Selector.scores`: `(x, y)`, or a data set of batches.
        validation: `(x, y)`.
        scales: `{variable path: posterior mean scales}`, of the whole variables:
            `FineTuneResult.scores` of a `ScaleSelector`, `SparseMaskCallback.scores`.
        effective_sizes: Candidates for N, > 0.
        loss: A Keras loss; `None` for what the model is compiled with. N counts
            examples if it is a negative log-likelihood.
        outputs: As in `DeltaPosterior`.
        examples: At most so many of `train`, the first ones; `None` for all.
        draws: For each N.
        batch_size: Rows of a batch, of the validation data.
        seed: Of the draws.
        verbose: As in `fit`.

    Raises:
        ValueError: No validation data, scales of other variables, N out of range.

    Examples:
        >>> from keras_bayestune import SparseDelta
        >>> from keras_bayestune.uncertainty import laplace
        >>> def model(seed):
        ...     layer = keras.layers.Dense(
        ...         2, kernel_initializer=keras.initializers.GlorotUniform(seed)
        ...     )
        ...     return keras.Sequential([keras.Input((3,)), layer])
        >>> base, tuned = model(0), model(1)
        >>> delta = SparseDelta.from_checkpoints(base, tuned)
        >>> data = np.random.rand(16, 3), np.random.randint(0, 2, 16)
        >>> scales = {v.path: np.full(v.shape, 0.1) for v in base.weights}
        >>> posterior = laplace(
        ...     base, delta, data, data, scales=scales,
        ...     loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> float(max(d.max() for d in posterior.deviations[0].values())) < 0.15
        True
    """
    x, y = checked_validation(validation)
    sizes = list(effective_sizes)
    if not sizes or not all(0.0 < size < float("inf") for size in sizes):
        raise ValueError(
            "`effective_sizes` must be finite numbers above 0, at least one. "
            f"Received: {sizes}."
        )
    with base_lent(model, [delta]):
        targets = trained(model, delta)
        precision = _prior_precision(model, targets, scales)
        with delta.applied(model):
            fisher = _fisher(model, targets, train, loss, examples, verbose)
        best: tuple[float, DeltaPosterior] | None = None
        for size in sizes:
            deviations = {
                path: (size * fisher[path] + precision[path]) ** -0.5
                for path in precision
            }
            posterior = DeltaPosterior(
                [delta],
                [deviations],
                outputs=outputs,
                metadata={"method": "laplace", "effective_size": float(size)},
            )
            prediction = posterior.predict(
                model, x, draws, batch_size=batch_size, seed=seed, verbose=0
            )
            value = validation_loss(posterior, prediction, y)
            if best is None or value < best[0]:
                best = value, posterior
    assert best is not None
    return best[1]


def trained(model: keras.Model, delta: SparseDelta) -> list[Target]:
    """Return the trainable variables of which the delta stores something."""
    return [
        target
        for target in pair_with_model(delta.variables, model)
        if target.variable.trainable and len(target.delta.values)
    ]


def _prior_precision(
    model: keras.Model, targets: Sequence[Target], scales: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Inverse of the prior's variance for each stored scalar."""
    # The paths of scores, each of one variable only.
    by_path = variables_by_path(model.trainable_variables)
    paths = {id(variable): path for path, variable in by_path.items()}
    found = {}
    for target in targets:
        stored, path = target.delta, paths[id(target.variable)]
        if stored.is_whole:
            square = np.square(stored.new_values.astype(np.float64))
            variance = np.full(len(stored.values), float(square.mean()))
        elif path in scales and np.shape(scales[path]) == stored.shape:
            scale = np.asarray(scales[path], np.float64).reshape(-1)
            variance = 2.0 * np.square(scale[stored.flat_indices])
        else:
            raise ValueError(
                f"`scales` has no array of shape {stored.shape} for {path!r}. Pass the "
                "posterior mean scales of stage 1 (`scores` of the callback or the "
                "result)."
            )
        found[target.path] = 1.0 / np.maximum(variance, 1e-30)
    return found


def _fisher(
    model: keras.Model,
    targets: Sequence[Target],
    train: Any,
    loss: Any,
    examples: int | None,
    verbose: str | int,
) -> dict[str, np.ndarray]:
    """Mean squared gradient of single examples, of the stored scalars."""
    training = Training(
        model,
        train,
        loss,
        batch_size=None,
        class_weight=None,
        steps_per_epoch=None,
        callbacks=(),
        verbose=verbose,
    )
    accumulator = GradientAccumulator(ops.square)
    training.visit(accumulator, examples, per_example=True)
    count = accumulator.num_added
    if not count:
        raise ValueError(
            "No gradient of an example was finite. Look at the data and the loss."
        )
    sums = accumulator.sums([target.variable for target in targets])
    return {
        target.path: total.reshape(-1)[target.delta.flat_indices] / count
        for target, total in zip(targets, sums, strict=True)
    }
