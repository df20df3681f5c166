"""Callbacks that hear of stage 2 only, as if `fit` had begun with it."""

from collections.abc import Iterable
from typing import Any

import keras


class StageTwoCallbacks:
    """Keras callbacks that begin at the switch.

    They get `on_train_begin` at the switch and every other hook from the first epoch
    that begins in stage 2: the logs of an epoch with the switch inside are of both
    stages.

    Args:
        callbacks: The callbacks, in order.
        optimizer: The one of stage 2; `None` if there is no stage 2.

    Raises:
        TypeError: if one of them is not a Keras callback.
        ValueError: if one of them has to see stage 1 as well, or cannot work in
            stage 2, or if there is none.
    """

    def __init__(
        self,
        callbacks: Iterable[keras.callbacks.Callback],
        optimizer: keras.optimizers.Optimizer | None,
    ):
        """Check the callbacks."""
        self.callbacks = tuple(callbacks)
        if self.callbacks and optimizer is None:
            raise ValueError(
                "`stage_2_callbacks` need a stage 2: give a `finetune_optimizer`, or "
                "pass them to the `fit` that trains with the mask."
            )
        check_are_callbacks(self.callbacks)
        if any(isinstance(c, keras.callbacks.BackupAndRestore) for c in self.callbacks):
            raise ValueError(
                "BackupAndRestore saves both stages: pass it to `fit`, beside "
                "SparseMaskCallback, and not in `stage_2_callbacks`."
            )
        refuse_swapping(self.callbacks)
        self._has_begun = False
        self._is_in_epoch = False

    def begin(self, model: keras.Model, params: dict[str, Any]) -> None:
        """Begin, unless they have."""
        if self._has_begun:
            return
        self._has_begun = True
        for callback in self.callbacks:
            callback.set_params(params)
            callback.set_model(model)
        self._call("on_train_begin", None)

    def epoch_begin(self, epoch: int, logs: Any) -> None:
        """An epoch begins, of stage 2 if they have begun."""
        self._is_in_epoch = self._has_begun
        self.hear("on_epoch_begin", epoch, logs)

    def hear(self, hook: str, *arguments: Any) -> None:
        """Call a hook, if the present epoch is one of theirs."""
        if self._is_in_epoch:
            self._call(hook, *arguments)

    def end(self, logs: Any) -> None:
        """`fit` ends, for those that have begun."""
        if self._has_begun:
            self._call("on_train_end", logs)
        self.forget()

    def forget(self) -> None:
        """A new `fit`: the last one may have ended with an exception."""
        self._has_begun = self._is_in_epoch = False

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)


def check_are_callbacks(callbacks: Iterable[Any]) -> None:
    """Raise a TypeError for what is not a Keras callback."""
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                "`stage_2_callbacks` must hold Keras callbacks such as "
                f"keras.callbacks.EarlyStopping(patience=3). Received: {callback!r}."
            )


def refuse_swapping(callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Raise for a `SwapEMAWeights`: in stage 2 it would fail, after all of stage 1.

    It looks for an average of each weight, and there are those of selected scalars.
    """
    if any(isinstance(c, keras.callbacks.SwapEMAWeights) for c in callbacks):
        raise ValueError(
            "SwapEMAWeights cannot swap the moving averages of stage 2, which are of "
            "the selected scalars only. Leave it out: with `use_ema=True` in the "
            "`finetune_optimizer`, `fit` ends with the averages, and "
            "`ema_overwrite_frequency` sets them meanwhile."
        )
