"""Reading scores: any float array, one at a time, in chunks."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np


def to_numpy(path: str, array: Any) -> np.ndarray:
    """The scores of one variable, if float32 or float64 holds them exactly."""
    if isinstance(array, keras.Variable) or keras.ops.is_tensor(array):
        array = keras.ops.convert_to_numpy(array)
    array = np.asarray(array)
    # Kind V: bfloat16 and its like. Integers are more often a mistake than scores.
    narrow = array.dtype.kind in "fV" and np.can_cast(array.dtype, np.float32)
    if not narrow and not is_float64(array.dtype):
        raise TypeError(
            f"Scores must be arrays of a float type up to float64. Received "
            f"{array.dtype} for {path!r}; convert them, e.g. with astype('float32')."
        )
    return array


def is_float64(dtype: np.dtype) -> bool:
    """Whether float32 would round such numbers."""
    return dtype.kind == "f" and dtype.itemsize == 8


def index_dtype(size: int) -> np.dtype:
    """The dtype of flat indices into a variable with `size` scalars."""
    return np.dtype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)


class Subset(Mapping):
    """Some of the arrays of a mapping, each read when it is asked for."""

    def __init__(self, scores: Mapping[str, Any], paths: Iterable[str]):
        self._scores, self._paths = scores, dict.fromkeys(paths)

    def __getitem__(self, path: str) -> Any:
        if path not in self._paths:
            raise KeyError(path)
        return self._scores[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
