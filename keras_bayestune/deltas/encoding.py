"""Writes a delta to the bytes of its file; see `file_format`."""

import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from keras_bayestune._version import __version__
from keras_bayestune.deltas.file_format import (
    ENTRY,
    FORMAT,
    NO_DIGEST,
    VERSION,
    deflated,
    digest,
)
from keras_bayestune.deltas.variable import VariableDelta, fingerprint
from keras_bayestune.selection.gaps import encode_gaps
from keras_bayestune.updates import scatter


def encode(
    variables: Mapping[str, VariableDelta], metadata: Mapping[str, Any]
) -> bytes:
    """The bytes of a delta file.

    Raises:
        ValueError: `metadata` is not JSON.
    """
    codes: list[bytes] = []
    values: dict[str, list[np.ndarray]] = {}
    rows = []
    for path, delta in variables.items():
        row: dict[str, Any] = {
            "path": path,
            "shape": list(delta.shape),
            "dtype": delta.dtype,
        }
        if delta.is_whole:
            row["whole"] = True
        elif not delta.is_free:
            row["checksum"] = f"{delta.checksum:08x}"
        if len(delta.values):
            values.setdefault(delta.values.dtype.name, []).append(delta.values)
            row["count"] = len(delta.values)
            row["values"] = delta.values.dtype.name
        if not delta.is_whole and len(delta.values):
            row["base_checksum"] = f"{delta.base_checksum:08x}"
            # A variable selected in full needs no codes.
            if len(delta.values) < delta.size:
                code, row["width"] = encode_gaps(delta.positions)
                row["bytes"] = len(code)
                codes.append(code)
        rows.append(row)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": NO_DIGEST,
        "library": __version__,
        "keras": keras.__version__,
        "backend": scatter.backend_name(),
        "fingerprint": fingerprint(variables.values()),
        "selected": sum(len(delta.values) for delta in variables.values()),
        "scalars": sum(delta.size for delta in variables.values()),
        "metadata": dict(metadata),
    }
    tensors = {
        "indices": np.frombuffer(b"".join(codes), "uint8"),
        "variables": np.frombuffer(deflated(_to_json(rows).encode()), "uint8"),
    }
    for name, arrays in values.items():
        tensors[f"values.{name}"] = np.concatenate(arrays)
    data = safetensors.numpy.save(tensors, {ENTRY: _to_json(document)})
    # The first one is the placeholder: nothing of the user's stands before it.
    start = data.index(NO_DIGEST.encode())
    return data[:start] + digest(data, start).encode() + data[start + 64 :]


def _to_json(document: Any) -> str:
    try:
        return json.dumps(document, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The metadata of a delta must be JSON: {error}. Pass strings, numbers, "
            "lists and dictionaries."
        ) from error


def _plain(value: Any) -> Any:
    """NumPy scalars and Keras objects (an optimizer's schedule) as JSON takes them."""
    if isinstance(value, np.generic):
        return value.item()
    return keras.saving.serialize_keras_object(value)
