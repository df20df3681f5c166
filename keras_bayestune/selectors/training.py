"""Running a model over data for a selector, beside what it is compiled with."""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_bayestune.selectors.batches import (
    batches_per_epoch,
    each_batch,
    fit_arguments,
    single_examples,
)
from keras_bayestune.selectors.companion import companion
from keras_bayestune.tasks import is_task


@dataclass(frozen=True)
class Training:
    """A model with the data and the loss to run it on."""

    model: keras.Model
    data: Any
    loss: Any
    batch_size: int | None
    class_weight: Mapping[int, float] | None
    steps_per_epoch: int | None
    callbacks: Sequence[keras.callbacks.Callback]
    verbose: str | int

    def train(
        self,
        optimizer: keras.optimizers.Optimizer,
        epochs: int | None,
        steps: int | None,
    ) -> None:
        """Fit the model's weights, for `epochs` or for `steps` batches."""
        if steps is not None:
            epochs = math.ceil(steps / (self.batches_per_epoch or 1))
        self._fit(
            companion(self.model, self.loss, training=True),
            optimizer,
            {**self._fit_arguments(), "steps_per_epoch": self.steps_per_epoch},
            epochs=epochs,
            steps=steps,
        )

    def train_head(self, competing: Sequence[keras.Variable], steps: int) -> None:
        """Fit all but the `competing` variables for `steps` batches, by Adam(1e-3)."""
        head = {id(v) for v in self.model.trainable_variables}
        head -= {id(v) for v in competing}
        if not (steps and head):
            return
        for variable in competing:
            variable.trainable = False
        try:
            self.train(keras.optimizers.Adam(1e-3), None, steps)
        finally:
            for variable in competing:
                variable.trainable = True

    def visit(
        self,
        optimizer: keras.optimizers.Optimizer,
        steps: int | None,
        per_example: bool,
    ) -> int:
        """Hand the gradients of one pass over the data to `optimizer`.

        The model is called as `model(x)` is outside training: no dropout, and batch
        normalisation by its statistics, without which a batch of one example would
        have no meaning.

        Returns:
            The number of batches, at most `steps`.
        """
        arguments = {**self._fit_arguments(), "shuffle": False}
        batches = self.steps_per_epoch
        one_by_one = per_example and not isinstance(self.data, tuple)
        if one_by_one:
            preprocess = self.model.preprocess_samples if is_task(self.model) else None
            arguments["x"] = single_examples(
                self.data, preprocess, arguments.pop("class_weight"), batches
            )
        elif per_example:
            arguments["batch_size"] = 1
            if batches is not None:
                arguments["steps_per_epoch"] = batches * (self.batch_size or 32)
        else:
            arguments["steps_per_epoch"] = batches
        return self._fit(
            companion(self.model, self.loss, training=False, preprocessed=one_by_one),
            optimizer,
            arguments,
            epochs=1,
            steps=steps,
        )

    def inputs(self, steps: int | None) -> Iterator[Any]:
        """Yield what the model is called with, batch by batch, as NumPy arrays.

        Args:
            steps: At most so many batches; `None` for one pass over the data.

        Raises:
            ValueError: if there are no data.
        """
        self._fit_arguments()  # the checks
        preprocess = self.model.preprocess_samples if is_task(self.model) else None
        batches = each_batch(self.data, self.batch_size or 32, preprocess)
        limits = [n for n in (steps, self.steps_per_epoch) if n is not None]
        for x, _, _ in itertools.islice(batches, min(limits, default=None)):
            yield x

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of batches in one pass; `None` if the data do not say."""
        return self.steps_per_epoch or batches_per_epoch(self.data, self.batch_size)

    def _fit_arguments(self) -> dict[str, Any]:
        arguments = fit_arguments(self.data, self.batch_size)
        return {**arguments, "class_weight": self.class_weight}

    def _fit(
        self,
        beside: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        arguments: dict[str, Any],
        epochs: int | None,
        steps: int | None,
    ) -> int:
        model = self.model
        beside.compile(
            optimizer,
            # The model's own, unless told otherwise; named here so that Keras builds
            # its state before the first step.
            loss=model.loss if self.loss is None else self.loss,
            run_eagerly=model.run_eagerly,
            jit_compile=model.jit_compile if model.compiled else "auto",
        )
        limit = _BatchLimit(steps)
        with warnings.catch_warnings():
            # Keras says so after one pass over data whose length it does not know.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            # The selector takes the scales, and puts the weights back.
            warnings.filterwarnings("ignore", "`fit` with BayesTuneSGLD ended")
            beside.fit(
                **arguments,
                epochs=epochs,
                callbacks=[limit, *self.callbacks],
                verbose=self.verbose,
            )
        return limit.count


class _BatchLimit(keras.callbacks.Callback):
    """Count batches and stop after `limit` of them."""

    def __init__(self, limit: int | None):
        super().__init__()
        self.limit = limit
        self.count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count += 1
        if self.count == self.limit:
            self.model.stop_training = True


def fresh_copy(optimizer: Any, **changed: Any) -> keras.optimizers.Optimizer:
    """Return an unbuilt optimizer with the same arguments, but for those `changed`."""
    return type(optimizer).from_config({**optimizer.get_config(), **changed})
