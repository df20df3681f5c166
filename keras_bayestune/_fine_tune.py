# Over 300 lines: one function, a third of it its docstring.
"""Both stages in one call, with any selector."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_bayestune import budgets
from keras_bayestune.arguments import check_integer, check_seed
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.callbacks.stage_two_start import (
    OF_A_DELTA,
    check_start,
    give_to_selected,
    last_weights,
    selected_values,
)
from keras_bayestune.callbacks.switching import switch_optimizer
from keras_bayestune.default_selector import checked_selector, default_exclude
from keras_bayestune.deltas import SparseDelta, base_values
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import SparseOptimizer
from keras_bayestune.optimizers.arguments import check_inner
from keras_bayestune.paths import variables_by_path
from keras_bayestune.rehearsal import (
    check_budget,
    check_callbacks,
    check_one_batch,
    check_read_twice,
)
from keras_bayestune.selectors import Selector
from keras_bayestune.selectors.batches import batches_per_epoch, fit_arguments, split
from keras_bayestune.selectors.steps import check_steps
from keras_bayestune.updates.replicas import strategy_scope


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FineTuneResult:
    """What `fine_tune` returns.

    Attributes:
        mask: The selected scalars.
        delta: Their new values, with whole variables that always train.
        history: Keras's history of stage 2.
        scores: `{variable path: score of each scalar}` of those that competed.
        selection_history: Keras's history of the selector's passes over the data.
    """

    mask: SparseMask
    delta: SparseDelta
    history: keras.callbacks.History
    scores: dict[str, np.ndarray]
    selection_history: keras.callbacks.History

    def __repr__(self) -> str:
        """Return how much was selected, and what the loss did in both stages."""
        parts = [
            f"{self.mask}",
            f"delta of {self.delta.nbytes:,} bytes",
        ]
        for stage, history in ((1, self.selection_history), (2, self.history)):
            losses = history.history.get("loss")
            if losses:
                parts.append(
                    f"loss of stage {stage} {losses[0]:.4g} to {losses[-1]:.4g}"
                )
        return f"FineTuneResult({', '.join(parts)})"


def fine_tune(
    model: keras.Model,
    train: Any,
    *,
    validation_data: Any = None,
    validation_split: float = 0.0,
    selector: Selector | None = None,
    fraction: float | str | None = None,
    threshold: float | None = None,
    budget: budgets.Budget | None = None,
    selection_epochs: int | None = None,
    selection_steps: int | None = None,
    finetune_epochs: int = 5,
    finetune_optimizer: keras.optimizers.Optimizer | None = None,
    loss: Any = None,
    metrics: Any = None,
    batch_size: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    steps_per_epoch: int | None = None,
    exclude: Sequence[str] | None = None,
    stage_2_callbacks: Sequence[keras.callbacks.Callback] = (),
    stage_2_start: str = "anchors",
    verbose: str | int = "auto",
    seed: int | None = None,
) -> FineTuneResult:
    """Select the scalars worth moving, then train only those.

    Kim & Hospedales, "BayesTune", NeurIPS 2023, algorithm 1, with any rule in stage 1:
    `selector` scores every scalar and the largest scores become the mask; then the
    model, every weight that competes as it was before, trains with `SparseOptimizer(
    finetune_optimizer, mask)`. Variables that do not compete, such as a new head, train
    as a whole and keep what they learned in stage 1, if the selector trains. The model
    ends up tuned, and compiled for more of the same; it can be saved, loaded and
    trained on.

    `SparseMaskCallback` does the same within one `fit`, with BayesTune only.

    Args:
        model: A built Keras model or KerasHub task.
        train: As `validation_data` of `fit`: a tuple of arrays, `(x, y)` or `(x, y,
            sample_weight)`, or a data set of batches. A KerasHub task reads arrays in
            their order: shuffle them before.
        validation_data: As in `fit`; for stage 2.
        validation_split: As in `fit`: this fraction of the rows, the last ones, is
            for validation, and neither stage trains on it; for arrays only.
        selector: `None` for `ScaleSelector` with `BayesTuneSGLD` at a learning rate of
            1e-4, which suits transformers: a quarter of stage 1 is warm-up, half of it
            burn-in.
        fraction: As in `SparseMask.from_scores`; 0.005 if neither it nor `threshold` is
            given.
        threshold: As in `SparseMask.from_scores`.
        budget: Who competes with whom, as in `SparseMask.from_scores`.
        selection_epochs: Passes over the data in stage 1, 3 if `None`. A `selector`
            brings its own.
        selection_steps: Instead of `selection_epochs`: batches of stage 1.
        finetune_epochs: Passes over the data in stage 2.
        finetune_optimizer: A Keras optimizer for stage 2, not built yet; `Adam(1e-3)`
            if `None`.
        loss: A Keras loss; `None` for what the model is compiled with.
        metrics: Keras metrics; `None` for what the model is compiled with.
        batch_size: Rows of a batch, 32 if `None`; for arrays only.
        class_weight: As in `fit`; for both stages.
        steps_per_epoch: Batches in one pass over the data, in both stages; `None` for
            all of them.
        exclude: Regular expressions; a variable whose path one of them matches
            (`re.search`) does not compete. `None`: all that lies outside the backbone
            of a KerasHub task, unless a `WithPrior` says what competes.
        stage_2_callbacks: Keras callbacks for stage 2.
        stage_2_start: "anchors": all that competes begins stage 2 where it began stage
            1. "last values": the selected scalars begin it where the selector's last
            pass left them, if it trains; all others at the anchors. Stage 1 ends with a
            second copy of the weights in host memory then.
        verbose: As in `fit`.
        seed: Int in [0, 2**31): sets Keras's global seed and the default selector's.

    Raises:
        TypeError: if `selector` is not a `Selector`, `finetune_optimizer` not a Keras
            optimizer or one of the callbacks not a Keras callback.
        ValueError: if an argument is out of range, if the model is not compiled and
            there is no `loss`, if stage 1 is too short, or if the first batch of the
            data does not fit model, loss and metrics; before anything changes.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> x, y = np.random.rand(32, 4), np.random.rand(32, 8)
        >>> result = fine_tune(
        ...     model,
        ...     (x, y),
        ...     fraction=0.1,
        ...     loss="mse",
        ...     selection_epochs=3,
        ...     finetune_epochs=2,
        ...     batch_size=4,
        ...     verbose=0,
        ... )
        >>> result.mask.count
        4
        >>> result.delta.save("task.safetensors")
    """
    if fraction is None and threshold is None:
        fraction = 0.005
    finetune_epochs = check_integer("finetune_epochs", finetune_epochs, 1)
    seed = check_seed(seed)
    batch_size = check_steps("batch_size", batch_size)
    steps_per_epoch = check_steps("steps_per_epoch", steps_per_epoch)
    check_callbacks(stage_2_callbacks)
    check_start(stage_2_start, OF_A_DELTA)
    if finetune_optimizer is not None:
        check_inner("finetune_optimizer", finetune_optimizer)
    _check_model(model, loss)
    check_read_twice(train)
    if validation_split:
        if validation_data is not None:
            raise ValueError(
                "Give `validation_data` or `validation_split`, not both. Received: "
                f"validation_split={validation_split} with validation data."
            )
        train, validation_data = split(train, validation_split)
    fitted = fit_arguments(train, batch_size)
    if exclude is None:
        exclude = default_exclude(model)
    selector = checked_selector(
        selector,
        selection_epochs,
        selection_steps,
        steps_per_epoch or batches_per_epoch(train, batch_size),
        seed,
    )
    rule: dict[str, Any] = {
        "fraction": fraction,
        "threshold": threshold,
        "budget": budget,
    }
    check_budget(model, exclude, **rule)
    with strategy_scope(model):
        for name, data in (("training", train), ("validation", validation_data)):
            check_one_batch(name, data, model, loss, metrics, batch_size)
    if seed is not None:
        keras.utils.set_random_seed(seed)

    base = base_values(model)
    passes: dict[str, Any] = {
        "class_weight": class_weight,
        "steps_per_epoch": steps_per_epoch,
    }
    selection_history = keras.callbacks.History()
    last = last_weights(model, exclude, stage_2_start)
    scores = selector.scores(
        model,
        train,
        loss,
        batch_size=batch_size,
        exclude=exclude,
        callbacks=[selection_history, last],
        verbose=verbose,
        **passes,
    )
    others = {
        path: tuple(variable.shape)
        for path, variable in variables_by_path(model.trainable_variables).items()
        if path not in scores
    }
    mask = SparseMask.from_scores(scores, always=others, **rule)
    mask = mask.in_order_of(model.trainable_variables)
    with strategy_scope(model):
        give_to_selected(model, mask, selected_values(model, mask, last.values))
        last.values.clear()
        inner = finetune_optimizer or keras.optimizers.Adam(1e-3)
        switch_optimizer(model, SparseOptimizer(inner, mask), loss, metrics)
    history = model.fit(
        **fitted,
        **passes,
        validation_data=validation_data,
        epochs=finetune_epochs,
        callbacks=[CompactTraining(), *stage_2_callbacks],
        verbose=verbose,
    )
    delta = SparseDelta.from_model(
        model,
        mask=mask,
        base=base,
        metadata={
            "selector": type(selector).__name__,
            "fraction": fraction,
            "threshold": threshold,
            "budget": repr(budget or budgets.Global()),
        },
    )
    return FineTuneResult(mask, delta, history, scores, selection_history)


def _check_model(model: keras.Model, loss: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: {type(model).__name__}."
        )
    if loss is None and not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled, so there is no loss to train "
            "with. Pass `loss=`, or compile the model with one."
        )
