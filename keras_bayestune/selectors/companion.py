"""A model beside a model: the same layers, compiled by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_bayestune.tasks import is_task, task_class


def companion(
    model: keras.Model, loss: Any, training: bool, preprocessed: bool = False
) -> keras.Model:
    """Return a model that calls `model`, shares its weights and is not compiled yet.

    Its loss is the one that `model` trains with: `compute_loss` of a subclass, the
    losses that layers add, regularisers, loss weights.

    Args:
        model: The model; what it is compiled with stays untouched.
        loss: What the companion is going to be compiled with in place of the model's
            own loss; `None` for the model's own.
        training: Whether layers behave as in training.
        preprocessed: Whether the data went through a KerasHub task's preprocessor.

    Raises:
        ValueError: if there is no loss, or `model` trains in its own way.
    """
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(
            f"{type(model).__name__} overrides `train_step`, which a selector does not "
            "run: it calls the model and takes the gradient of its loss. Override "
            "`compute_loss` instead, or use a selector that needs no data."
        )
    if loss is None and not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled, so there is no loss to take "
            "gradients of. Pass `loss=`, or compile the model with one."
        )
    base: Any = keras.Model
    arguments: dict[str, Any] = {"autocast": False}
    if is_task(model) and not preprocessed:
        base = task_class()
        # Functional, as every task: one that is not would change the class for all.
        arguments = {"inputs": model.input, "outputs": model.output, "compile": False}

    class Companion(base):
        def __init__(self):
            super().__init__(**arguments)
            self.dtype_policy = model.dtype_policy
            if base is keras.Model:
                self.companion_of = model
                self.output_names = getattr(model, "output_names", None)
                self.built = True

        # Keras hands `training=True` on to the layers within only if `call` takes it.
        def call(self, inputs):
            return model(inputs)

        def compute_loss(
            self, x=None, y=None, y_pred=None, sample_weight=None, training=True
        ):
            lent = {}
            if loss is not None:
                lent["_compile_loss"] = self._compile_loss
            if self._losses_override:
                # On JAX, what layers added: only the model that was called knows.
                lent["_losses_override"] = self._losses_override
            with _lent(model, lent):
                return model._compute_loss(x, y, y_pred, sample_weight, training)

        def preprocess_samples(self, x, y=None, sample_weight=None):
            return model.preprocess_samples(x, y, sample_weight)

    class TrainingCompanion(Companion):
        def call(self, inputs, training=None):
            # Said, because on JAX Keras calls this without the context that knows it.
            return model(inputs, training=training)

    return TrainingCompanion() if training else Companion()


@contextmanager
def _lent(model: keras.Model, attributes: dict[str, Any]) -> Iterator[None]:
    """Set private attributes of Keras's trainer (3.15) for a while."""
    own = {name: getattr(model, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(model, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(model, name, value)
