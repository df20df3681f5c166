"""What an optimizer carries for the callback through Keras's own files.

`ModelCheckpoint`, `model.save` and `BackupAndRestore` save weights and optimizer. The
callback adds to the optimizer's part what a run needs beyond that: the random
generators, the state of the loss scaling, and its own progress.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.callbacks.progress_document import (
    Progress,
    progress_document,
    read_arrays,
    read_progress,
)
from keras_bayestune.optimizers import SparseOptimizer, unscaled
from keras_bayestune.updates.random_state import random_state, set_random_state


@dataclass(frozen=True)
class Position:
    """Where a `fit` is."""

    epoch: int  # begun last, from 0
    batches_before: int  # before that epoch
    steps: int | None  # batches per epoch, if known
    is_over: bool  # `fit` has ended by itself


def carried_state(
    model: keras.Model, progress: Progress, position: Position
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and arrays for `RunState.attach`.

    Once `fit` is over they are small: without the scores and anchors, twice the model.
    A chain that a later `fit` may go on with then has no result at all.
    """
    in_stage_two = isinstance(unscaled(model.optimizer), SparseOptimizer)
    if position.is_over and not in_stage_two:
        progress = Progress(0, None, 0, {}, None, [], None)
    elif position.is_over and progress.result is not None:
        small = replace(progress.result, scores=None, anchors=None)
        progress = replace(progress, result=small)
    document, arrays = progress_document(progress)
    lists = {
        "generators": [_array(v) for v in _generators(model)],
        "random": random_state(),
        "loss_scaling": [_array(v) for v in _loss_scaling(model)],
    }
    for name, values in lists.items():
        document[name] = len(values)
        arrays |= {f"{name}.{i}": value for i, value in enumerate(values)}
    document |= {**vars(position), "stage": 2 if in_stage_two else 1}
    return document, arrays


class Carried:
    """Such a state, read and checked.

    Raises:
        ValueError: it does not fit together.
    """

    def __init__(self, document: dict[str, Any], arrays: dict[str, np.ndarray]):
        """Read it."""
        try:
            self.progress = read_progress(document, arrays.__getitem__)
            self._generators = read_arrays(document, "generators", arrays.__getitem__)
            self._random = read_arrays(document, "random", arrays.__getitem__)
            self._scaling = read_arrays(document, "loss_scaling", arrays.__getitem__)
            self._position = Position(
                int(document["epoch"]),
                int(document["batches_before"]),
                None if document["steps"] is None else int(document["steps"]),
                bool(document["is_over"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                "The state of the run that was saved with the optimizer does not fit "
                f"together: {str(error):.200}. Load another checkpoint."
            ) from error

    def restore(self, model: keras.Model) -> None:
        """Give the random generators and the loss scaling of `model` what they had.

        After the end of `fit` the global generators are the caller's own.

        Raises:
            ValueError: the model has others; nothing was changed.
        """
        pairs = [
            *_pairs("random generators", _generators(model), self._generators),
            *_pairs("loss scaling", _loss_scaling(model), self._scaling),
        ]
        for variable, value in pairs:
            variable.assign(value)
        if not self._position.is_over:
            set_random_state(self._random)

    def check_epoch(self, epoch: int) -> None:
        """Warn if a `fit` that begins with `epoch` does not go on where this ended."""
        position, batches = self._position, self.progress.batches
        if position.is_over:
            return  # a new `fit`, which may well count from 0
        done = batches - position.batches_before
        whole = done > 0 if position.steps is None else done == position.steps
        following = position.epoch + whole
        if (done and not whole) or following != epoch:
            warnings.warn(
                f"The state was saved after {done} batches of epoch {position.epoch} "
                f"(from 0), and `fit` goes on with the first batch of epoch {epoch}: "
                "the run is not the one that was interrupted. Save at the end of an "
                "epoch and pass `initial_epoch` to `fit`; `backup_dir` of "
                "SparseMaskCallback does both by itself.",
                stacklevel=3,
            )


def _generators(model: keras.Model) -> list[keras.Variable]:
    """States of Keras's random generators, which are no weights."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _loss_scaling(model: keras.Model) -> list[keras.Variable]:
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return []
    return [optimizer.step_counter, optimizer.dynamic_scale] if optimizer.built else []


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(ops.convert_to_numpy(variable))


def _pairs(
    what: str, variables: list[keras.Variable], arrays: list[np.ndarray]
) -> list[tuple[keras.Variable, np.ndarray]]:
    shapes = [tuple(v.shape) for v in variables], [a.shape for a in arrays]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The state of the run that was saved with the optimizer has {what} of "
            f"shapes {shapes[1]}, the model {shapes[0]}. It was saved with another "
            "model: build this one as that was."
        )
    return list(zip(variables, arrays, strict=True))
