"""Tasks and networks as plain arrays, so that `run` needs Keras, KerasHub and JAX only.

A task is one file: inputs by name and labels of each part. A network is one file: the
configuration of its backbone and its weights. What reads their sources, and may need
TensorFlow, PyTorch or PIL, is imported here and nowhere else.
"""

import io
import json
import sys
from pathlib import Path

import keras_hub
import numpy as np

from benchmarks.transfer import efficientnet

# The example reads GLUE's rows; it is a script.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from glue_tasks import read_jsonl, to_arrays  # noqa: E402

PARTS = ("train", "validation", "test")
TEXT = {"stsb": "glue", "mrpc": "glue", "rte": "glue"} | dict.fromkeys(
    ("sst2", "trec", "subj"), "text"
)
VISION = ("flowers", "gtsrb")
LENGTHS = {"sst2": 24, "trec": 24, "subj": 32, "stsb": 48, "mrpc": 48, "rte": 64}


def text_task(data: Path, task: str, preset: str, length: int, folder: Path) -> None:
    """Tokenise one task."""
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        preset, sequence_length=length
    )
    arrays = {}
    rows = read_jsonl(data / TEXT[task] / task)
    for part, (texts, labels) in zip(PARTS, to_arrays(task, rows), strict=True):
        # One text goes in by itself, two as a pair.
        texts = texts[0] if len(texts) == 1 else texts
        for name, array in preprocessor(texts, None).items():
            arrays[f"{part}/x/{name}"] = np.asarray(array).astype("int32")
        arrays[f"{part}/y"] = _narrow(labels)
    write_task(folder, task, "bert", arrays)


def vision_task(data: Path, task: str, folder: Path) -> None:
    """Decode the images of one task."""
    arrays = {}
    with np.load(data / "vision" / f"{task}.npz") as file:
        for part, name in zip(PARTS, ("train", "val", "test"), strict=True):
            arrays[f"{part}/x/image"] = decoded(file, name)
            arrays[f"{part}/y"] = _narrow(file[f"{name}_labels"])
    write_task(folder, task, "efficientnet", arrays)


def decoded(file, part: str) -> np.ndarray:
    """Return the images of a part, uint8 (n, height, width, 3)."""
    from PIL import Image

    jpeg, ends = file[f"{part}_jpeg"], file[f"{part}_offsets"]
    pieces = [jpeg[a:b].tobytes() for a, b in zip(ends, ends[1:], strict=False)]
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(piece)).convert("RGB")) for piece in pieces]
    )


def bert(preset: str, folder: Path) -> None:
    """Convert the encoder, without dropout."""
    backbone = keras_hub.models.BertBackbone.from_preset(preset)
    names = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim")
    names += ("intermediate_dim", "max_sequence_length")
    config = {name: getattr(backbone, name) for name in names} | {"dropout": 0.0}
    write_network(folder, "bert", config, backbone.get_weights())


def lite0(state: Path, folder: Path, data: Path | None) -> None:
    """Convert the image network; print its top-1 on the images of `data`."""
    arrays = efficientnet.read_state(state)
    backbone = efficientnet.new_backbone(32)
    efficientnet.load(backbone, arrays)
    write_network(folder, "efficientnet", {}, backbone.get_weights())
    if data is not None:
        with np.load(data / "vision" / "imagenette_check.npz") as file:
            images, labels = decoded(file, "test"), file["test_labels"]
        found = efficientnet.top_1(arrays, images, labels)
        print(f"top-1 on {len(labels)} ImageNet images: {found:.3f}")


def write_task(folder: Path, task: str, network: str, arrays) -> None:
    """Write one task."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{task}.npz", network=network, **arrays)


def write_network(folder: Path, name: str, config, weights) -> None:
    """Write a backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{i:04d}": weight for i, weight in enumerate(weights)}
    np.savez(folder / f"network-{name}.npz", config=json.dumps(config), **arrays)


def _narrow(labels: np.ndarray) -> np.ndarray:
    is_float = np.issubdtype(labels.dtype, np.floating)
    return labels.astype("float32" if is_float else "int32")
