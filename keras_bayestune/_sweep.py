"""Several fractions and learning rates of stage 2, from one stage 1."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_bayestune.arguments import check_integer, check_number
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.callbacks.stage_two_start import (
    OF_A_DELTA,
    check_start,
    give_to_selected,
    last_weights,
    selected_values,
)
from keras_bayestune.default_selector import checked_selector, default_exclude
from keras_bayestune.deltas import SparseDelta, base_values
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import SparseOptimizer
from keras_bayestune.paths import variables_by_path
from keras_bayestune.rehearsal import check_one_batch, check_read_twice
from keras_bayestune.selectors import Selector
from keras_bayestune.selectors.batches import batches_per_epoch, fit_arguments, split
from keras_bayestune.selectors.companion import companion
from keras_bayestune.selectors.selector import weights_restored
from keras_bayestune.selectors.steps import check_steps
from keras_bayestune.sweep_result import FULL, HEAD, SELECTED, Sweep, SweepRun
from keras_bayestune.updates.replicas import strategy_scope


def sweep(
    model: keras.Model,
    train: Any,
    *,
    fractions: Sequence[float] = (0.001, 0.005, 0.02),
    learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3),
    full_learning_rates: Sequence[float] | None = None,
    validation_data: Any = None,
    validation_split: float = 0.0,
    selector: Selector | None = None,
    selection_epochs: int | None = None,
    selection_steps: int | None = None,
    finetune_epochs: int = 5,
    optimizer: Callable[[float], keras.optimizers.Optimizer] | None = None,
    loss: Any = None,
    metrics: Sequence[Any] = (),
    monitor: str = "loss",
    mode: str = "min",
    batch_size: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    steps_per_epoch: int | None = None,
    exclude: Sequence[str] | None = None,
    stage_2_start: str = "anchors",
    verbose: int = 1,
    seed: int = 0,
) -> Sweep:
    """Try fractions and learning rates of stage 2, after one stage 1.

    Every pair is a run as of `fine_tune`, all in the same order of the data. Beside
    them, at every learning rate, train the head alone (the variables that do not
    compete), and all weights, both from the model's present weights. The model is
    afterwards as it was; `result.best.delta.apply(model)` gives it what the best run
    learned.

    The costs: one stage 1, and `len(fractions) + 1` runs of stage 2 for each learning
    rate, with one to compile each, and those of full fine-tuning.

    Args:
        model: As in `fine_tune`.
        train: As in `fine_tune`.
        fractions: Each in (0, 1], of the scalars that compete.
        learning_rates: Each > 0.
        full_learning_rates: For all weights, which want smaller ones; a tenth of
            `learning_rates` if `None`, and no such run if empty.
        validation_data: As in `fit`. It or `validation_split` is needed.
        validation_split: As in `fine_tune`.
        selector: As in `fine_tune`.
        selection_epochs: As in `fine_tune`.
        selection_steps: As in `fine_tune`.
        finetune_epochs: Passes over the data of each run.
        optimizer: Called with a learning rate: returns the optimizer of a run;
            `keras.optimizers.Adam` if `None`.
        loss: As in `fine_tune`.
        metrics: Names of Keras metrics, or functions.
        monitor: `"loss"` or a metric's name: what the best run is best in, on the
            validation data after the last epoch.
        mode: `"min"`, or `"max"` for a metric such as accuracy.
        batch_size: As in `fine_tune`.
        class_weight: As in `fine_tune`.
        steps_per_epoch: As in `fine_tune`.
        exclude: As in `fine_tune`.
        stage_2_start: As in `fine_tune`.
        verbose: 1 prints a line for each run, 0 nothing.
        seed: Set before stage 1 and before every run, as Keras's global seed.

    Raises:
        TypeError: if `selector` is not a `Selector`.
        ValueError: if an argument is out of range, there are no validation data, or
            `monitor` is not among the loss and the metrics.

    Examples:
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.Dense(8, name="body")(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(1, name="head")(x))
        >>> x, y = np.random.rand(80, 4), np.random.rand(80, 1)
        >>> result = sweep(
        ...     model,
        ...     (x, y),
        ...     fractions=[0.1, 0.5],
        ...     learning_rates=[1e-2],
        ...     exclude=["^head/"],
        ...     loss="mse",
        ...     validation_split=0.25,
        ...     finetune_epochs=1,
        ...     batch_size=4,
        ...     verbose=0,
        ... )
        >>> [(run.method, run.scalars) for run in result.runs]
        [('selected', 13), ('selected', 29), ('head only', 9), ('full', 49)]
        >>> result.best.delta.save("best.safetensors")
    """
    rates, full_rates = _checked_rates(learning_rates, full_learning_rates)
    if not fractions:
        raise ValueError("`fractions` is empty. Give one, such as [0.005].")
    if mode not in ("min", "max"):
        raise ValueError(f"`mode` must be 'min' or 'max'. Received: {mode!r}.")
    check_integer("finetune_epochs", finetune_epochs, 1)
    check_integer("seed", seed, 0)
    check_start(stage_2_start, OF_A_DELTA)
    batch_size = check_steps("batch_size", batch_size)
    check_read_twice(train)
    if validation_split and validation_data is None:
        train, validation_data = split(train, validation_split)
    if validation_data is None:
        raise ValueError(
            "`sweep` compares runs on validation data. Give `validation_data`, or "
            "`validation_split=0.2` for arrays."
        )
    check_one_batch("training", train, model, loss, metrics, batch_size)
    if exclude is None:
        exclude = default_exclude(model)
    batches = steps_per_epoch or batches_per_epoch(train, batch_size)
    selector = checked_selector(
        selector, selection_epochs, selection_steps, batches, seed
    )
    passes: dict[str, Any] = {
        "class_weight": class_weight,
        "steps_per_epoch": steps_per_epoch,
    }
    history = keras.callbacks.History()
    last = last_weights(model, exclude, stage_2_start)
    keras.utils.set_random_seed(seed)
    scores = selector.scores(
        model,
        train,
        loss,
        batch_size=batch_size,
        exclude=exclude,
        callbacks=[history, last],
        **passes,
    )
    competing, head = _masks_without_fraction(model, scores)
    base, runs = base_values(model), []

    def run(
        method: str, fraction: float, rate: float, mask: SparseMask | None
    ) -> SweepRun:
        keras.utils.set_random_seed(seed)
        inner = (optimizer or keras.optimizers.Adam)(rate)
        with weights_restored(model):
            with strategy_scope(model):
                if mask is not None and method == SELECTED:
                    start = selected_values(model, mask, last.values)
                    give_to_selected(model, mask, start)
                beside = companion(model, loss, training=True)
                beside.compile(
                    inner if mask is None else SparseOptimizer(inner, mask),
                    loss=model.loss if loss is None else loss,
                    metrics=list(metrics),
                    run_eagerly=model.run_eagerly,
                    jit_compile=model.jit_compile if model.compiled else "auto",
                )
            found = beside.fit(
                **fit_arguments(train, batch_size),
                **passes,
                validation_data=validation_data,
                epochs=finetune_epochs,
                callbacks=[CompactTraining()],
                verbose=0,
            ).history
            delta = None
            if mask is not None:
                about = {"selector": type(selector).__name__, "fraction": fraction}
                about = {**about, "learning_rate": rate, "method": method}
                delta = SparseDelta.from_model(
                    model, mask=mask, base=base, metadata=about
                )
        validation = {
            name.removeprefix("val_"): float(values[-1])
            for name, values in found.items()
            if name.startswith("val_")
        }
        if monitor not in validation:
            raise ValueError(
                f"`monitor` must be one of {list(validation)}. Received: {monitor!r}. "
                "Pass what it names as one of `metrics`."
            )
        count = competing if mask is None else mask.count
        if verbose:
            numbers = ", ".join(f"{k} {v:.4g}" for k, v in validation.items())
            print(f"{method}, p = {fraction:.3g}, learning rate {rate:.3g}: {numbers}")
        return SweepRun(method, fraction, rate, count, validation, delta)

    for fraction in fractions:
        mask = SparseMask.from_scores(
            scores, fraction=fraction, always={p: head.shapes[p] for p in head.always}
        ).in_order_of(model.trainable_variables)
        runs += [run(SELECTED, float(fraction), rate, mask) for rate in rates]
    if head.always:
        part = head.count / competing
        runs += [run(HEAD, part, rate, head) for rate in rates]
    runs += [run(FULL, 1.0, rate, None) for rate in full_rates]
    return Sweep(runs, scores, history, monitor, mode)


def _masks_without_fraction(
    model: keras.Model, scores: Mapping[str, np.ndarray]
) -> tuple[int, SparseMask]:
    """The number of all trainable scalars, and the mask of what does not compete."""
    shapes = {
        path: tuple(variable.shape)
        for path, variable in variables_by_path(model.trainable_variables).items()
    }
    whole = tuple(path for path in shapes if path not in scores)
    indices = {
        path: np.arange(math.prod(shape) if path in whole else 0)
        for path, shape in shapes.items()
    }
    return sum(map(math.prod, shapes.values())), SparseMask(
        indices, shapes, always=whole
    )


def _checked_rates(
    rates: Sequence[float], full: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    def checked(name: str, rates: Sequence[float]) -> list[float]:
        return [
            check_number(f"{name}[{i}]", rate, "(0, inf)")
            for i, rate in enumerate(rates)
        ]

    rates = checked("learning_rates", rates)
    if not rates:
        raise ValueError("`learning_rates` is empty. Give one, such as [1e-3].")
    if full is None:
        return rates, [rate / 10 for rate in rates]
    return rates, checked("full_learning_rates", full)
