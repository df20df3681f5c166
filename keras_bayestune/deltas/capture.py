"""Takes what changed in a model since its base, at the indices of a mask."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_bayestune.deltas.model_variables import (
    floating_variables,
    keras_layers,
    read_variable,
)
from keras_bayestune.deltas.variable import DTYPES, VariableDelta
from keras_bayestune.masks import SparseMask
from keras_bayestune.matching import match_paths, match_variables


def capture(
    model: keras.Model, mask: SparseMask, base: Mapping[str, Any]
) -> dict[str, VariableDelta]:
    """`{path: VariableDelta}` of every floating variable of `model`.

    Args:
        model: The tuned model.
        mask: Which scalars may differ from the base.
        base: `{path: array}`, the values before tuning, of every variable in the mask
            that is not taken whole; of non-trainable ones where they may have changed.

    Raises:
        ValueError: `mask` or `base` is for another model, a base value is missing,
            or a scalar outside the mask differs from its base.
    """
    present = floating_variables(model)
    matched, masked = _match_mask(mask, present)
    base = _base_by_path(base, model, present, matched)
    indices = {matched[path]: mask.indices[path] for path in mask.shapes}
    whole = {matched[path] for path in mask.always}

    unknown = [path for path in masked if path not in indices and path not in base]
    missing = [path for path in indices if path not in whole and path not in base]
    if unknown or missing:
        raise ValueError(
            f"{len(unknown)} trainable variables are not in the mask ({unknown[:3]}) "
            f"and {len(missing)} in the mask have no base value ({missing[:3]}). "
            "Whether they moved is unknown, so the delta could not reproduce the "
            "model. Pass `base=base_values(model)`, taken before tuning."
        )
    _check_statistics(model, present, {*indices, *base})

    variables, moved = {}, {}
    for path, variable in present.items():
        now = read_variable(variable)
        before = _base_array(base[path], variable) if path in base else now
        differs = bits(now) != bits(before)
        if path in whole or (path not in masked and differs.any()):
            # Changed statistics (a batch normalisation's) are part of the outputs.
            variables[path] = VariableDelta.whole(now)
            continue
        selected = np.asarray(indices.get(path, ()), "int64")
        differs[selected] = False
        if differs.any():
            moved[path] = int(differs.sum())
        variables[path] = VariableDelta.sparse(
            before, selected, now.reshape(-1)[selected]
        )
    if moved:
        counts = ", ".join(f"{path}: {n}" for path, n in list(moved.items())[:5])
        raise ValueError(
            f"{sum(moved.values())} scalars outside the mask differ from the base, in "
            f"{len(moved)} variables ({counts}). A delta stores the selected scalars "
            "only and would not reproduce this model. Tune from the base values with "
            "`SparseOptimizer` (SparseMaskCallback: stage_2_start='anchors' or 'last "
            "values'), and let no callback put back weights of stage 1, as "
            "EarlyStopping(restore_best_weights=True) does unless it begins with stage "
            "2. "
            "`SparseDelta.from_checkpoints` stores all that moved."
        )
    return variables


def bits(array: np.ndarray) -> np.ndarray:
    """The flat array as unsigned integers: equal where the bits are, also for NaN."""
    return array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}")


def _match_mask(
    mask: SparseMask, present: Mapping[str, keras.Variable]
) -> tuple[dict[str, str], list[str]]:
    """`{path in the mask: path in the model}`, and the model's paths looked at."""
    trainable = [path for path, variable in present.items() if variable.trainable]
    try:
        return _match_among(trainable, mask, present), trainable
    except ValueError:
        # Those of the mask may have been frozen after training.
        masked = [p for p, v in present.items() if v.trainable or p in mask.shapes]
        try:
            return _match_among(masked, mask, present), masked
        except ValueError as error:
            raise ValueError(f"The mask is for another model. {error}") from error


def _match_among(
    paths: list[str], mask: SparseMask, present: Mapping[str, keras.Variable]
) -> dict[str, str]:
    here = {id(present[path]): path for path in paths}
    matched = match_variables(mask.shapes, [present[path] for path in paths])
    return {path: here[id(variable)] for path, variable in matched.items()}


def _base_by_path(
    base: Mapping[str, Any],
    model: keras.Model,
    present: Mapping[str, keras.Variable],
    matched: Mapping[str, str],
) -> dict[str, Any]:
    """`{path in the model: base value}`, of floating weights only."""
    # States of random generators, counters and metrics are not part of a delta.
    others = {v.path for v in model.variables} - {*present}
    base = {path: value for path, value in base.items() if path not in others}
    unknown = [path for path in base if path not in present]
    if not unknown:
        return base
    # Of a run that another process began: named as its mask is.
    renamed = {matched[path]: base[path] for path in base if path in matched}
    rest = {p: np.shape(base[p]) for p in base if p not in matched}
    left = {p: v.shape for p, v in present.items() if p not in matched.values()}
    try:
        partners = match_paths(rest, left)
    except ValueError as error:
        raise ValueError(
            f"`base` holds {len(unknown)} paths that the model lacks: {unknown[:3]}. "
            "It was taken from another model, or layers were added or renamed since. "
            "Take `base_values(model)` of this very model before tuning."
        ) from error
    return renamed | {partners[path]: base[path] for path in rest}


def _check_statistics(
    model: keras.Model, present: Mapping[str, keras.Variable], known: set[str]
) -> None:
    """Raise if a statistic that training may have moved has no base value."""
    frozen = {
        id(variable)
        for layer in keras_layers(model)
        if not layer.trainable
        for variable in layer.variables
    }
    missing = [
        path
        for path, variable in present.items()
        if not (path in known or variable.trainable or id(variable) in frozen)
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} non-trainable weights have no base value, e.g. "
            f"{missing[0]}. Training moves such statistics, and a delta without them "
            "would fit no model. An optimizer's `anchors()` hold the weights under a "
            "prior only: pass the callback, or `base=base_values(model)`, taken "
            "before tuning."
        )


def _base_array(value: Any, variable: keras.Variable) -> np.ndarray:
    array = np.asarray(keras.ops.convert_to_numpy(value))
    if array.shape != tuple(variable.shape):
        raise ValueError(
            f"The base value of {variable.path} must have shape "
            f"{tuple(variable.shape)}. Received: {array.shape}."
        )
    # `ascontiguousarray` makes a vector of a scalar.
    return np.ascontiguousarray(array, DTYPES[variable.dtype]).reshape(array.shape)
