"""The variables of a model that a delta speaks about, and their pairing with it."""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from keras_bayestune.deltas.matching import match_variables
from keras_bayestune.deltas.variable import DTYPES, VariableDelta
from keras_bayestune.paths import variable_paths
from keras_bayestune.updates import scatter


@dataclasses.dataclass(frozen=True)
class Target:
    """One variable of a model and what a delta stores of it."""

    path: str  # in the delta; the model's may be numbered differently
    variable: keras.Variable
    delta: VariableDelta

    def read(self) -> np.ndarray:
        """The variable's values at the delta's positions, `(count,)`."""
        if self.delta.indices is None:
            return read_variable(self.variable).reshape(-1)
        return scatter.gather_flat(self.variable, self.delta.indices)

    def write(self, values: np.ndarray) -> None:
        """Writes `values`, `(count,)`, at the delta's positions."""
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
        ValueError: The model has no weights yet, is quantised, or two variables share
            a path.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            "`model` must be a Keras model or layer. "
            f"Received: {type(model).__name__} ({model!r})."
        )
    quantized = [
        weight.path
        for weight in model.weights
        if weight.dtype.startswith(("int8", "uint8", "int4", "uint4", "float8"))
    ] + [
        layer.path
        for layer in keras_layers(model)
        if layer.dtype_policy.quantization_mode is not None
    ]
    if quantized:
        raise ValueError(
            f"The model is quantised ({len(quantized)} weights or layers, e.g. "
            f"{quantized[0]}): its scalars are no longer those the delta was made of. "
            "Work on the float model, and call `model.quantize(...)` after `apply`."
        )
    weights = [weight for weight in model.weights if weight.dtype in DTYPES]
    if not weights:
        raise ValueError(
            "The model has no floating weights. Build it first, e.g. by calling it on "
            "a batch."
        )
    return dict(zip(variable_paths(weights), weights, strict=True))


def keras_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layer and all layers within it."""
    return layer._flatten_layers()


def pair_with_model(
    variables: Mapping[str, VariableDelta], model: keras.Model
) -> list[Target]:
    """Pairs every variable of a delta with one of the model, and none is left over.

    Raises:
        ValueError: The sets of variables, a shape or a dtype differ.
    """
    present = floating_variables(model)
    matched = match_variables(
        {path: delta.shape for path, delta in variables.items()},
        {path: variable.shape for path, variable in present.items()},
    )
    extra = [path for path in present if path not in set(matched.values())]
    if extra:
        raise ValueError(
            f"The model has {len(extra)} variables that the delta does not know, e.g. "
            f"{extra[0]}. Use a model of the architecture that the delta was made "
            "from, or the part of this one that is (such as `model.backbone`)."
        )
    other_dtype = [
        f"{present[matched[path]].path} is {present[matched[path]].dtype}, "
        f"not {delta.dtype}"
        for path, delta in variables.items()
        if present[matched[path]].dtype != delta.dtype
    ]
    if other_dtype:
        raise ValueError(
            f"{len(other_dtype)} variables have another dtype than the delta's base: "
            f"{other_dtype[0]}. Build the model with the dtype policy that the base "
            "had."
        )
    return [
        Target(path, present[matched[path]], delta)
        for path, delta in variables.items()
        if not delta.is_free
    ]
