"""What a model puts out under each of several deltas, the model being lent for it."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_bayestune.deltas import DeltaSet, SparseDelta, swap
from keras_bayestune.deltas.model_variables import pair_with_model
from keras_bayestune.selectors.batches import take_rows


def outputs_under(
    model: keras.Model,
    deltas: Iterable[SparseDelta],
    count: int,
    x: Any,
    batch_size: int,
    verbose: str | int,
) -> Iterator[np.ndarray]:
    """Yield the outputs for `x` under each delta; between two the model is the base.

    The base is checked once, against all deltas; a swap then reads and writes the
    selected scalars only.

    Args:
        model: The base model of the deltas, with its base values.
        deltas: Deltas of that base, made one at a time.
        count: How many there are, for the progress bar.
        x: Inputs of `model`: arrays, or a data set that can be read again and again.
        batch_size: Rows of a batch, for arrays.
        verbose: 0 for no progress bar; "auto" or 1 for one over all batches.

    Raises:
        ValueError: The model is not the base, or `x` is empty or an iterator.
    """
    lent = DeltaSet(model)
    batches = batches_of(x, batch_size)
    # Keras reads the target when it draws, so a length found later is drawn later.
    bar = keras.utils.Progbar(None, verbose=int(verbose != 0), unit_name="batch")
    done = 0
    for delta in deltas:
        lent.add("draw", delta)
        found = []
        with lent.using("draw"):
            for batch in batches:
                # Not `predict`, which on JAX takes the weights out of the model and
                # puts them back at its end, and so never after an error (Keras 3.15).
                found.append(ops.convert_to_numpy(model.predict_on_batch(batch)))
                done += 1
                bar.update(done)
        lent.remove("draw")
        if bar.target is None:
            bar.target = count * len(found)
        if not found:
            raise ValueError("`x` has no batch. Pass at least one example.")
        yield np.concatenate(found)
    bar.update(done, finalize=True)


def batches_of(x: Any, batch_size: int) -> Any:
    """Return the batches of `x` as something that can be iterated again and again.

    Raises:
        ValueError: `x` is an iterator, which can be read once.
    """
    if isinstance(x, Iterator):
        raise ValueError(
            "`x` is read once for each draw, and an iterator such as a "
            f"{type(x).__name__} can be read once. Pass arrays, a "
            "keras.utils.PyDataset or a tf.data.Dataset."
        )
    if isinstance(x, dict | tuple | list | np.ndarray) or ops.is_tensor(x):
        return _Slices(x, batch_size)
    return _Inputs(x)


class _Slices:
    """Batches of arrays in any nesting; a list of scalars or texts is one array."""

    def __init__(self, x: Any, batch_size: int):
        if isinstance(x, list) and x and np.ndim(x[0]) == 0:
            x = np.asarray(x)
        self.x, self.size = x, batch_size
        self.rows = len(tree.flatten(x)[0])

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.rows, self.size):
            yield take_rows(self.x, start, start + self.size)


class _Inputs:
    """The inputs of a data set's batches, without labels."""

    def __init__(self, batches: Any):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.batches, keras.utils.PyDataset):
            batches = (self.batches[i] for i in range(len(self.batches)))
        else:
            batches = iter(self.batches)
        for batch in batches:
            inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            yield tree.map_structure(ops.convert_to_numpy, inputs)


@contextlib.contextmanager
def base_lent(model: keras.Model, deltas: Sequence[SparseDelta]) -> Iterator[None]:
    """Within the block a model that was tuned to one of the deltas holds the base.

    After `fit` a model holds the new values; a delta made of it knows the base ones.
    At the end, also after an error, it is as it was, bit for bit. A model that holds
    none of the deltas, or whose delta was loaded from a file, stays as it is.
    """
    for delta in deltas:
        targets = pair_with_model(delta.variables, model)
        partial = [t for t in targets if not t.delta.is_whole and len(t.delta.values)]
        base = [t.delta.base for t in partial if t.delta.base is not None]
        if partial and len(base) == len(partial) and swap.holds_new(targets):
            break
    else:
        yield
        return
    tuned = [target.read() for target in partial]
    try:
        for target, values in zip(partial, base, strict=True):
            target.write(values)
        yield
    finally:
        for target, values in zip(partial, tuned, strict=True):
            target.write(values)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64; of one column: (1 - p, p)."""
    z = np.asarray(logits, np.float64)
    if z.shape[-1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=-1)
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """`p^(1/T)`, made to add up to 1 again: what dividing logits by T makes of p."""
    smallest = math.log(np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(probabilities), smallest)
    return softmax(logits / temperature)
