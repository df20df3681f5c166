"""Data in the forms that `fit` takes: their length, their parts, single examples."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

_NO_BATCH = "Expected a tuple of arrays (x, y), or a data set of batches. Received: {}."


def fit_arguments(data: Any, batch_size: int | None) -> dict[str, Any]:
    """Return the arguments by which `fit` takes `data`.

    Raises:
        ValueError: if there are no data, or `batch_size` is given with a data set.
    """
    if data is None:
        raise ValueError(
            "Received no data. Pass a tuple of arrays (x, y), or a data set of batches."
        )
    if isinstance(data, tuple):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return {
            "x": x,
            "y": y,
            "sample_weight": sample_weight,
            "batch_size": batch_size,
        }
    if batch_size is not None:
        raise ValueError(
            f"`batch_size` is for arrays. Received: batch_size={batch_size} with a "
            f"{type(data).__name__}, which brings its own batches."
        )
    # What `fit` would ignore it only warns about.
    return {"x": data, "shuffle": isinstance(data, keras.utils.PyDataset)}


def batches_per_epoch(data: Any, batch_size: int | None) -> int | None:
    """Return the number of batches in one pass, `None` if the data do not say."""
    if isinstance(data, tuple):
        return math.ceil(_count_rows(data) / (batch_size or 32))
    try:
        return len(data)
    except TypeError:  # a generator, or an endless or filtered tf.data.Dataset
        return None


def split(data: Any, validation_split: float) -> tuple[tuple, tuple]:
    """Return the first rows of arrays, and the last ones for validation, as `fit` does.

    Raises:
        ValueError: if `data` are not arrays, or one of the two parts is empty.
    """
    if not isinstance(data, tuple):
        raise ValueError(
            "`validation_split` is for arrays. Received: validation_split="
            f"{validation_split} with a {type(data).__name__}. Split the data set "
            "itself, and pass `validation_data=`."
        )
    rows = _count_rows(data)
    first = math.floor(rows * (1.0 - validation_split))
    if not 0 < first < rows:
        raise ValueError(
            "`validation_split` must leave rows for training and for validation. "
            f"Received: validation_split={validation_split} of {rows} rows."
        )
    return take_rows(data, 0, first), take_rows(data, first, rows)


def take_rows(arrays: Any, start: int, stop: int) -> Any:
    """Return some rows of arrays in any nesting."""
    if arrays is None:
        return None
    if isinstance(arrays, dict):
        return {name: take_rows(value, start, stop) for name, value in arrays.items()}
    if isinstance(arrays, tuple | list) and not _is_one_array(arrays):
        return type(arrays)(take_rows(value, start, stop) for value in arrays)
    return arrays[start:stop]


def _count_rows(data: tuple) -> int:
    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    arrays = x if y is None else y
    while isinstance(arrays, dict | tuple | list) and not _is_one_array(arrays):
        arrays = next(iter(arrays.values() if isinstance(arrays, dict) else arrays))
    return len(arrays)


def _is_one_array(arrays: Any) -> bool:
    """Whether a list holds scalars, such as strings, and not arrays."""
    return isinstance(arrays, list) and np.ndim(arrays[0]) == 0


def each_batch(
    data: Any, batch_size: int, preprocess: Callable[..., Any] | None
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield `(x, y, sample_weight)` of every batch, as NumPy arrays.

    Args:
        data: Arrays, of which a batch takes `batch_size` rows, or a data set.
        batch_size: For arrays only.
        preprocess: As in `single_examples`.

    Raises:
        ValueError: if `data` are neither.
    """
    batches: Iterator[Any]
    if isinstance(data, tuple):
        starts = range(0, _count_rows(data), batch_size)
        batches = (take_rows(data, i, i + batch_size) for i in starts)
    elif isinstance(data, keras.utils.PyDataset):
        length = batches_per_epoch(data, None)
        indices = itertools.count() if length is None else range(length)
        batches = (data[i] for i in indices)
    else:
        try:
            batches = iter(data)
        except TypeError:
            raise ValueError(_NO_BATCH.format(repr(data))) from None
    for batch in batches:
        yield keras.utils.unpack_x_y_sample_weight(_in_numpy(batch, preprocess))


def first_batch(
    data: Any, batch_size: int, preprocess: Callable[..., Any] | None
) -> tuple[Any, Any, Any]:
    """Return the first batch of `each_batch`.

    Raises:
        ValueError: if there is none.
    """
    for batch in each_batch(data, batch_size, preprocess):
        return batch
    raise ValueError(_NO_BATCH.format(repr(data)))


def single_examples(
    batches: Any,
    preprocess: Callable[..., Any] | None,
    class_weight: Mapping[int, float] | None = None,
    limit: int | None = None,
) -> Iterator[Any]:
    """Yield the rows of `batches` as batches of one row.

    Args:
        batches: Any data set that can be iterated over.
        preprocess: Applied to each batch as `preprocess(x, y, sample_weight)`.
        class_weight: As in `fit`, which does not take it with a generator.
        limit: At most so many batches.
    """
    for batch in itertools.islice(batches, limit):
        arrays = _in_numpy(batch, preprocess)
        if class_weight is not None:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(arrays)
            arrays = (x, y, weights_of_classes(y, class_weight))
        for i in range(len(tree.flatten(arrays)[0])):
            yield tree.map_structure(lambda array, i=i: array[i : i + 1], arrays)


def weights_of_classes(y: np.ndarray, class_weight: Mapping[int, float]) -> np.ndarray:
    """Return the weight of every row by its class, as `fit` does."""
    if y.ndim > 1:
        y = y[..., 0] if y.shape[-1] == 1 else np.argmax(y, axis=-1)
    return np.array([class_weight.get(int(i), 1.0) for i in np.round(y)], "float32")


def _in_numpy(batch: Any, preprocess: Callable[..., Any] | None) -> Any:
    if preprocess is not None:
        batch = preprocess(*keras.utils.unpack_x_y_sample_weight(batch))
    return tree.map_structure(ops.convert_to_numpy, batch)
