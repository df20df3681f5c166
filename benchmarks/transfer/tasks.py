"""Prepared tasks: data, the network with a new head, loss and metrics."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

from benchmarks.transfer import efficientnet
from benchmarks.transfer.network import Inputs, Network, take

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from glue_tasks import is_regression, score  # noqa: E402

HEAD = ("^logits/",)  # what does not compete
SPREAD = 0.02  # of a new head's kernel, as BERT's own


class Task:
    """One task, for all seeds; its model stays at the pre-trained values.

    Args:
        folder: Where `prepare` wrote to.
        name: Of the task.
        validation_rows: At most so many rows to validate on.
        test_rows: At most so many rows to test on.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        validation_rows: int | None = None,
        test_rows: int | None = None,
    ):
        self.folder, self.name = folder, name
        with np.load(folder / f"{name}.npz") as file:
            self.kind = str(file["network"])
            self.train = _part(file, "train", None)
            self.validation = _part(file, "validation", validation_rows)
            self.test = _part(file, "test", test_rows)
        self.is_classification = not is_regression(name)
        self.outputs = int(self.train[1].max()) + 1 if self.is_classification else 1
        self.network = self.new_network()

    def new_network(self, lora_rank: int | None = None) -> Network:
        """Return the network at its pre-trained values, with a head of zeros."""
        first = take(self.train[0], np.arange(1))
        build = {"bert": _bert, "efficientnet": _efficientnet}[self.kind]
        model, backbone = build(*_read(self.folder, self.kind), first, self.outputs)
        if lora_rank is not None:
            backbone.enable_lora(lora_rank)
            for variable in backbone.trainable_variables:  # biases of these layers
                if "lora" not in variable.path:
                    variable.trainable = False
        loss: Any = keras.losses.MeanSquaredError()
        if self.is_classification:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return Network(model, loss)

    def lora_rank(self, scalars: int) -> int | None:
        """Return the rank of about so many scalars; `None` if there is no LoRA."""
        if self.kind != "bert":
            return None
        backbone = self.network.model.get_layer("backbone")
        # Keras gives each head a first factor of its own: width, heads, rank.
        width, heads = backbone.hidden_dim, backbone.num_heads
        per_rank = 2 * backbone.num_layers * (width * heads + width // heads)
        return max(1, round(scalars / per_rank))

    def head_start(self, seed: int) -> np.ndarray:
        """Return the values of a new head, kernel and bias in a row."""
        kernel, bias = self.network.shapes[-2:]
        rng = np.random.default_rng(seed)
        values = rng.normal(0, SPREAD, kernel).astype("float32")
        return np.concatenate([values.ravel(), np.zeros(bias, "float32")])

    def start(self, seed: int) -> list[np.ndarray]:
        """Return the weights from which every rule starts."""
        return self.with_head(self.head_start(seed))

    def with_head(self, head: np.ndarray) -> list[np.ndarray]:
        """Return the pre-trained weights and a head, its values in a row."""
        weights = self.network.weights()
        kernel, bias = self.network.shapes[-2:]
        end = len(head) - bias[0]
        return [*weights[:-2], head[:end].reshape(kernel), head[end:]]

    def metrics(self, labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """Return the task's metrics, the one that ranks first."""
        found = score(self.name, labels, outputs)
        if "Spearman" in found:
            return {"Spearman": found.pop("Spearman"), **found}
        return found


def _part(file, part: str, rows: int | None) -> tuple[Inputs, np.ndarray]:
    prefix = f"{part}/x/"
    x = {n.removeprefix(prefix): file[n][:rows] for n in file if n.startswith(prefix)}
    return x.get("image", x), file[f"{part}/y"][:rows]


@functools.lru_cache(maxsize=2)
def _read(folder: Path, name: str) -> tuple[dict[str, Any], list[np.ndarray]]:
    with np.load(folder / f"network-{name}.npz") as file:
        names = sorted(set(file) - {"config"})
        return json.loads(str(file["config"])), [file[n] for n in names]


def _bert(config, weights, first, outputs):
    backbone = keras_hub.models.BertBackbone(**config, name="backbone")
    backbone.set_weights(weights)
    backbone.get_layer("pooled_dense").trainable = False  # it reads [CLS]
    inputs = {
        name: keras.Input(array.shape[1:], dtype="int32", name=name)
        for name, array in first.items()
    }
    tokens = backbone(inputs)["sequence_output"]
    mean = keras.layers.GlobalAveragePooling1D(name="mean")(
        tokens, mask=inputs["padding_mask"]
    )
    logits = _head(outputs)(mean)
    return keras.Model(inputs, logits), backbone


def _efficientnet(config, weights, first, outputs):
    backbone = efficientnet.new_backbone(first.shape[1])
    backbone.set_weights(weights)
    inputs = keras.Input(first.shape[1:], dtype="uint8")
    pixels = keras.layers.Rescaling(1 / 128, -127 / 128)(inputs)
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(
        backbone(pixels, training=False)
    )
    return keras.Model(inputs, _head(outputs)(mean)), backbone


def _head(outputs: int) -> keras.layers.Dense:
    return keras.layers.Dense(outputs, kernel_initializer="zeros", name="logits")
