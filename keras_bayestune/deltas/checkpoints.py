"""The difference of two checkpoints, cut down to its largest scalars."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_bayestune.deltas.capture import bits
from keras_bayestune.deltas.model_variables import floating_variables, read_variable
from keras_bayestune.deltas.variable import VariableDelta
from keras_bayestune.masks import SparseMask
from keras_bayestune.matching import match_paths

Checkpoint: TypeAlias = keras.Model | str | os.PathLike[str]


def compare(
    base: Checkpoint,
    tuned: Checkpoint,
    fraction: float | None,
    always: Iterable[str],
) -> tuple[dict[str, VariableDelta], dict[str, Any]]:
    """Variables and metadata of the delta from `base` to `tuned`.

    See `SparseDelta.from_checkpoints`.
    """
    before = floating_variables(_model(base))
    after = floating_variables(_model(tuned))
    partner = _partners(before, after)
    always = set(always)
    unknown = sorted(always - set(before))
    if unknown:
        raise ValueError(f"`always` holds paths that the base lacks: {unknown[:3]}.")
    changed = _changed_positions(before, partner, always)
    total = sum(map(len, changed.values()))
    selected = changed
    if fraction is not None and total:
        selected = _largest(before, partner, changed, fraction)

    variables = {}
    squares = kept = 0.0
    for path, variable in before.items():
        old, new = read_variable(variable), read_variable(partner[path])
        if path not in changed:
            moved = (bits(old) != bits(new)).any()
            variables[path] = (
                VariableDelta.whole(new)
                if path in always or moved
                else VariableDelta.sparse(
                    old, np.empty(0, "int64"), new.reshape(-1)[:0]
                )
            )
            continue
        indices = selected[path]
        values = new.reshape(-1)[indices]
        variables[path] = VariableDelta.sparse(old, indices, values)
        with np.errstate(invalid="ignore"):
            square = np.square(_displacement(old, new)).reshape(-1)
        squares += float(square.sum())
        kept += float(square[indices].sum())
    return variables, {
        "selector": "checkpoint_difference",
        "fraction": fraction,
        "changed_scalars": total,
        "kept_scalars": sum(map(len, selected.values())),
        "kept_squared_difference": kept / squares if squares else 1.0,
    }


def _model(checkpoint: Checkpoint) -> keras.Model:
    if isinstance(checkpoint, (str, os.PathLike)):
        if pathlib.Path(checkpoint).suffix != ".keras":
            raise ValueError(
                f"A checkpoint must be a model or a `.keras` file: {checkpoint} holds "
                "no architecture. Build the model, `load_weights`, and pass it."
            )
        return keras.saving.load_model(checkpoint, compile=False)
    return checkpoint


def _partners(
    before: Mapping[str, keras.Variable], after: Mapping[str, keras.Variable]
) -> dict[str, keras.Variable]:
    """The tuned variable for each path of the base."""
    shapes = [
        {path: variable.shape for path, variable in side.items()}
        for side in (before, after)
    ]
    try:
        matched = match_paths(*shapes)
    except ValueError as error:
        raise ValueError(f"The checkpoints are of different models. {error}") from error
    if len(before) != len(after):
        raise ValueError(
            "The checkpoints are of different models: "
            f"{len(before)} and {len(after)} variables."
        )
    partner = {path: after[matched[path]] for path in before}
    other_dtype = [path for path in before if before[path].dtype != partner[path].dtype]
    if other_dtype:
        path = other_dtype[0]
        raise ValueError(
            f"{len(other_dtype)} variables have another dtype in the tuned model, e.g. "
            f"{path}: {partner[path].dtype}, not {before[path].dtype}. Load both with "
            "one dtype policy."
        )
    return partner


def _changed_positions(
    before: Mapping[str, keras.Variable],
    partner: Mapping[str, keras.Variable],
    always: set[str],
) -> dict[str, np.ndarray]:
    """Indices at which the bits differ, of the variables that compete."""
    return {
        path: np.flatnonzero(
            bits(read_variable(variable)) != bits(read_variable(partner[path]))
        )
        for path, variable in before.items()
        if path not in always and (variable.trainable or partner[path].trainable)
    }


def _largest(
    before: Mapping[str, keras.Variable],
    partner: Mapping[str, keras.Variable],
    changed: Mapping[str, np.ndarray],
    fraction: float,
) -> dict[str, np.ndarray]:
    """The changed indices among the `fraction` largest differences."""
    scores = {
        path: np.abs(
            _displacement(read_variable(before[path]), read_variable(partner[path]))
        )
        for path in changed
    }
    mask = SparseMask.from_scores(scores, fraction=fraction)
    return {
        path: np.intersect1d(mask.indices[path], flat_indices, assume_unique=True)
        for path, flat_indices in changed.items()
    }


def _displacement(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    wide = "float64" if old.dtype.itemsize > 4 else "float32"
    return new.astype(wide) - old.astype(wide)
