"""Layers whose weights can have compact gradients, and how each computes with them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import (
    Conv1D,
    Conv2D,
    Dense,
    EinsumDense,
    Embedding,
    Layer,
    ReversibleEmbedding,
)

from keras_bayestune.updates.matmul_layout import MatmulLayout
from keras_bayestune.updates.selected_gradients import (
    Gradient,
    kernel_gradient,
    table_gradient,
)

Tensor = Any  # a backend tensor
Call = Callable[..., Any]
# From output and input of a product to that output, whose gradient a probe receives.
Probed = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Use:
    """One way in which a layer uses a weight.

    Attributes:
        weight: The weight.
        layout: Of the product with it; `None` where its rows are looked up.
    """

    weight: keras.Variable
    layout: MatmulLayout | None

    def gradient(
        self, selected: np.ndarray, force: bool, jit_compile: bool
    ) -> Gradient | None:
        """Return `kernel_gradient` or `table_gradient` of the weight."""
        if self.layout is None:
            rows, columns = self.weight.shape
            return table_gradient((rows, columns), selected, force)
        return kernel_gradient(self.layout, selected, force, jit_compile)


def uses_of(layer: Layer) -> dict[str, Use]:
    """Return, by name, the uses of weights whose gradients can be compact."""
    # A subclass may do anything with the weight in a `call` of its own.
    kind = _KINDS.get(type(layer).call)
    if kind is None or "call" in vars(layer) or not layer.built:
        return {}
    name = "embeddings" if issubclass(kind, Embedding) else "kernel"
    if getattr(type(layer), name) is not getattr(kind, name):
        return {}
    if layer.quantization_mode is not None or layer.lora_enabled:
        return {}
    if _is_rematerialised(layer):
        return {}
    if kind is ReversibleEmbedding and layer.mask_zero:
        return {}  # its call also makes the mask
    found = _table(layer) if name == "embeddings" else _kernel(layer, kind)
    floats = ("float32", "bfloat16", "float16")
    return {name: use for name, use in found.items() if use.weight.dtype in floats}


def _is_rematerialised(layer: Layer) -> bool:
    mode = layer._remat_mode
    if mode is None:
        return False
    # Such a scope marks every layer made in it; the others are called as ever.
    return mode.mode != "list_of_layers" or layer.name in mode.layer_names


def call_with_probes(layer: Layer, probed: Mapping[str, Probed]) -> Call:
    """Return the layer's `call` with these of its uses passed through probes.

    Args:
        layer: A layer that has `uses_of`.
        probed: By name of the use; others compute as ever.
    """
    if isinstance(layer, Embedding):
        return _table_call(layer, layer.call, probed)
    return _kernel_call(layer, probed["kernel"])


def _table(layer: Any) -> dict[str, Use]:
    found = {"lookup": Use(layer._embeddings, None)}
    if isinstance(layer, ReversibleEmbedding):
        weight, equation = layer._embeddings, "...a,ba->...b"
        if not layer.tie_weights:
            weight, equation = layer.reverse_embeddings, "...a,ab->...b"
        layout = MatmulLayout.parse(equation, tuple(weight.shape))
        found["reverse"] = Use(weight, layout)
    return found


def _kernel(layer: Any, kind: type[Layer]) -> dict[str, Use]:
    equation = "...a,ab->...b"
    if kind is EinsumDense:
        equation = layer.equation
    elif kind is not Dense:
        # A window that no other overlaps is a row of a matrix, cut out by `_windows`.
        if layer.groups > 1 or any(
            size > 1 and (size != stride or layer.padding != "valid")
            for size, stride in zip(layer.kernel_size, layer.strides, strict=True)
        ):
            return {}
        if type(layer).convolution_op is not kind.convolution_op:
            return {}
        counts, sizes = "ijk"[: layer.rank], "uvw"[: layer.rank]
        windows = "".join(map("".join, zip(counts, sizes, strict=True)))
        equation = f"n{windows}c,{sizes}co->n{counts}o"
        if layer.data_format == "channels_first":
            equation = f"nc{windows},{sizes}co->no{counts}"
    layout = MatmulLayout.parse(equation, tuple(layer._kernel.shape))
    return {} if layout is None else {"kernel": Use(layer._kernel, layout)}


def _kernel_call(layer: Any, probed: Probed) -> Call:
    is_conv = not isinstance(layer, (Dense, EinsumDense))

    def call(inputs: Tensor, training: Any = None) -> Tensor:
        kernel = ops.stop_gradient(layer.kernel)
        if is_conv:
            x = probed(_convolved(layer, inputs, kernel), _windows(layer, inputs))
        elif isinstance(layer, EinsumDense):
            x = probed(ops.einsum(layer.equation, inputs, kernel), inputs)
        else:
            x = probed(ops.matmul(inputs, kernel), inputs)
        if layer.bias is not None:
            bias = ops.convert_to_tensor(layer.bias)
            if is_conv and layer.data_format == "channels_first":
                bias = ops.reshape(bias, (-1,) + (1,) * layer.rank)
            x = ops.add(x, bias)
        return x if layer.activation is None else layer.activation(x)

    return call


def _convolved(layer: Any, inputs: Tensor, kernel: Tensor) -> Tensor:
    # Where there is no window to fill up, "causal" and "same" are "valid".
    return ops.conv(
        inputs,
        kernel,
        strides=list(layer.strides),
        padding="valid",
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _windows(layer: Any, x: Tensor) -> Tensor:
    """Return the input with two axes, window and place in it, for each in space."""
    first = 1 if layer.data_format == "channels_last" else 2
    shape = list(ops.shape(x))
    parts = [slice(None)] * len(shape)
    windows = []
    for axis, size in enumerate(layer.kernel_size, first):
        count = shape[axis] // size
        if size == 1:
            stride = layer.strides[axis - first]
            count = (shape[axis] + stride - 1) // stride
            parts[axis] = slice(None, None, stride)
        else:
            parts[axis] = slice(count * size)
        windows += [count, size]
    return ops.reshape(
        x[tuple(parts)], (*shape[:first], *windows, *shape[first + layer.rank :])
    )


def _table_call(layer: Any, original: Call, probed: Mapping[str, Probed]) -> Call:
    def call(inputs: Tensor, reverse: bool = False) -> Tensor:
        if reverse and "reverse" in probed:
            return projected(inputs)
        if reverse or "lookup" not in probed:
            return original(inputs, **({"reverse": True} if reverse else {}))
        if inputs.dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        x = ops.take(ops.stop_gradient(layer.embeddings), inputs, axis=0)
        return probed["lookup"](ops.cast(x, layer.compute_dtype), inputs)

    def projected(inputs: Tensor) -> Tensor:
        if layer.tie_weights:
            kernel = ops.transpose(ops.stop_gradient(layer.embeddings))
        else:
            kernel = ops.stop_gradient(layer.reverse_embeddings)
        if layer.reverse_dtype is not None:
            inputs = ops.cast(inputs, layer.reverse_dtype)
            kernel = ops.cast(kernel, layer.reverse_dtype)
        logits = probed["reverse"](ops.matmul(inputs, kernel), inputs)
        cap = layer.logit_soft_cap
        if cap is None:
            return logits
        return ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)

    return call


_KINDS: dict[Any, type[Layer]] = {
    kind.call: kind
    for kind in (Dense, EinsumDense, Embedding, ReversibleEmbedding, Conv1D, Conv2D)
}  # a Conv3D calls what a Conv2D calls
