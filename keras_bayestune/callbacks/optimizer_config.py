"""The arguments of an optimizer, where some of them cannot be saved."""

from typing import Any

import keras


def config_of(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return `get_config()`, with the name of a schedule that has none of its own.

    Such a schedule trains under any Keras optimizer; only saving needs its config.
    """
    try:
        return optimizer.get_config()
    except NotImplementedError:
        # The same object but for the rate, which is all that the config asks of it.
        like = object.__new__(type(optimizer))
        vars(like).update(vars(optimizer), _learning_rate=None)
        schedule = type(optimizer._learning_rate).__name__
        return {**like.get_config(), "learning_rate": schedule}
