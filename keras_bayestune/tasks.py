"""KerasHub's tasks: raw data in, a pre-trained backbone, a head of their own."""

import sys
from typing import Any

import keras

from keras_bayestune.paths import variables_by_path


def is_task(model: keras.Model) -> bool:
    """Return whether `model` is a KerasHub task, whose `fit` preprocesses."""
    keras_hub = sys.modules.get("keras_hub")  # without it the model cannot be a task
    return keras_hub is not None and isinstance(model, keras_hub.models.Task)


def task_class() -> Any:
    """Return `keras_hub.models.Task`; only for a process that has a task."""
    return sys.modules["keras_hub"].models.Task


def task_head_paths(model: keras.Model) -> tuple[str, ...]:
    """Return the paths of the trainable variables outside a task's backbone.

    Empty for a model that is not a KerasHub task, or a task without backbone.
    """
    if not is_task(model) or model.backbone is None:
        return ()
    inside = {id(variable) for variable in model.backbone.variables}
    paths = variables_by_path(model.trainable_variables)
    return tuple(path for path, v in paths.items() if id(v) not in inside)
