"""A layer with int8 or int4 weights, some scalars of which are floats."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Dense, EinsumDense, Embedding, ReversibleEmbedding

Tensor = Any  # a backend tensor


def weights_of(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """`{attribute: weight}` of what can have floats beside it; else empty."""
    if not layer.built or layer.quantization_mode is not None:
        return {}
    if type(layer) in (Dense, EinsumDense):
        return {} if layer.lora_enabled else {"_kernel": layer._kernel}
    if isinstance(layer, Embedding):
        # KerasHub's tables are subclasses that add arguments of the constructor.
        if type(layer).call not in (Embedding.call, ReversibleEmbedding.call):
            return {}
        if layer.lora_enabled:
            return {}
        weights = {"_embeddings": layer._embeddings}
        if isinstance(layer, ReversibleEmbedding) and not layer.tie_weights:
            weights["reverse_embeddings"] = layer.reverse_embeddings
        return weights
    return {}


class QuantizedLayer:
    """Float values in some places of the quantised weights of one layer.

    Args:
        layer: A Dense, EinsumDense or Embedding layer after `quantize`.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self._values: dict[str, tuple[np.ndarray, keras.Variable]] = {}

    def install(
        self, attribute: str, flat_indices: np.ndarray, values: np.ndarray
    ) -> keras.Variable:
        """Put floats at flat `indices` of a weight; return their variable."""
        layer = self.layer
        layer._tracker.unlock()  # as Keras does for LoRA
        variable = layer.add_weight(
            name=f"{attribute.lstrip('_')}_values",
            shape=(len(flat_indices),),
            initializer="zeros",
            dtype="float32",
            autocast=False,
        )
        layer._tracker.lock()
        variable.assign(values)
        self._values[attribute] = flat_indices[:, None].astype("int32"), variable
        vars(layer)["quantized_call"] = self._call  # no state that Keras should track
        return variable

    def remove(self) -> None:
        """Leave the layer with its quantised weights alone."""
        for _, variable in self._values.values():
            self.layer._untrack_variable(variable)
        if self._values:
            del vars(self.layer)["quantized_call"]
        self._values.clear()

    def _call(self, inputs: Tensor, training: Any = None, reverse: bool = False) -> Any:
        layer = self.layer
        if isinstance(layer, Embedding):
            return self._call_embedding(inputs, reverse)
        if isinstance(layer, Dense):
            x = self._with("_kernel", ops.matmul, inputs)
        else:
            x = self._with(
                "_kernel", lambda x, w: ops.einsum(layer.equation, x, w), inputs
            )
        if layer.bias is not None:
            x = ops.add(x, layer.bias)
        return x if layer.activation is None else layer.activation(x)

    def _call_embedding(self, inputs: Tensor, reverse: bool) -> Tensor:
        layer = self.layer
        untied = reverse and not layer.tie_weights
        attribute = "reverse_embeddings" if untied else "_embeddings"
        if attribute not in self._values:  # of two tables, the one without floats
            given = {"reverse": True} if reverse else {}
            return type(layer).quantized_call(layer, inputs, **given)
        if not reverse:
            ids = ops.cast(inputs, "int32")
            return self._with(attribute, lambda w: ops.take(w, ids, axis=0))
        if untied:
            logits = self._with(attribute, ops.matmul, inputs)
        else:
            logits = self._with(
                attribute, lambda x, w: ops.matmul(x, ops.transpose(w)), inputs
            )
        cap = layer.logit_soft_cap
        return logits if cap is None else ops.multiply(ops.tanh(logits / cap), cap)

    def _with(
        self, attribute: str, function: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:
        """`function(*inputs, weight)`; the weight is made again on the way back."""
        flat_indices, variable = self._values[attribute]

        def apply(values: Tensor, *inputs: Tensor) -> Tensor:
            weight = self._dequantized(attribute)
            values = ops.cast(values, weight.dtype)
            flat = ops.scatter_update(ops.reshape(weight, (-1,)), flat_indices, values)
            return function(*inputs, ops.reshape(flat, weight.shape))

        return keras.remat(apply)(ops.convert_to_tensor(variable), *inputs)

    def _dequantized(self, attribute: str) -> Tensor:
        layer = self.layer
        if layer.quantization_mode == "int4":
            return self._from_int4(attribute)
        if attribute == "_embeddings":
            scale = ops.expand_dims(layer.embeddings_scale, -1)
        elif attribute == "reverse_embeddings":
            scale = layer.reverse_embeddings_scale
        elif isinstance(layer, EinsumDense):
            scale = layer._adjust_scale_for_dequant(layer.kernel_scale)
        else:
            scale = layer.kernel_scale
        weight = ops.convert_to_tensor(getattr(layer, attribute))
        return ops.divide(ops.cast(weight, layer.compute_dtype), scale)

    def _from_int4(self, attribute: str) -> Tensor:
        """Two int4 in a byte; a scale and a zero for each block of rows and column."""
        layer = self.layer
        name = attribute.lstrip("_")
        if name == "reverse_embeddings":
            packed = layer.reverse_embeddings
            weight = keras.quantizers.unpack_int4(packed, layer.output_dim, axis=0)
        else:
            weight = getattr(layer, name)  # unpacks
        is_table = name == "embeddings"  # whose rows are what columns are elsewhere
        scale, zero, rows = (
            ops.transpose(array) if is_table else ops.convert_to_tensor(array)
            for array in (
                getattr(layer, f"{name}_scale"),
                getattr(layer, f"{name}_zero"),
                weight,
            )
        )
        rows = ops.reshape(rows, (-1, scale.shape[-1]))
        block = ops.cast(layer.g_idx, "int32")
        zero = ops.cast(ops.take(zero, block, axis=0), layer.compute_dtype)
        rows = ops.cast(rows, layer.compute_dtype) - zero
        rows = rows * ops.cast(ops.take(scale, block, axis=0), layer.compute_dtype)
        return ops.transpose(rows) if is_table else ops.reshape(rows, weight.shape)
