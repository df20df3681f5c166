"""The fields of a posterior, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_bayestune.deltas import SparseDelta
from keras_bayestune.deltas.displacements import align


def checked_deltas(deltas: Sequence[SparseDelta]) -> tuple[SparseDelta, ...]:
    """Return the deltas, if they are some, of one base."""
    deltas = (deltas,) if isinstance(deltas, SparseDelta) else tuple(deltas)
    for delta in deltas:
        if not isinstance(delta, SparseDelta):
            raise TypeError(
                f"`deltas` must hold SparseDelta. Received: {type(delta).__name__}."
            )
    if not deltas:
        raise ValueError("A posterior needs at least one delta. Received none.")
    align([delta.variables for delta in deltas])  # raises for different bases
    return deltas


def checked_deviations(
    deviations: Sequence[Mapping[str, Any]] | None, deltas: Sequence[SparseDelta]
) -> tuple[dict[str, np.ndarray], ...]:
    """Return `{path: read-only float32 array}` for each delta, empty without noise."""
    if deviations is None:
        return tuple({} for _ in deltas)
    if len(deviations) != len(deltas):
        raise ValueError(
            "`deviations` must hold one mapping for each delta. Received: "
            f"{len(deviations)} for {len(deltas)} deltas."
        )
    return tuple(
        {path: _checked(path, value, delta) for path, value in own.items()}
        for own, delta in zip(deviations, deltas, strict=True)
    )


def _checked(path: str, deviation: Any, delta: SparseDelta) -> np.ndarray:
    if path not in delta.variables:
        raise ValueError(
            f"`deviations` has the path {path!r}, which the delta lacks. Its paths are "
            "the keys of `delta.variables`."
        )
    deviation = np.array(deviation, np.float32)
    count = len(delta.variables[path].values)
    if deviation.shape != (count,):
        raise ValueError(
            f"The deviations of {path!r} must have shape ({count},), one for each "
            f"stored scalar. Received: shape {deviation.shape}."
        )
    if not (np.isfinite(deviation).all() and (deviation >= 0).all()):
        raise ValueError(
            f"The deviations of {path!r} must be finite numbers >= 0. Received: "
            f"{deviation.min():.3g} to {deviation.max():.3g}."
        )
    deviation.flags.writeable = False
    return deviation
