"""The state of a run as one file: a JSON document and arrays.

Safetensors, written and read one array at a time, so that neither side holds the whole
state a second time. `__metadata__` has `format` ("keras_bayestune.state"), `version`
("1"), `state` (the document) and `sha256` (of the file with these 64 digits as zeros).
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import keras
import ml_dtypes  # noqa: F401  (tells NumPy about bfloat16)
import numpy as np
from keras import ops

from keras_bayestune.files import replacing

_FORMAT = "keras_bayestune.state"
_VERSION = "1"
_NO_DIGEST = "0" * 64
_MAX_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_MAX_NDIM = 32
_CHUNK = 1 << 20  # bytes
_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_NAMES = {code: name for name, code in _DTYPES.items()}


def write(
    path: str | os.PathLike[str], document: Any, arrays: Iterable[tuple[str, Any]]
) -> None:
    """Write `document` and `(name, NumPy array or Keras variable)`, whole or not.

    Raises:
        ValueError: an array has a dtype that the format does not know.
        OSError: the folder cannot be written, or the disk is full. Whatever was at
            `path` stays.
    """
    arrays = list(arrays)
    entries: dict[str, Any] = {}
    end = 0
    for name, array in arrays:
        dtype = keras.backend.standardize_dtype(array.dtype)
        if dtype not in _DTYPES:
            raise ValueError(
                f"The state of {name!r} is {dtype}, which a state file cannot hold. "
                f"Use one of {list(_DTYPES)}."
            )
        shape = [int(length) for length in array.shape]
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": _DTYPES[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "sha256": _NO_DIGEST,
        "state": json.dumps(document, default=str),
    }
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as temporary, open(temporary, "xb") as file:
        digest = hashlib.sha256()
        for data in _pieces(header, arrays):
            digest.update(data)
            file.write(data)
        file.seek(8 + header.index(_NO_DIGEST.encode()))
        file.write(digest.hexdigest().encode())


def _pieces(header: bytes, arrays: list[tuple[str, Any]]) -> Iterable[Any]:
    yield len(header).to_bytes(8, "little")
    yield header
    for _, array in arrays:
        if not isinstance(array, np.ndarray):
            array = ops.convert_to_numpy(array)
        # As bytes, because bfloat16 has no buffer of its own.
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class StateFile:
    """A state file, checked from end to end; its arrays are read when asked for.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        try:
            with open(path, "rb") as file:
                self._start, header = _header(file)
                metadata = _metadata(header)
                self.arrays = _arrays(header, _size(file) - self._start)
                _check_digest(file, metadata["sha256"], self._start)
            self.document: Any = json.loads(metadata["state"])
        except (ValueError, RecursionError) as error:
            raise self.unusable(str(error) or type(error).__name__) from error

    def unusable(self, reason: str) -> ValueError:
        """Return the error for a file that cannot be used."""
        return ValueError(
            f"{str(self._path)!r} is no usable state file. {reason} Nothing was "
            "loaded. Put back the right file, or delete it to start anew."
        )

    def read(self, name: str) -> np.ndarray:
        """Return one array."""
        dtype, shape, start = self.arrays[name]
        data = np.fromfile(
            self._path, dtype, math.prod(shape), offset=self._start + start
        )
        return data.reshape(shape)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Where the arrays start, and the header; no longer than the file."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MAX_HEADER, _size(file) - 8):
        raise ValueError("Its header is longer than the file.")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("Its header is not an object.")
    return 8 + length, header


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict):
        raise ValueError("It has no metadata.")
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"Its format is not {_FORMAT!r}.")
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"Its version is {str(metadata.get('version')):.20}, and this "
            f"keras_bayestune reads {_VERSION}: use the release that wrote it."
        )
    if not all(isinstance(metadata.get(key), str) for key in ("sha256", "state")):
        raise ValueError("Its metadata are not text.")
    if not re.fullmatch("[0-9a-f]{64}", metadata["sha256"]):
        raise ValueError("It has no checksum.")
    return metadata


def _arrays(header: dict[str, Any], size: int) -> dict[str, Any]:
    """`{name: (dtype, shape, offset)}`; together they are `size` bytes, no gaps."""
    found: dict[str, Any] = {}
    end = 0
    for name, entry in header.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise ValueError(f"Its entry of {name!r:.70} is not one of an array.")
        shape, dtype = entry.get("shape"), _NAMES.get(entry["dtype"])
        if dtype is None or not isinstance(shape, list) or len(shape) > _MAX_NDIM:
            raise ValueError(f"Dtype or shape of {name!r:.70} are unknown.")
        if not all(type(length) is int and 0 <= length <= size for length in shape):
            raise ValueError(f"The shape of {name!r:.70} does not fit the file.")
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        if entry.get("data_offsets") != [start, end] or end > size:
            raise ValueError(f"{name!r:.70} does not lie where it should.")
        found[name] = np.dtype(dtype), tuple(shape), start
    if end != size:
        raise ValueError(f"It has {size} bytes of arrays instead of {end}.")
    return found


def _check_digest(file: BinaryIO, claimed: str, start: int) -> None:
    file.seek(0)
    header = file.read(start)
    digest = hashlib.sha256(header.replace(claimed.encode(), _NO_DIGEST.encode(), 1))
    while data := file.read(_CHUNK):
        digest.update(data)
    if digest.hexdigest() != claimed:
        raise ValueError("Its checksum does not match: some of it has changed.")
