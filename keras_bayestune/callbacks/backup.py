"""The whole state of a `fit` of two stages, in one file, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bayestune.callbacks import state_file
from keras_bayestune.callbacks.result import Result
from keras_bayestune.callbacks.state_file import StateFile
from keras_bayestune.masks import SparseMask
from keras_bayestune.updates.random_state import random_state, set_random_state

_NAME = "state.safetensors"


@dataclass(frozen=True)
class Progress:
    """What the callback itself knows at the start of an epoch."""

    epoch: int  # the one that comes next, from 0
    batches: int  # since the first epoch
    numbers: dict[str, float]  # logged so far
    result: Result | None  # of stage 1, once that is over
    non_trainable: list[np.ndarray]  # anchors, until stage 1 is over
    trace: tuple[int, np.ndarray, np.ndarray] | None  # count, samples, running total


class Backup:
    """One file in a folder: model, optimizer, random generators, callback.

    It is replaced as a whole, so that a kill at any moment leaves the last state.

    Args:
        folder: Where the file lies; created when first written to.
    """

    def __init__(self, folder: Path):
        self._path = folder / _NAME

    def save(self, model: keras.Model, progress: Progress) -> None:
        """Write the state of the model, its optimizer and `progress`."""
        variables = [*model.variables, *model.optimizer.variables]
        arrays: list[tuple[str, Any]] = [
            (f"variable.{i}", variable) for i, variable in enumerate(variables)
        ]
        generators = random_state()
        arrays += [(f"random.{i}", state) for i, state in enumerate(generators)]
        document: dict[str, Any] = {
            "random": len(generators),
            "epoch": progress.epoch,
            "batches": progress.batches,
            "numbers": progress.numbers,
            "paths": [variable.path for variable in model.variables],
            "optimizer": len(model.optimizer.variables),
            "non_trainable": len(progress.non_trainable),
            "result": None,
            "trace": None,
        }
        arrays += [
            (f"non_trainable.{i}", anchor)
            for i, anchor in enumerate(progress.non_trainable)
        ]
        if progress.result is not None:
            document["result"] = _describe(progress.result, arrays)
        if progress.trace is not None:
            document["trace"], samples, total = progress.trace
            arrays += [("trace.samples", samples), ("trace.total", total)]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state_file.write(self._path, document, arrays)

    def open(self) -> "Saved | None":
        """Return what was saved last, `None` if nothing was."""
        # What a kill while writing left behind.
        for unfinished in self._path.parent.glob(f".{_NAME}.*"):
            unfinished.unlink()
        return Saved(StateFile(self._path)) if self._path.exists() else None

    def delete(self) -> None:
        """Delete the file, and its folder if that is empty then."""
        self._path.unlink(missing_ok=True)
        folder = self._path.parent
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class Saved:
    """A state file of this kind, its document checked."""

    def __init__(self, file: StateFile):
        self._file = file
        try:
            document = file.document
            self._paths = list(document["paths"])
            self._in_optimizer = int(document["optimizer"])
            self._random = _read_list(file, "random", document)
            self.progress = Progress(
                epoch=int(document["epoch"]),
                batches=int(document["batches"]),
                numbers=dict(document["numbers"]),
                non_trainable=_read_list(file, "non_trainable", document),
                result=_read_result(file, document["result"]),
                trace=_read_trace(file, document["trace"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise file.unusable(
                f"Its content does not fit together: {error}."
            ) from error

    def restore(self, model: keras.Model) -> None:
        """Give model and optimizer, which must be built, what they had.

        Raises:
            ValueError: the state is that of another model or optimizer; nothing was
                changed.
        """
        variables = [*model.variables, *model.optimizer.variables]
        paths = [variable.path for variable in model.variables]
        counts = len(self._paths), self._in_optimizer
        if counts != (len(model.variables), len(model.optimizer.variables)):
            raise self._file.unusable(
                "It is of another run: it has {} variables of the model and {} of the "
                "optimizer".format(*counts)
                + f", here are {len(model.variables)} and "
                f"{len(model.optimizer.variables)}."
            )
        differing = next(
            (pair for pair in zip(self._paths, paths, strict=True) if len({*pair}) > 1),
            None,
        )
        if differing is not None:
            raise self._file.unusable(
                f"It is of another run: {differing[0]!r:.200} there is "
                f"{differing[1]!r} here. Automatic names are numbered within a "
                "process: keras.utils.clear_session() before the model is built starts "
                "them anew, as in a new process."
            )
        for i, variable in enumerate(variables):
            dtype, shape, _ = self._file.arrays.get(f"variable.{i}", (None, None, 0))
            wanted = keras.backend.standardize_dtype(variable.dtype)
            if (_kind(dtype), shape) != (_kind(wanted), tuple(variable.shape)):
                raise self._file.unusable(
                    f"It is of another run: {variable.path} is {dtype} {shape} there, "
                    f"{wanted} {tuple(variable.shape)} here."
                )
        for i, variable in enumerate(variables):
            variable.assign(self._file.read(f"variable.{i}"))
        set_random_state(self._random)


def _kind(dtype: Any) -> str:
    """A dtype's name; Keras counts in int64 on TensorFlow and int32 elsewhere."""
    return "int" if str(dtype) in ("int32", "int64") else str(dtype)


def _read_trace(
    file: StateFile, count: int | None
) -> tuple[int, np.ndarray, np.ndarray] | None:
    if count is None:
        return None
    return int(count), file.read("trace.samples"), file.read("trace.total")


def _read_list(
    file: StateFile, name: str, document: dict[str, Any]
) -> list[np.ndarray]:
    return [file.read(f"{name}.{i}") for i in range(int(document[name]))]


def _describe(result: Result, arrays: list[tuple[str, Any]]) -> dict[str, Any]:
    """The document of a result, whose arrays are added to `arrays`."""
    mask = result.mask
    groups = {"mask": mask.indices, "scores": result.scores, "anchors": result.anchors}
    for name, group in groups.items():
        arrays += [(f"{name}.{i}", array) for i, array in enumerate(group.values())]
    return {
        **{name: list(group) for name, group in groups.items()},
        "shapes": [list(shape) for shape in mask.shapes.values()],
        "always": mask.always,
        "mean_scores": dict(mask.mean_scores),
        "candidates": mask.candidates,
        "skipped_steps": result.skipped_steps,
        "metadata": result.metadata,
    }


def _read_result(file: StateFile, document: Any) -> Result | None:
    if document is None:
        return None

    def arrays(name: str) -> dict[str, np.ndarray]:
        return {path: file.read(f"{name}.{i}") for i, path in enumerate(document[name])}

    return Result(
        mask=SparseMask(
            arrays("mask"),
            dict(zip(document["mask"], document["shapes"], strict=True)),
            always=document["always"],
            mean_scores=document["mean_scores"],
            candidates=document["candidates"],
        ),
        scores=arrays("scores"),
        anchors=arrays("anchors"),
        skipped_steps=int(document["skipped_steps"]),
        metadata=dict(document["metadata"]),
    )
