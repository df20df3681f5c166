"""What a run of two stages knows beyond its weights, as JSON and arrays, and back.

`ModelCheckpoint`, `model.save`, `BackupAndRestore` and `Backup` save weights and
optimizer. The callback adds to the optimizer's part what a run needs beyond that: the
random generators, the state of the loss scaling, and its own progress.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.document_file import check_fields
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import SparseOptimizer, unscaled
from keras_bayestune.updates.random_state import random_state, set_random_state

Arrays = Mapping[str, np.ndarray]

_ARRAY = "__array__"  # in the document: the name of an array
_RESULT = {
    "mask": dict,
    "scores": dict | None,
    "anchors": dict | None,
    "skipped_steps": int,
    "metadata": dict,
}
_PROGRESS = {
    "epoch": int,
    "batches_before": int,
    "batches": int,
    "steps": int | None,
    "is_over": bool,
    "first_epoch": int | None,
    "numbers": dict,
    "result": dict | None,
    "trace": list | None,
}
_MODEL = {"stage": int, "generators": list, "random": list, "loss_scaling": list}


@dataclasses.dataclass(frozen=True)
class Result:
    """What stage 1 leaves behind, by variable path; `None` what was not kept."""

    mask: SparseMask
    scores: dict[str, np.ndarray] | None
    anchors: dict[str, np.ndarray] | None
    skipped_steps: int
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a `fit` is, and what the callback knows by then."""

    epoch: int  # begun last, from 0
    batches_before: int  # done before that epoch, since stage 1 began
    batches: int  # done by now, likewise
    steps: int | None  # batches per epoch, if known
    is_over: bool  # `fit` has ended by itself
    first_epoch: int | None  # of stage 1; `None` before it begins
    numbers: dict[str, float]  # logged last
    result: Result | None  # of stage 1, once that is over
    trace: tuple[int, np.ndarray, np.ndarray] | None  # count, samples, running total


def kept(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return scores or anchors; a ValueError if they were not kept."""
    if arrays is None:
        raise ValueError(
            "A model that was saved after the end of `fit` does not hold scores and "
            "anchors of stage 1, only its mask. Take them from the callback of that "
            "`fit`."
        )
    return arrays


def describe(
    model: keras.Model, progress: Progress
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and arrays for the optimizer to carry.

    Once `fit` is over they are small: without the scores and anchors, twice the model.
    A chain that a later `fit` may go on with then has no result at all.
    """
    in_stage_two = isinstance(unscaled(model.optimizer), SparseOptimizer)
    result = progress.result
    if progress.is_over and not in_stage_two:
        result = None
        progress = dataclasses.replace(
            progress, batches=0, first_epoch=None, numbers={}, trace=None
        )
    elif progress.is_over and result is not None:
        result = dataclasses.replace(result, scores=None, anchors=None)
    document = {
        **vars(progress),
        "result": result and {**vars(result), "mask": result.mask.get_config()},
        "stage": 2 if in_stage_two else 1,
        "generators": [_array(v) for v in _generators(model)],
        "random": random_state(),
        "loss_scaling": [_array(v) for v in _loss_scaling(model)],
    }
    arrays: dict[str, np.ndarray] = {}
    return _without_arrays(document, arrays), arrays


class Carried:
    """What `describe` returned, read and checked.

    Raises:
        ValueError: it does not fit together.
    """

    def __init__(self, document: dict[str, Any], arrays: Arrays):
        """Read it."""
        try:
            check_fields(document, _PROGRESS | _MODEL)
            found = _with_arrays(document, arrays)
            self._generators = _listed(found.pop("generators"))
            self._random = _listed(found.pop("random"))
            self._loss_scaling = _listed(found.pop("loss_scaling"))
            result, trace = found["result"], found["trace"]
            if result is not None:
                check_fields(result, _RESULT)
                _listed([*(result["scores"] or {}).values()])
                _listed([*(result["anchors"] or {}).values()])
                mask = SparseMask.from_config(result["mask"])
                found["result"] = Result(**{**result, "mask": mask})
            if trace is not None:
                count, samples, total = trace
                found["trace"] = (int(count), *_listed([samples, total]))
            del found["stage"]
            self.progress = Progress(**found)
        except (
            AttributeError, KeyError, TypeError, ValueError, OverflowError,
            RecursionError,
        ) as error:  # fmt: skip
            reason = str(error).rstrip(".")
            raise ValueError(
                "The state of the run that was saved with the optimizer does not fit "
                f"together: {reason:.200}. Load another checkpoint."
            ) from error

    def restore(self, model: keras.Model) -> None:
        """Give the random generators and the loss scaling of `model` what they had.

        After the end of `fit` the global generators are the caller's own.

        Raises:
            ValueError: the model has others; nothing was changed.
        """
        pairs = [
            *_pairs("random generators", _generators(model), self._generators),
            *_pairs("loss scaling", _loss_scaling(model), self._loss_scaling),
        ]
        for variable, value in pairs:
            variable.assign(value)
        if not self.progress.is_over:
            set_random_state(self._random)

    def check_epoch(self, epoch: int) -> None:
        """Warn if a `fit` that begins with `epoch` does not go on where this ended."""
        progress = self.progress
        if progress.is_over:
            return  # a new `fit`, which may well count from 0
        done = progress.batches - progress.batches_before
        whole = done > 0 if progress.steps is None else done == progress.steps
        following = progress.epoch + whole
        if (done and not whole) or following != epoch:
            warnings.warn(
                f"The state was saved after {done} batches of epoch {progress.epoch} "
                f"(from 0), and `fit` goes on with the first batch of epoch {epoch}: "
                "the run is not the one that was interrupted. Save at the end of an "
                "epoch and pass `initial_epoch` to `fit`; `backup_dir` of "
                "SparseMaskCallback does both by itself.",
                stacklevel=3,
            )


def _without_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value with names in the place of its arrays, which are added to `arrays`."""
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {key: _without_arrays(each, arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(each, arrays) for each in value]
    return value


def _with_arrays(value: Any, arrays: Arrays) -> Any:
    """Undo `_without_arrays`."""
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _with_arrays(each, arrays) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_arrays(each, arrays) for each in value]
    return value


def _listed(values: list[Any]) -> list[np.ndarray]:
    if not all(isinstance(value, np.ndarray) for value in values):
        raise ValueError("there is something else in the place of an array")
    return values


def _generators(model: keras.Model) -> list[keras.Variable]:
    """States of Keras's random generators, which are not weights."""
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
