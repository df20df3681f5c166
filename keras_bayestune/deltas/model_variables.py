"""The variables of a model that a delta speaks about, and their pairing with it."""

import dataclasses
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from keras_bayestune.deltas.variable import DTYPES, VariableDelta
from keras_bayestune.matching import match_variables
from keras_bayestune.paths import variables_by_path
from keras_bayestune.updates import scatter


@dataclasses.dataclass(frozen=True)
class Target:
    """One variable of a model and what a delta stores of it."""

    path: str  # in the delta; the model's may be numbered differently
    variable: keras.Variable
    delta: VariableDelta

    def read(self) -> np.ndarray:
        """The variable's values at the delta's indices, `(count,)`."""
        if self.delta.indices is None:
            return read_variable(self.variable).reshape(-1)
        return scatter.gather_flat(self.variable, self.delta.indices)

    def write(self, values: np.ndarray) -> None:
        """Write `values`, `(count,)`, at the delta's indices."""
        if self.delta.indices is None:
            scatter.assign_whole(self.variable, values.reshape(self.delta.shape))
        else:
            scatter.assign_flat(self.variable, self.delta.indices, values)


def read_variable(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable on the host, in its own dtype and C order."""
    array = scatter.read_whole(variable)
    return np.ascontiguousarray(array, DTYPES[variable.dtype]).reshape(variable.shape)


def floating_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """`{path: variable}` of all floating weights: trainable, frozen and statistics.

    Random seeds, counters and tables of integers are left out: training moves them
    without a meaning for the task.

    Raises:
        TypeError: `model` is not a Keras layer or model.
        ValueError: The model is not built, has no floating weights, or is quantised.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "`model` must be a Keras model or layer. "
            f"Received: {type(model).__name__} ({model!r})."
        )
    quantized = _quantized(model)
    if quantized:
        raise ValueError(
            f"The model is quantised ({len(quantized)} weights or layers, e.g. "
            f"{quantized[0]}): its scalars are no longer those the delta was made of. "
            "Work on the float model, and call `model.quantize(...)` after `apply`; or "
            "let `QuantizedBase` make the float model int8."
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built: some or all of its weights are "
            "not there yet. Build it first, e.g. by calling it on a batch."
        )
    weights = [weight for weight in model.weights if weight.dtype in DTYPES]
    if not weights:
        raise ValueError(f"The model {model.name!r} has no floating weights.")
    return variables_by_path(weights)


def base_values(model: keras.Model) -> dict[str, np.ndarray]:
    """Copy every floating weight: the `base` of `SparseDelta.from_model`.

    Args:
        model: The model before tuning.

    Returns:
        `{path: array}`. The paths are those of masks and deltas, each of one variable
        only, where Keras's own `variable.path` may be that of several.

    Raises:
        ValueError: The model is not built or is quantised.

    Examples:
        >>> import keras
        >>> from keras_bayestune.deltas import base_values
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        >>> {path: array.shape for path, array in base_values(model).items()}
        {'dense/kernel': (2, 1), 'dense/bias': (1,)}
    """
    variables = floating_variables(model)
    return {path: read_variable(variable) for path, variable in variables.items()}


def lost_variables(
    model: keras.Model, variables: Iterable[keras.Variable]
) -> list[str]:
    """Paths of the variables that are no longer weights of the model."""
    present = {id(weight) for weight in model.weights}
    return [v.path for v in variables if id(v) not in present]


def check_still_there(model: keras.Model, variables: Iterable[keras.Variable]) -> None:
    """Raise if `lost_variables` has any: to write to them would change nothing.

    Raises:
        ValueError: The model was quantised, or layers were exchanged or built anew.
    """
    quantized = _quantized(model)
    if quantized:
        raise ValueError(
            f"The model was quantised after the delta met it ({len(quantized)} weights "
            f"or layers, e.g. {quantized[0]}), so deltas can neither be applied nor "
            "reverted any more. Build the float model anew, load the base weights, and "
            "quantise a copy for each task."
        )
    lost = lost_variables(model, variables)
    if lost:
        raise ValueError(
            f"{len(lost)} variables are no longer in the model, e.g. {lost[0]}: layers "
            "were exchanged, removed or built anew since the delta met it. Load the "
            "base weights into the model as it is now, and begin again with `apply` "
            "or a new DeltaSet."
        )


def _quantized(model: keras.layers.Layer) -> list[str]:
    """Paths of quantised weights and layers."""
    return [
        weight.path
        for weight in model.weights
        if weight.dtype.startswith(("int8", "uint8", "int4", "uint4", "float8"))
    ] + [
        layer.path
        for layer in keras_layers(model)
        if layer.dtype_policy.quantization_mode is not None
    ]


def keras_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layer and all layers within it."""
    return layer._flatten_layers()


def pair_with_model(
    variables: Mapping[str, VariableDelta], model: keras.Model
) -> list[Target]:
    """Pair every variable of a delta with one of the model, and none is left over.

    Raises:
        ValueError: The sets of variables, a shape or a dtype differ.
    """
    present = floating_variables(model)
    matched = match_variables(
        {path: delta.shape for path, delta in variables.items()}, present.values()
    )
    known = {id(variable) for variable in matched.values()}
    extra = [path for path, variable in present.items() if id(variable) not in known]
    if extra:
        raise ValueError(
            f"The model has {len(extra)} variables that the delta does not know, e.g. "
            f"{extra[0]}. Use a model of the architecture that the delta was made "
            "from, or the part of this one that is (such as `model.backbone`)."
        )
    other_dtype = [
        f"{matched[path].path} is {matched[path].dtype}, not {delta.dtype}"
        for path, delta in variables.items()
        if matched[path].dtype != delta.dtype
    ]
    if other_dtype:
        raise ValueError(
            f"{len(other_dtype)} variables have another dtype than the delta's base: "
            f"{other_dtype[0]}. Build the model with the dtype policy that the base "
            "had."
        )
    return [
        Target(path, matched[path], delta)
        for path, delta in variables.items()
        if not delta.is_free
    ]
