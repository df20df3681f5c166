"""Saved optimizer state, checked before it is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

_STATISTIC = "non_trainable_"  # key of the anchors that are no optimizer variables


def check_saved_state(
    store: Mapping[str, Any], variables: Sequence[keras.Variable], optimizer: str
) -> None:
    """Raise a ValueError if `store` does not hold the state of `variables`.

    Keras saves optimizer state by position and only warns when the number differs;
    training would then go on from an empty state.
    """
    shapes = [tuple(variable.shape) for variable in variables]
    saved = [tuple(store[key].shape) for key in sorted(store.keys(), key=int)]
    if saved == shapes:
        return
    if len(saved) != len(shapes):
        difference = f"{len(saved)} variables instead of {len(shapes)}"
    else:
        shape, wanted, variable = next(
            triple
            for triple in zip(saved, shapes, variables, strict=True)
            if triple[0] != triple[1]
        )
        difference = f"shape {shape} instead of {wanted} for {variable.path}"
    raise ValueError(
        f"The saved state does not belong to this {optimizer}: it has {difference}. "
        "It was saved with another model or with other arguments of the optimizer. "
        "Build model and optimizer as they were when the state was saved."
    )


def save_non_trainable(store: Any, anchors: Sequence[np.ndarray]) -> None:
    """Add the anchors of non-trainable variables to a saved optimizer state."""
    for i, anchor in enumerate(anchors):
        store[f"{_STATISTIC}{i}"] = anchor


def split_non_trainable(
    store: Any,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return what Keras saved, and what `save_non_trainable` added to it."""
    keys = list(store.keys())  # Keras's store is no mapping
    own = {key: store[key] for key in keys if not key.startswith(_STATISTIC)}
    count = len(keys) - len(own)
    return own, [np.array(store[f"{_STATISTIC}{i}"]) for i in range(count)]
