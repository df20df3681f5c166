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


def checked_indices(path: str, flat_indices: Any, size: int) -> np.ndarray:
    """A read-only copy, once the indices are known to be ascending and in range."""
    flat_indices = np.asarray(flat_indices)
    if not flat_indices.size:
        flat_indices = flat_indices.reshape(-1).astype(np.int32)
    if flat_indices.dtype.kind not in "iu":
        raise TypeError(
            f"Indices must be integers. Received {flat_indices.dtype} for {path!r}; "
            "np.flatnonzero turns a boolean mask into indices."
        )
    if flat_indices.ndim != 1:
        raise ValueError(
            f"Indices must be flat (one axis, C order). Received shape "
            f"{flat_indices.shape} for {path!r}."
        )
    if (flat_indices[1:] <= flat_indices[:-1]).any():
        raise ValueError(
            f"Indices must ascend, each at most once. Those of {path!r} do not; "
            "np.unique sorts them."
        )
    if flat_indices.size and not (flat_indices[0] >= 0 and flat_indices[-1] < size):
        raise ValueError(
            f"Indices of {path!r} must be from 0 to {size - 1}. Received "
            f"{flat_indices[0]} to {flat_indices[-1]}."
        )
    flat_indices = flat_indices.astype(index_dtype(size))  # always a copy
    flat_indices.setflags(write=False)
    return flat_indices


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
                f"scalars must be selected. Received {len(indices[path])} indices."
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
