"""Where stage 2 starts: at the anchors, or where stage 1 left the selected scalars."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.masks import SparseMask
from keras_bayestune.paths import variables_by_path
from keras_bayestune.selectors.selector import scored_variables

# Each with what it makes of the weights.
STARTS = {
    "anchors": "the pre-trained ones",
    "last values": "the pre-trained ones, at the selected scalars the last of stage 1",
    "last state": "the last ones of stage 1",
}
OF_A_DELTA = "anchors", "last values"  # where what is not selected is as pre-trained


def check_start(start: str, allowed: tuple[str, ...] = tuple(STARTS)) -> str:
    """Return the argument `stage_2_start`, checked."""
    if start not in allowed:
        raise ValueError(
            f"`stage_2_start` must be one of {', '.join(map(repr, allowed))}. "
            f"Received: {start!r}."
        )
    return start


class LastWeights(keras.callbacks.Callback):
    """Copies trainable weights as the last `fit` leaves them, into host memory.

    Args:
        without: Variables to leave out.

    Attributes:
        values: `{id of the variable: array}`; empty before the first `fit` has ended.
    """

    def __init__(self, without: Iterable[keras.Variable] = ()):
        """Begin with none."""
        super().__init__()
        self._without = {id(variable) for variable in without}
        self.values: dict[int, np.ndarray] = {}

    def on_train_end(self, logs: Any = None) -> None:
        """Copy them: moving averages, if the optimizer keeps any."""
        self.values = {
            id(v): np.array(ops.convert_to_numpy(v))
            for v in self.model.trainable_variables
            if id(v) not in self._without
        }


def last_weights(
    model: keras.Model, exclude: Sequence[str], stage_2_start: str
) -> LastWeights:
    """Return the callback for a selector that keeps what stage 2 starts from.

    Args:
        model: The model.
        exclude: What does not compete, as in `Selector.scores`.
        stage_2_start: One of `OF_A_DELTA`; with "anchors" what competes goes back.
    """
    goes_back = stage_2_start == "anchors"
    return LastWeights(without=scored_variables(model, exclude) if goes_back else ())


def selected_values(
    model: keras.Model,
    mask: SparseMask,
    values: Mapping[int, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return `{path: values of the selected scalars}` of the trainable weights.

    Args:
        model: The model.
        mask: What is selected.
        values: Those of `LastWeights` in place of the present ones.
    """
    found = {}
    indices = mask.match(model.trainable_variables)
    for path, variable in variables_by_path(model.trainable_variables).items():
        if values is None:
            array = ops.convert_to_numpy(variable)
        elif id(variable) in values:
            array = values[id(variable)]
        else:
            continue
        if len(indices.get(path, ())):
            found[path] = array.reshape(-1)[indices[path]]
    return found


def give_to_selected(
    model: keras.Model, mask: SparseMask, values: Mapping[str, np.ndarray]
) -> None:
    """Give the selected scalars the values of `selected_values`; no other changes."""
    indices = mask.match(model.trainable_variables)
    for path, variable in variables_by_path(model.trainable_variables).items():
        if path in values:
            array = np.array(ops.convert_to_numpy(variable))
            array.reshape(-1)[indices[path]] = values[path]
            variable.assign(array)
