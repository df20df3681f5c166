"""The other callbacks of the same `fit`: which they are, and who ends last."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras


def callback_list() -> keras.callbacks.CallbackList | None:
    """Return the list whose hook is running; `None` if something else called it.

    Keras 3.15 gives a callback no way to the list that it is in, so this asks the
    callers, of which the list is the nearest but one or two.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return caller
        frame = frame.f_back
    return None


def warn_of_metrics(beside: keras.callbacks.CallbackList) -> None:
    """Warn of callbacks that would compare the metrics of the two stages."""
    names = [
        type(callback).__name__
        for callback in beside.callbacks
        if isinstance(
            callback, keras.callbacks.EarlyStopping | keras.callbacks.ReduceLROnPlateau
        )
        or isinstance(callback, keras.callbacks.ModelCheckpoint)
        and callback.save_best_only
    ]
    if names:
        warnings.warn(
            f"{', '.join(names)} will see the metrics of stage 1, in which all weights "
            "move under noise: it may stop the run, lower the rate or keep weights "
            "that are not sparse. Pass it in SparseMaskCallback(stage_2_callbacks="
            "[...]), not to `fit`.",
            stacklevel=2,
        )


def restart(beside: keras.callbacks.CallbackList) -> None:
    """Have callbacks that compare epochs forget those of stage 1, and its weights."""
    for callback in beside.callbacks:
        if isinstance(
            callback, keras.callbacks.EarlyStopping | keras.callbacks.ReduceLROnPlateau
        ):
            callback.on_train_begin()


class Last(keras.callbacks.Callback):
    """Put behind all others, to see what they leave at the end of `fit`.

    Args:
        beside: The list; it is left as it was.
        function: Called when all others have ended.
    """

    def __init__(
        self, beside: keras.callbacks.CallbackList, function: Callable[[], None]
    ):
        """Join the list."""
        super().__init__()
        self._beside, self._function = beside, function
        beside.callbacks.append(self)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the list and call the function."""
        self._beside.callbacks.remove(self)
        self._function()
