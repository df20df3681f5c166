"""What can fail late in `fine_tune`, tried before stage 1."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_bayestune.callbacks import SparseMaskCallback
from keras_bayestune.callbacks.rehearsal import random_scores
from keras_bayestune.callbacks.stage_two_callbacks import (
    check_are_callbacks,
    refuse_swapping,
)
from keras_bayestune.masks import SparseMask
from keras_bayestune.selectors import Random
from keras_bayestune.selectors.batches import first_batch
from keras_bayestune.selectors.companion import companion
from keras_bayestune.tasks import is_task


def check_budget(model: keras.Model, exclude: Sequence[str], **rule: Any) -> None:
    """Select among random scores: what is wrong shows now and not after stage 1."""
    competing = Random().scores(model, exclude=exclude)
    shapes = {path: score.shape for path, score in competing.items()}
    SparseMask.from_scores(random_scores(shapes, rule["threshold"]), **rule)


def check_callbacks(callbacks: Any) -> None:
    """Raise unless `callbacks` are Keras callbacks for one stage."""
    if not isinstance(callbacks, Sequence):
        raise TypeError(
            "`stage_2_callbacks` must be a list of Keras callbacks. Received: "
            f"{callbacks!r}."
        )
    check_are_callbacks(callbacks)
    if any(isinstance(callback, SparseMaskCallback) for callback in callbacks):
        raise ValueError(
            "`stage_2_callbacks` must not hold a SparseMaskCallback, which runs both "
            "stages itself: call model.fit(..., callbacks=[callback]) in place of "
            "fine_tune."
        )
    refuse_swapping(callbacks)


def check_one_batch(
    name: str,
    data: Any,
    model: keras.Model,
    loss: Any,
    metrics: Any,
    batch_size: int | None,
) -> None:
    """Evaluate the first batch of `data`, with the loss and the metrics of stage 2."""
    own_steps = (
        type(model).train_step is not keras.Model.train_step
        or type(model).test_step is not keras.Model.test_step
    )
    if data is None or isinstance(data, Iterator) or own_steps:
        return  # an iterator could not be read again
    preprocess = model.preprocess_samples if is_task(model) else None
    if metrics is None and model.compiled:
        metrics = model._compile_config.config["metrics"]
    beside = companion(model, loss, training=False, preprocessed=True)
    beside.compile(
        None,
        loss=model.loss if loss is None else loss,
        metrics=metrics,
        run_eagerly=True,  # compiling would take longer than one batch
    )
    try:
        beside.test_on_batch(*first_batch(data, batch_size or 32, preprocess))
    except Exception as error:
        error.add_note(
            f"fine_tune was evaluating the first batch of the {name} data before "
            "stage 1. Nothing has changed."
        )
        raise
    finally:
        beside.reset_metrics()  # those that were given as objects


def check_read_twice(train: Any) -> None:
    """Raise for data that are gone once they were read."""
    if isinstance(train, Iterator):
        raise ValueError(
            "`train` is read in both stages, and an iterator such as a "
            f"{type(train).__name__} can be read once. Pass arrays, a "
            "keras.utils.PyDataset or a tf.data.Dataset."
        )
