"""The file of a posterior: delta files in a row, and their deviations.

One safetensors file. The tensor `delta.<k>` holds the bytes of the k-th delta's own
file, which its own reader checks; `deviations.<k>` the deviations of its variables one
after another, and the document in the header which variables these are.
"""

import json
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from keras_bayestune._version import __version__
from keras_bayestune.deltas import SparseDelta, decoding, encoding
from keras_bayestune.deltas.file_format import ENTRY, NO_DIGEST, digest

FORMAT = "keras_bayestune.posterior"
VERSION = 1


def encode(posterior: Any) -> bytes:
    """Return the bytes of a posterior's file.

    Raises:
        ValueError: The metadata are not JSON.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": NO_DIGEST,
        "library": __version__,
        "outputs": posterior.outputs,
        "temperature": posterior.temperature,
        "noise_variance": posterior.noise_variance,
        "deviations": [list(own) for own in posterior.deviations],
        "metadata": posterior.metadata,
    }
    tensors = {}
    for k, delta in enumerate(posterior.deltas):
        data = encoding.encode(delta.variables, delta.metadata)
        tensors[f"delta.{k}"] = np.frombuffer(data, "uint8")
        if posterior.deviations[k]:
            own = posterior.deviations[k].values()
            tensors[f"deviations.{k}"] = np.concatenate(list(own))
    try:
        text = json.dumps(document, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The metadata of a posterior must be JSON: {error}. Pass strings, "
            "numbers, lists and dictionaries."
        ) from error
    data = safetensors.numpy.save(tensors, {ENTRY: text})
    # The first one is this document's: headers come before tensors.
    start = data.index(NO_DIGEST.encode())
    return data[:start] + digest(data, start).encode() + data[start + 64 :]


def decode(data: bytes) -> dict[str, Any]:
    """Return the constructor's arguments from a file; every byte of it is checked.

    Memory is bounded by the length of `data`.

    Raises:
        ValueError: Damaged, of another version or of another kind.
    """
    document = _document(data)
    tensors = decoding.checked_tensors(data, document, _damaged)
    deltas, deviations = [], []
    for k, paths in enumerate(_paths(document)):
        if f"delta.{k}" not in tensors:
            raise _damaged(f"delta {k} is missing")
        packed = bytes(tensors.pop(f"delta.{k}")["data"])
        deltas.append(SparseDelta(*decoding.decode(packed)))
        tensor = tensors.pop(f"deviations.{k}", None)
        deviations.append(_deviations(deltas[k], paths, tensor))
    if tensors:
        raise _damaged("it holds tensors that belong to no delta")
    names = ("outputs", "temperature", "noise_variance", "metadata")
    if not all(name in document for name in names):
        raise _damaged("its header lacks a field")
    return {
        "deltas": deltas,
        "deviations": deviations,
        **{name: document[name] for name in names},
    }


def _document(data: bytes) -> dict[str, Any]:
    document = decoding.document_of(data, _damaged)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(
            "This is not a posterior file: it was not written by `DeltaPosterior.save`."
        )
    if document.get("version") != VERSION:
        raise ValueError(
            f"The posterior file has format version {document.get('version')!r}; this "
            f"version of the library reads {VERSION}. Update keras_bayestune."
        )
    return document


def _paths(document: dict[str, Any]) -> list[list[str]]:
    paths = document.get("deviations")
    if not isinstance(paths, list) or not all(
        isinstance(own, list) and all(isinstance(path, str) for path in own)
        for own in paths
    ):
        raise _damaged("it does not list its deviations")
    return paths


def _deviations(
    delta: SparseDelta, paths: list[str], tensor: dict[str, Any] | None
) -> dict[str, np.ndarray]:
    if any(path not in delta.variables for path in paths):
        raise _damaged("it has deviations of a variable that its delta lacks")
    sizes = [len(delta.variables[path].values) for path in paths]
    values = np.empty(0, np.float32)
    if tensor is not None:
        if tensor["dtype"] != "F32" or len(tensor["shape"]) != 1:
            raise _damaged("a tensor has another type than its name says")
        values = np.frombuffer(bytes(tensor["data"]), np.float32)
    if len(values) != sum(sizes):
        raise _damaged("its deviations do not fit its deltas")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return dict(zip(paths, parts, strict=True)) if paths else {}


def _damaged(reason: str) -> ValueError:
    return ValueError(
        f"The posterior file is damaged: {reason}. Copy or save it again; nothing was "
        "loaded."
    )
