"""The whole state of a `fit` of two stages in one file, and back.

Its own file and not `keras.callbacks.BackupAndRestore`, which works beside it as well:
that writes two files in place, so that a kill can leave one that does not load or two
that do not belong together, HDF5 has no digest, and it saves at the end of an epoch,
before the callbacks behind it have ended theirs. To change that takes an own
`_save_model`, `_load_model` and `on_epoch_end`, which is all that it consists of. What
is in the file is what Keras saves: the weights, and `save_own_variables` of the
optimizer, which carries the state of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bayestune import document_file
from keras_bayestune.optimizers._unscaled import unscaled

FORMAT = document_file.Format(
    "state",
    version=1,
    writer="SparseMaskCallback(backup_dir=...)",
    fields={"paths": list},
    cure="Put back the right file, or delete it to start anew.",
)
_NAME = "state.safetensors"
_OPTIMIZER = "optimizer."


class Backup:
    """One file in a folder: model, optimizer, random generators, callback.

    It is replaced as a whole, so that a kill at any moment leaves the last state.

    Args:
        folder: Where the file lies; created when first written to.
    """

    def __init__(self, folder: Path):
        self._path = folder / _NAME

    def save(self, model: keras.Model) -> None:
        """Write the state of the model and its optimizer."""
        store: dict[str, np.ndarray] = {}
        unscaled(model.optimizer).save_own_variables(store)
        weights = model.weights
        arrays: dict[str, Any] = {f"weight.{i}": w for i, w in enumerate(weights)}
        arrays |= {f"{_OPTIMIZER}{key}": value for key, value in store.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        document = {"paths": [weight.path for weight in weights]}
        document_file.write(self._path, FORMAT, document, arrays)

    @property
    def exists(self) -> bool:
        """Whether there is a state to go on from."""
        # What a kill while writing left behind.
        for unfinished in self._path.parent.glob(f".{_NAME}.*"):
            unfinished.unlink()
        return self._path.exists()

    def restore(self, model: keras.Model) -> None:
        """Give model and optimizer, which must be built, what they had.

        Raises:
            ValueError: The state is damaged, or that of another model or optimizer;
                the model was not changed.
        """
        document_file.read(self._path, FORMAT, lambda *read: load_into(model, *read))

    def delete(self) -> None:
        """Delete the file, and its folder if that is empty then."""
        self._path.unlink(missing_ok=True)
        folder = self._path.parent
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def load_into(
    model: keras.Model, document: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Check the content of a state file against the model, and load it."""
    paths = [weight.path for weight in model.weights]
    if len(document["paths"]) != len(paths):
        raise ValueError(
            f"It is of another run: it has {len(document['paths'])} weights, the model "
            f"{len(paths)}."
        )
    for there, here in zip(document["paths"], paths, strict=True):
        if there != here:
            raise ValueError(
                f"It is of another run: {there!r:.200} there is {here!r} here. "
                "Automatic names are numbered within a process: "
                "keras.utils.clear_session() before the model is built starts them "
                "anew, as in a new process."
            )
    for i, weight in enumerate(model.weights):
        saved = arrays[f"weight.{i}"]
        dtype = keras.backend.standardize_dtype(weight.dtype)
        if (saved.dtype.name, saved.shape) != (dtype, tuple(weight.shape)):
            raise ValueError(
                f"It is of another run: {weight.path} is {saved.dtype} {saved.shape} "
                f"there, {dtype} {tuple(weight.shape)} here."
            )
    own = [name for name in arrays if name.startswith(_OPTIMIZER)]
    optimizer = unscaled(model.optimizer)
    optimizer.load_own_variables(
        {name.removeprefix(_OPTIMIZER): arrays[name] for name in own}
    )
    if optimizer.run.loaded is None:
        raise ValueError("It holds no state of a run.")
    for i, weight in enumerate(model.weights):
        weight.assign(arrays[f"weight.{i}"])
