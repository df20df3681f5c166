"""Sparse deltas over a model of int8 or int4 weights: float values beside them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.model_variables import (
    Target,
    floating_variables,
    keras_layers,
    read_variable,
)
from keras_bayestune.deltas.quantized_layer import QuantizedLayer, weights_of
from keras_bayestune.deltas.swap import swap_in, swap_out
from keras_bayestune.deltas.variable import VariableDelta, checksum
from keras_bayestune.masks import SparseMask
from keras_bayestune.matching import match_paths

# Inputs of layers stay floats: Keras 3.15 has no gradient for rounded ones of a head.
_CONFIGS: dict[str, Callable[[], Any]] = {
    "int8": lambda: keras.quantizers.Int8QuantizationConfig(activation_quantizer=None),
    "int4": keras.quantizers.Int4QuantizationConfig,
}


class QuantizedBase:
    """A model quantised to int8 or int4, with float values of a few scalars beside it.

    Stage 1 needs the float model. Then its weights become integers, and the selected
    scalars of each stay as one trainable float32 vector `v`. The layer computes with

        W = Q / scale, but W[index] = v,

    (int4: W = (Q - zero) scale, both for each 128 rows of a column, Keras's default)
    which is made for the time of the layer and made again on the way back, as is its
    gradient: what lies in memory is Q, `v` and the gradient of `v`. Inputs of the
    layers stay floats, also where Keras's own int8 layers round them. Weights that
    Keras does not quantise (biases, norms), and those that the mask takes whole, stay
    floats and train as ever. The result is an ordinary `SparseDelta` of the float
    model.

    `apply` puts a delta of the same float base over the quantised model and `revert`
    takes it away, so that deltas take turns; the step or generating function is
    compiled anew each time. Without a delta the model is what
    `model.quantize(mode)` makes.

    Args:
        model: A built float model at its base values; it is quantised in place.
        mask: `SparseMask` of what to train; `None` to apply deltas only.
        mode: "int8" or "int4".

    Raises:
        TypeError: `model` is not a Keras model, or `mask` is not a `SparseMask`.
        ValueError: The model is quantised already, the mask is another model's, or
            `mode` is neither.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_bayestune import SparseMask, SparseOptimizer
        >>> from keras_bayestune.deltas import QuantizedBase
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> kernel = model.trainable_variables[0]
        >>> base = QuantizedBase(model, SparseMask({kernel.path: [0, 7]},
        ...                                        {kernel.path: (4, 3)}))
        >>> adam = keras.optimizers.Adam(0.1)
        >>> model.compile(SparseOptimizer(adam, base.mask), loss="mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
        >>> base.delta().count
        2
    """

    def __init__(
        self,
        model: keras.Model,
        mask: SparseMask | None = None,
        mode: str = "int8",
    ):
        if mode not in _CONFIGS:
            raise ValueError(
                f'`mode` of QuantizedBase must be "int8" or "int4". Received: {mode!r}.'
            )
        if mask is not None and not isinstance(mask, SparseMask):
            raise TypeError(
                "`mask` of QuantizedBase must be a SparseMask or None. Received: "
                f"{type(mask).__name__}."
            )
        floats = floating_variables(model)
        indices = {} if mask is None else mask.match(floats.values())
        self.model = model
        self.mode = mode
        # What a delta must know of each float weight, read one at a time.
        self._base: dict[str, VariableDelta] = {}
        for path, variable in floats.items():
            array = read_variable(variable)
            found = np.asarray(indices.get(path, ()), "int64")
            values = array.reshape(-1)[found]
            self._base[path] = VariableDelta.sparse(array, found, values)
        whole = {path for path, stored in self._base.items() if _is_whole(stored)}
        self._layers = _quantize(model, floats, whole, mode)
        self._floats = {p: v for p, v in floats.items() if p not in self._layers}
        self._values: dict[str, keras.Variable] = {}
        self._applied: tuple[list[Target], list[np.ndarray]] | None = None
        self._install(self._base)

    def __repr__(self) -> str:
        return (
            f"<QuantizedBase {self.model.name!r}, {len(self._layers)} weights of "
            f"{self.mode}, float values beside {len(self._values)} of them>"
        )

    @property
    def mask(self) -> SparseMask:
        """The mask for `SparseOptimizer`: what is float32 beside integers, whole."""
        shapes = {
            p: self._base[p].shape for p, v in self._floats.items() if v.trainable
        }
        indices = {p: self._base[p].flat_indices for p in shapes}
        for variable in self._values.values():
            shapes[variable.path] = tuple(variable.shape)
            indices[variable.path] = np.arange(math.prod(variable.shape))
        return SparseMask(indices, shapes)

    def delta(self, metadata: Mapping[str, Any] | None = None) -> SparseDelta:
        """Return what was trained, as a delta of the float base."""
        variables = {}
        for path, base in self._base.items():
            if path in self._values:
                new = ops.convert_to_numpy(self._values[path])
                new = new.astype(base.values.dtype)
            elif path in self._floats:
                new = read_variable(self._floats[path])
                if not base.values.size and checksum(new) != base.checksum:
                    variables[path] = VariableDelta.whole(new)  # a moved statistic
                    continue
                new = new.reshape(-1)[base.flat_indices]
            else:
                new = base.values
            variables[path] = VariableDelta(
                base.shape,
                base.dtype,
                base.indices,
                new,
                base.checksum,
                base.base_checksum,
                base.base,
            )
        return SparseDelta(variables, {"base": self.mode, **(metadata or {})})

    def apply(self, delta: SparseDelta) -> None:
        """Put a delta of the float base over the quantised weights.

        Args:
            delta: Made of this base, float or quantised.

        Raises:
            ValueError: A delta is applied or in training, or this one is of another
                base. The model is unchanged.
        """
        if self._values or self._applied is not None:
            raise ValueError(
                "The quantised model holds float values already, those in training or "
                "of another delta. Call `revert()` first."
            )
        shapes = {path: stored.shape for path, stored in delta.variables.items()}
        present = {path: stored.shape for path, stored in self._base.items()}
        matched = match_paths(shapes, present)
        stored = {matched[path]: v for path, v in delta.variables.items()}
        other = [
            path
            for path, found in stored.items()
            if (found.is_whole and path in self._layers)
            or found.checksum not in (None, self._base[path].checksum)
        ]
        if other or len(stored) != len(self._base):
            raise ValueError(
                "This delta was not made of the float model that was quantised here: "
                f"{len(other)} variables differ, e.g. {other[:3]}. Pass "
                "QuantizedBase the model that holds the delta's base."
            )
        targets = [
            Target(path, self._floats[path], found)
            for path, found in stored.items()
            if path in self._floats and not found.is_free
        ]
        self._applied = targets, swap_in(targets)
        self._install(stored)

    def revert(self) -> None:
        """Take the float values away; what stayed float gets its base values back.

        Raises:
            ValueError: No float values are there, or what stayed float has changed
                since `apply`.
        """
        if self._applied is None and not self._values:
            raise ValueError(
                "The quantised model holds no float values, so there is nothing to "
                "revert."
            )
        if self._applied is not None:
            swap_out(*self._applied)
        else:
            for path, variable in self._floats.items():
                stored = self._base[path]
                if stored.values.size:
                    Target(path, variable, stored).write(stored.values)
        self._applied = None
        self._values.clear()
        for layer, _ in self._layers.values():
            layer.remove()
        self._forget_compiled()

    def _install(self, variables: Mapping[str, VariableDelta]) -> None:
        for path, (layer, attribute) in self._layers.items():
            stored = variables.get(path)
            if stored is not None and stored.values.size:
                self._values[path] = layer.install(
                    attribute, stored.flat_indices, stored.new_values
                )
        self._forget_compiled()

    def _forget_compiled(self) -> None:
        model = self.model
        model.train_function = model.test_function = model.predict_function = None
        model._post_quantize(self.mode)  # KerasHub forgets its generating function here


def _quantize(
    model: keras.Model,
    floats: Mapping[str, keras.Variable],
    whole: set[str],
    mode: str,
) -> dict[str, tuple[QuantizedLayer, str]]:
    """Make weights integers; return the layer and attribute of each by its path."""
    path_of = {id(variable): path for path, variable in floats.items()}
    found: dict[str, tuple[QuantizedLayer, str]] = {}
    for layer in keras_layers(model):
        weights = weights_of(layer)
        paths = {path_of[id(weight)]: name for name, weight in weights.items()}
        if paths and not whole & set(paths) and not found.keys() & set(paths):
            with_values = QuantizedLayer(layer)
            found.update({path: (with_values, name) for path, name in paths.items()})
    layers = {id(with_values.layer) for with_values, _ in found.values()}
    model.quantize(config=_CONFIGS[mode](), filters=lambda layer: id(layer) in layers)
    return found


def _is_whole(delta: VariableDelta) -> bool:
    return 0 < delta.values.size == math.prod(delta.shape)
