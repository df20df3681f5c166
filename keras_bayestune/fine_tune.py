"""Both stages in one call, with any selector."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import check_integer, check_seed
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer
from keras_bayestune.priors import is_marked
from keras_bayestune.selectors import Random, ScaleSelector, Selector
from keras_bayestune.selectors.batches import batches_per_epoch, fit_arguments
from keras_bayestune.tasks import task_head_paths

THINNING = 5  # updates of stage 1 from one sample to the next


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuneResult:
    """What `fine_tune` returns.

    Attributes:
        mask: The selected scalars.
        delta: Their new values, with whole variables that always train.
        history: Keras's history of stage 2.
        scores: `{variable path: score of each scalar}` of those that competed.
    """

    mask: SparseMask
    delta: SparseDelta
    history: keras.callbacks.History
    scores: dict[str, np.ndarray]


def fine_tune(
    model: keras.Model,
    train: Any,
    *,
    validation_data: Any = None,
    selector: Selector | None = None,
    fraction: float | str | None = None,
    threshold: float | None = None,
    per_layer: bool | Mapping[str, float] | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    loss: Any = None,
    metrics: Any = None,
    selection_epochs: int | None = None,
    epochs: int = 5,
    batch_size: int | None = None,
    exclude: Sequence[str] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = "auto",
    seed: int | None = None,
) -> FineTuneResult:
    """Choose the scalars worth moving, then train only those.

    Kim & Hospedales, "BayesTune", NeurIPS 2023, algorithm 1, with any rule in stage 1:
    `selector` scores every scalar and the largest scores become the mask; then the
    model, every weight as it was before, trains with `SparseOptimizer(optimizer,
    mask)`. Variables that do not compete train as a whole, from where they started.
    The model ends up tuned, and compiled for more of the same.

    `SparseMaskCallback` does the same within one `fit`, with BayesTune only, and lets
    those variables keep what they learned in stage 1.

    Args:
        model: A built Keras model or KerasHub task.
        train: As `validation_data` of `fit`: a tuple of arrays, `(x, y)` or `(x, y,
            sample_weight)`, or a data set of batches. A KerasHub task reads arrays in
            their order: shuffle them before.
        validation_data: As in `fit`; for stage 2.
        selector: `None` for `ScaleSelector` with `BayesTuneSGLD` at a learning rate of
            1e-4, which suits transformers: a quarter of the `selection_epochs` is
            warm-up, half of them burn-in.
        fraction: As in `SparseMask.from_scores`; 0.005 if neither it nor `threshold` is
            given.
        threshold: As in `SparseMask.from_scores`.
        per_layer: As in `SparseMask.from_scores`.
        optimizer: A Keras optimizer for stage 2, not built yet; `Adam(1e-3)` if `None`.
        loss: A Keras loss; `None` for what the model is compiled with.
        metrics: Keras metrics; `None` for what the model is compiled with.
        selection_epochs: Passes over the data in stage 1, 3 if `None`. A `selector`
            brings its own.
        epochs: Passes over the data in stage 2.
        batch_size: Rows of a batch, 32 if `None`; for arrays only.
        exclude: Regular expressions; a variable whose path one of them matches
            (`re.search`) does not compete. `None`: all that lies outside the backbone
            of a KerasHub task, unless a `WithPrior` says what competes.
        callbacks: Keras callbacks for stage 2.
        verbose: As in `fit`.
        seed: Int in [0, 2**31): sets Keras's global seed and the default selector's.

    Raises:
        TypeError: if `selector` is no `Selector` or `optimizer` no Keras optimizer.
        ValueError: if an argument is out of range, if the model is not compiled and
            there is no `loss`, or if stage 1 is too short; before anything changes.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> x, y = np.random.rand(32, 4), np.random.rand(32, 8)
    >>> result = fine_tune(
    ...     model,
    ...     (x, y),
    ...     fraction=0.1,
    ...     loss="mse",
    ...     selection_epochs=3,
    ...     epochs=2,
    ...     batch_size=4,
    ...     verbose=0,
    ... )
    >>> result.mask.count
    4
    >>> result.delta.save("task.safetensors")
    """
    if fraction is None and threshold is None:
        fraction = 0.005
    epochs = check_integer("epochs", epochs, 1)
    seed = check_seed(seed)
    if isinstance(train, Iterator):
        raise ValueError(
            "`train` is read in both stages, and an iterator such as a "
            f"{type(train).__name__} can be read once. Pass arrays, a "
            "keras.utils.PyDataset or a tf.data.Dataset."
        )
    optimizer = _checked_optimizer(optimizer)
    _check_loss(model, loss)
    if exclude is None:
        exclude = _default_exclude(model)
    if selector is None:
        selector = _default_selector(train, batch_size, selection_epochs, seed)
    elif selection_epochs is not None:
        raise ValueError(
            "`selection_epochs` is for the default selector. Received: "
            f"selection_epochs={selection_epochs} with a {type(selector).__name__}, "
            "which says itself how long it runs."
        )
    if not isinstance(selector, Selector):
        raise TypeError(
            "`selector` must be a keras_bayestune.selectors.Selector. Received: "
            f"{selector!r}."
        )
    budget: dict[str, Any] = {
        "fraction": fraction,
        "threshold": threshold,
        "per_layer": per_layer,
    }
    _check_budget(model, exclude, **budget)
    if seed is not None:
        keras.utils.set_random_seed(seed)

    base = {
        variable.path: ops.convert_to_numpy(variable.value)
        for variable in model.weights
        if keras.backend.is_float_dtype(variable.dtype)
    }
    scores = selector.scores(
        model, train, loss, batch_size=batch_size, exclude=exclude, verbose=verbose
    )
    others = {
        variable.path: tuple(variable.shape)
        for variable in model.trainable_variables
        if variable.path not in scores
    }
    mask = SparseMask.from_scores(scores, always=others, **budget)
    _compile(model, SparseOptimizer(optimizer, mask), loss, metrics)
    history = model.fit(
        **fit_arguments(train, batch_size),
        validation_data=validation_data,
        epochs=epochs,
        callbacks=[CompactTraining(), *callbacks],
        verbose=verbose,
    )
    delta = SparseDelta.from_model(
        model,
        mask=mask,
        base=base,
        metadata={"selector": type(selector).__name__, **budget},
    )
    return FineTuneResult(mask, delta, history, scores)


def _checked_optimizer(optimizer: Any) -> keras.optimizers.Optimizer:
    if optimizer is None:
        return keras.optimizers.Adam(1e-3)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`optimizer` must be a Keras optimizer such as "
            f"keras.optimizers.Adam(1e-3). Received: {optimizer!r}."
        )
    if optimizer.built:
        raise ValueError(
            f"The optimizer {optimizer.name!r} is built on other variables already. "
            "Pass a new one: its state will belong to the selected scalars."
        )
    return optimizer


def _check_loss(model: keras.Model, loss: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: {type(model).__name__}."
        )
    if loss is None and not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled, so there is no loss to train "
            "with. Pass `loss=`, or compile the model with one."
        )


def _default_exclude(model: keras.Model) -> list[str]:
    if any(is_marked(variable) for variable in model.trainable_variables):
        return []
    return [f"^{re.escape(path)}$" for path in task_head_paths(model)]


def _default_selector(
    train: Any, batch_size: int | None, selection_epochs: int | None, seed: int | None
) -> ScaleSelector:
    epochs = 3 if selection_epochs is None else selection_epochs
    epochs = check_integer("selection_epochs", epochs, 1)
    fit_arguments(train, batch_size)
    batches = batches_per_epoch(train, batch_size)
    if batches is None:
        raise ValueError(
            "The data set does not say how many batches it has, so stage 1 cannot be "
            "planned. Pass selector=ScaleSelector(BayesTuneSGLD(...), steps=...)."
        )
    updates = epochs * batches
    if updates < 2 * THINNING:
        raise ValueError(
            f"Stage 1 is planned for {updates} updates: selection_epochs={epochs} of "
            f"{batches} batches. It needs {2 * THINNING} for a first posterior sample, "
            "and 400 or more for good ones. Raise selection_epochs."
        )
    sampling = BayesTuneSGLD(
        learning_rate=1e-4,
        warmup_steps=updates // 4,
        burn_in_steps=updates // 2,
        thinning=THINNING,
        seed=seed,
    )
    return ScaleSelector(sampling, epochs=epochs)


def _check_budget(model: keras.Model, exclude: Sequence[str], **budget: Any) -> None:
    """Choose among random scores: what is wrong shows now and not after stage 1."""
    scores = Random().scores(model, exclude=exclude)
    if budget["threshold"] is not None:
        largest = np.finfo("float32").max  # above every threshold
        scores = {path: np.full_like(score, largest) for path, score in scores.items()}
    SparseMask.from_scores(scores, **budget)


def _compile(
    model: keras.Model, optimizer: SparseOptimizer, loss: Any, metrics: Any
) -> None:
    """Compile, or where loss and metrics stay only exchange the optimizer."""
    if loss is not None or metrics is not None:
        # What is None stays as it was compiled, loss weights included.
        model.compile(
            optimizer, loss=loss, metrics=metrics, run_eagerly=model.run_eagerly
        )
        return
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    model.optimizer = optimizer
    model.make_train_function(force=True)
