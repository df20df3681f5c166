"""A layer with int8 weights, some scalars of which are floats."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Dense, EinsumDense, Embedding, ReversibleEmbedding

Tensor = Any  # a backend tensor


def weights_of(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """`{attribute: weight}` of what can be int8 with floats beside it; else empty."""
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


class Int8Layer:
    """Float values in some places of the int8 weights of one layer.

    Args:
        layer: A Dense, EinsumDense or Embedding layer after `quantize("int8")`.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self._values: dict[str, tuple[np.ndarray, keras.Variable]] = {}

    def install(
        self, attribute: str, positions: np.ndarray, values: np.ndarray
    ) -> keras.Variable:
        """Put floats at flat `positions` of a weight; return their variable."""
        layer = self.layer
        layer._tracker.unlock()  # as Keras does for LoRA
        variable = layer.add_weight(
            name=f"{attribute.lstrip('_')}_values",
            shape=(len(positions),),
            initializer="zeros",
            dtype="float32",
            autocast=False,
        )
        layer._tracker.lock()
        variable.assign(values)
        self._values[attribute] = positions[:, None].astype("int32"), variable
        vars(layer)["quantized_call"] = self._call  # no state that Keras should track
        return variable

    def remove(self) -> None:
        """Leave the layer with its int8 weights alone."""
        for _, variable in self._values.values():
            self.layer._untrack_variable(variable)
        if self._values:
            del vars(self.layer)["quantized_call"]
        self._values.clear()

    def _call(self, inputs: Tensor, training: Any = None, reverse: bool = False) -> Any:
        layer = self.layer
        if isinstance(layer, Embedding):
            return self._logits(inputs) if reverse else self._lookup(inputs)
        if isinstance(layer, Dense):
            x = self._with("_kernel", inputs, ops.matmul)
        else:
            x = self._with(
                "_kernel", inputs, lambda x, w: ops.einsum(layer.equation, x, w)
            )
        if layer.bias is not None:
            x = ops.add(x, layer.bias)
        return x if layer.activation is None else layer.activation(x)

    def _lookup(self, ids: Tensor) -> Tensor:
        ids = ops.cast(ids, "int32")
        return self._with("_embeddings", ids, lambda ids, w: ops.take(w, ids, axis=0))

    def _logits(self, inputs: Tensor) -> Tensor:
        layer = self.layer
        if layer.tie_weights:
            logits = self._with(
                "_embeddings", inputs, lambda x, w: ops.matmul(x, ops.transpose(w))
            )
        else:
            logits = self._with("reverse_embeddings", inputs, ops.matmul)
        cap = layer.logit_soft_cap
        return logits if cap is None else ops.multiply(ops.tanh(logits / cap), cap)

    def _with(
        self, attribute: str, x: Tensor, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """`function(x, weight)`; the float weight is made again on the way back."""

        def apply(x: Tensor, values: Tensor | None) -> Tensor:
            weight = self._dequantized(attribute)
            if values is not None:
                flat = ops.scatter_update(
                    ops.reshape(weight, (-1,)),
                    positions,
                    ops.cast(values, weight.dtype),
                )
                weight = ops.reshape(flat, weight.shape)
            return function(x, weight)

        if attribute not in self._values:
            return keras.remat(lambda x: apply(x, None))(x)
        positions, variable = self._values[attribute]
        return keras.remat(apply)(x, ops.convert_to_tensor(variable))

    def _dequantized(self, attribute: str) -> Tensor:
        layer = self.layer
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
