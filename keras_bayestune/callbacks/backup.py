"""The whole state of a `fit` of two stages, in one file, and back."""

from pathlib import Path
from typing import Any

import keras

from keras_bayestune.callbacks import state_file
from keras_bayestune.callbacks.progress_document import (
    Progress,
    progress_document,
    read_arrays,
    read_progress,
)
from keras_bayestune.callbacks.state_file import StateFile
from keras_bayestune.updates.random_state import random_state, set_random_state

_NAME = "state.safetensors"


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
        described, more = progress_document(progress)
        document = {
            **described,
            "random": len(generators),
            "paths": [variable.path for variable in model.variables],
            "optimizer": len(model.optimizer.variables),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state_file.write(self._path, document, [*arrays, *more.items()])

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
            self._random = read_arrays(document, "random", file.read)
            self.progress = read_progress(document, file.read)
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
