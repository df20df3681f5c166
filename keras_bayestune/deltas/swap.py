"""Exchanges a few scalars of a model: checked first, then written, and undone exactly.

Memory is that of the exchanged scalars; `check_base` alone reads whole variables,
one at a time.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_bayestune.deltas.model_variables import Target, read_variable
from keras_bayestune.deltas.variable import checksum


def variable_checksum(variable: keras.Variable) -> int:
    """Checksum of a whole variable."""
    return checksum(read_variable(variable))


def check_base(
    targets: Sequence[Target],
    checksum_of: Callable[[keras.Variable], int] = variable_checksum,
) -> None:
    """Raise unless every variable holds what it held when the delta was made.

    Variables stored whole may hold anything.

    Args:
        targets: Variables of the model and what is stored of each.
        checksum_of: The checksum of a variable of the model.

    Raises:
        ValueError: Some variables differ.
    """
    _raise_if_not_base(
        [
            target
            for target in targets
            if not target.delta.is_whole
            and checksum_of(target.variable) != target.delta.checksum
        ],
        len(targets),
    )


def swap_in(targets: Sequence[Target]) -> list[np.ndarray]:
    """Write the new values and return the old ones, in the order of `targets`.

    Raises:
        ValueError: The values at the selected indices are not the base's. Nothing
            was written.
    """
    old = read_base(targets)
    _write_all(targets, [target.delta.new_values for target in targets], old)
    return old


def read_base(targets: Sequence[Target]) -> list[np.ndarray]:
    """The values at the selected indices, in the order of `targets`.

    Raises:
        ValueError: They are not the base's.
    """
    values = [target.read() for target in targets]
    _raise_if_not_base(
        [
            target
            for target, read in zip(targets, values, strict=True)
            if not target.delta.is_whole
            and checksum(read) != target.delta.base_checksum
        ],
        len(targets),
    )
    return values


def swap_out(targets: Sequence[Target], old: Sequence[np.ndarray]) -> None:
    """Write back what `swap_in` returned; nothing if somebody has done so already.

    Raises:
        ValueError: The values at the selected indices are no longer those that
            `swap_in` wrote. Nothing was written.
    """
    new = [target.delta.new_values for target in targets]
    changed = _differing(targets, new)
    if changed:
        if not _differing(targets, old):
            return
        raise ValueError(
            "The model has changed since the delta was applied: "
            f"{len(changed)} of {len(targets)} variables differ, e.g. {changed[0]}. "
            "Reverting would mix two states. If it was trained on, make a new delta "
            "of it; to get the base back, load the base weights."
        )
    _write_all(targets, old, new)


def holds_new(targets: Sequence[Target]) -> bool:
    """Whether the values at the selected indices are those that `swap_in` writes."""
    return not _differing(targets, [target.delta.new_values for target in targets])


def _differing(targets: Sequence[Target], values: Sequence[np.ndarray]) -> list[str]:
    """Paths of the variables that hold other bits than `values`."""
    return [
        target.variable.path
        for target, expected in zip(targets, values, strict=True)
        if target.read().tobytes() != expected.tobytes()
    ]


def _raise_if_not_base(different: Sequence[Target], count: int) -> None:
    if different:
        names = ", ".join(target.variable.path for target in different[:3])
        raise ValueError(
            "This model is not the base that the delta was made from: "
            f"{len(different)} of {count} variables hold other values ({names}"
            f"{', ...' if len(different) > 3 else ''}). If another delta is applied, "
            "revert it; if the model was trained, load the base weights. If they are "
            "just loaded, the delta was made from others: from another release of the "
            "preset, or at another precision."
        )


def _write_all(
    targets: Sequence[Target],
    values: Sequence[np.ndarray],
    before: Sequence[np.ndarray],
) -> None:
    """Write all values, or none: what was written is put back on any error."""
    done = 0
    try:
        for target, new in zip(targets, values, strict=True):
            target.write(new)
            done += 1
    except BaseException as error:
        # The one that failed may be half written.
        for target, old in zip(targets[: done + 1], before, strict=False):
            try:
                target.write(old)
            except Exception as other:
                error.add_note(f"{target.variable.path} was not put back: {other}")
        raise
