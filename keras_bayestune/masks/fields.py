"""The fields of a mask, checked, in the form that a mask keeps them."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from keras_bayestune.selection import index_dtype

_MOST_SCALARS = 2**63 - 1  # what an int64 index can reach


def checked_shape(path: str, shape: Iterable[int]) -> tuple[int, ...]:
    """The shape as Python integers, if an index can reach all of it."""
    shape = tuple(shape)
    size = 1
    for length in shape:
        if not isinstance(length, Integral) or not 0 <= length <= _MOST_SCALARS:
            raise ValueError(
                f"Shape of {path!r}: integers from 0 expected. Received: {shape!r:.70}"
            )
        size *= max(1, length)
        if size > _MOST_SCALARS:
            raise ValueError(
                f"{path!r} has more scalars than an index can reach: shape {shape}."
            )
    return tuple(int(length) for length in shape)


def checked_positions(path: str, positions: Any, size: int) -> np.ndarray:
    """A read-only copy, once the positions are known to be ascending and in range."""
    positions = np.asarray(positions)
    if not positions.size:
        positions = positions.reshape(-1).astype(np.int32)
    if positions.dtype.kind not in "iu":
        raise TypeError(
            f"Positions must be integers. Received {positions.dtype} for {path!r}; "
            "np.flatnonzero turns a boolean mask into positions."
        )
    if positions.ndim != 1:
        raise ValueError(
            f"Positions must be flat (one axis, C order). Received shape "
            f"{positions.shape} for {path!r}."
        )
    if (positions[1:] <= positions[:-1]).any():
        raise ValueError(
            f"Positions must ascend, each at most once. Those of {path!r} do not; "
            "np.unique sorts them."
        )
    if positions.size and not (positions[0] >= 0 and positions[-1] < size):
        raise ValueError(
            f"Positions of {path!r} must be from 0 to {size - 1}. Received "
            f"{positions[0]} to {positions[-1]}."
        )
    positions = positions.astype(index_dtype(size))  # always a copy
    positions.setflags(write=False)
    return positions


def checked_always(
    always: Iterable[str],
    indices: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str, ...]:
    """The paths, each once, if they are known and whole."""
    always = tuple(dict.fromkeys(always))
    _check_known("always", always, shapes)
    for path in always:
        if len(indices[path]) != math.prod(shapes[path]):
            raise ValueError(
                f"{path!r} is in `always`, so all of its {math.prod(shapes[path])} "
                f"scalars must be chosen. Received {len(indices[path])} positions."
            )
    return always


def checked_means(
    means: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """A copy, if the paths are known and the numbers finite."""
    if not isinstance(means, Mapping):
        raise TypeError(
            "`mean_scores` must be a mapping {path: number}. Received: "
            f"{type(means).__name__}."
        )
    _check_known("mean_scores", means, shapes)
    for path, mean in means.items():
        if not isinstance(mean, Real) or not math.isfinite(mean):
            raise ValueError(
                f"`mean_scores` must be finite. Received {mean!r} for {path!r}."
            )
    return {path: float(mean) for path, mean in means.items()}


def checked_fractions(fractions: Iterable[float]) -> tuple[float, ...]:
    """A copy, if all are fractions."""
    fractions = tuple(fractions)
    if not all(isinstance(f, Real) and 0 < f <= 1 for f in fractions):
        raise ValueError(
            f"`candidates` must be fractions in (0, 1]. Received: {fractions}."
        )
    return tuple(float(fraction) for fraction in fractions)


def _check_known(name: str, paths: Iterable[str], shapes: Mapping[str, Any]) -> None:
    unknown = [path for path in paths if path not in shapes]
    if unknown:
        raise ValueError(f"`{name}` has paths that are not in `shapes`: {unknown[:5]}.")
