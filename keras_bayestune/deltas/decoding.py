"""Reads a delta from its file, believing nothing that it says; see `file_format`."""

import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors

from keras_bayestune.deltas.file_format import (
    ENTRY,
    FORMAT,
    TENSOR_DTYPES,
    VERSION,
    digest,
    most_text,
)
from keras_bayestune.deltas.variable import DTYPES, VariableDelta
from keras_bayestune.selection import index_dtype
from keras_bayestune.selection.gaps import decode_gaps

_MAX_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_MAX_NDIM = 32
_MAX_SIZE = 2**63 - 1


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a delta file; a large file of another kind is not read whole.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        size = os.fstat(file.fileno()).st_size
        if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
            raise _damaged("its header is longer than the file")
        header = file.read(length)
        if f'"{ENTRY}"'.encode() not in header:
            raise ValueError(
                f"{pathlib.Path(path).name} is not a delta: it was not written by "
                "`SparseDelta.save`."
            )
        return start + header + file.read()


def decode(data: bytes) -> tuple[dict[str, VariableDelta], dict[str, Any]]:
    """Variables and metadata of a delta file; every byte of it is checked.

    Memory is bounded by the length of `data`: nothing is allocated for a size that
    the file merely claims.

    Raises:
        ValueError: Damaged, truncated, of another version, or inconsistent.
    """
    document = document_of(data, _damaged)
    if not isinstance(document, dict):
        raise _damaged("its header is not an object")
    if document.get("format") != FORMAT:
        raise ValueError(
            f"This is not a delta file: its format is {document.get('format')!r}."
        )
    if document.get("version") != VERSION:
        raise ValueError(
            f"The delta file has format version {document.get('version')!r}; this "
            f"version of the library reads {VERSION}. Update keras_bayestune."
        )
    tensors = checked_tensors(data, document, _damaged)
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        raise _damaged("its metadata are not an object")
    rows = _rows(_Reader(tensors.pop("variables", None), "U8", "uint8").rest())
    return _variables(rows, tensors), metadata


def _rows(packed: bytes) -> Any:
    """The table of variables; memory is bounded by the length of `packed`."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, most_text(packed))
        if not inflate.eof or inflate.unused_data:
            raise _damaged("its table of variables is too long")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise _damaged("its table of variables cannot be read") from error


def _variables(rows: Any, tensors: dict[str, Any]) -> dict[str, VariableDelta]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _damaged("it does not list its variables")
    codes = _Reader(tensors.pop("indices", None), "U8", "uint8")
    values = {
        name: _Reader(tensors.pop(f"values.{name}", None), TENSOR_DTYPES[name], name)
        for name in DTYPES
    }
    variables: dict[str, VariableDelta] = {}
    for row in rows:
        path = row.get("path")
        if not isinstance(path, str) or path in variables:
            raise _damaged(f"the variable path {path!r} is missing or repeated")
        variables[path] = _variable(row, codes, values)
    if tensors or codes.left or any(reader.left for reader in values.values()):
        raise _damaged("it holds data that belong to no variable")
    return variables


def _variable(
    row: dict[str, Any], codes: "_Reader", values: dict[str, "_Reader"]
) -> VariableDelta:
    shape = row.get("shape")
    dtype = _dtype(row, "dtype")
    if not isinstance(shape, list) or len(shape) > _MAX_NDIM:
        raise _damaged(f"the shape of {row['path']!r} is not a list")
    shape = tuple(_integer(length, _MAX_SIZE) for length in shape)
    size = _integer(math.prod(shape), _MAX_SIZE)
    count = _integer(row.get("count", 0), size)
    new = values[_dtype(row, "values") if "values" in row else dtype].take(count)
    if row.get("whole", False):
        if count != size:
            raise _damaged(f"{row['path']!r} is stored whole, but not all of it")
        return VariableDelta(shape, dtype, None, new)
    if "checksum" not in row and count:
        raise _damaged(f"{row['path']!r} has values, but no checksum")
    if "checksum" not in row:
        return VariableDelta.free(shape, dtype)
    if count == size:
        indices = np.arange(size)
    else:
        code = codes.take(_integer(row.get("bytes", 0), codes.left))
        try:
            indices = decode_gaps(code.tobytes(), row.get("width", 1))
        except ValueError as error:
            raise _damaged(str(error)) from error
        if len(indices) != count or (count and indices[-1] >= size):
            raise _damaged(f"the positions in {row['path']!r} do not fit its shape")
    return VariableDelta(
        shape,
        dtype,
        indices.astype(index_dtype(size)),
        new,
        checksum=_checksum(row["checksum"]),
        base_checksum=_checksum(row.get("base_checksum", "00000000")),
    )


class _Reader:
    """Takes parts of a tensor from front to back, never more than there is."""

    def __init__(self, tensor: dict[str, Any] | None, tensor_dtype: str, name: str):
        self._array = np.empty(0, name)
        if tensor is not None:
            if tensor["dtype"] != tensor_dtype or len(tensor["shape"]) != 1:
                raise _damaged("a tensor has another type than its name says")
            self._array = np.frombuffer(bytes(tensor["data"]), name)
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._array) - self._position

    def rest(self) -> bytes:
        return self.take(self.left).tobytes()

    def take(self, count: int) -> np.ndarray:
        if count > self.left:
            raise _damaged("a variable claims more values than there are")
        self._position += count
        return self._array[self._position - count : self._position]


def document_of(data: bytes, damaged: Callable[[str], ValueError]) -> Any:
    """The JSON document in the header, as it is.

    Args:
        data: A file that has its document where a delta has it.
        damaged: Makes the error for a reason.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise damaged("its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length])
        return json.loads(header["__metadata__"][ENTRY])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(f"its header cannot be read ({type(error).__name__})") from error


def checked_tensors(
    data: bytes, document: dict[str, Any], damaged: Callable[[str], ValueError]
) -> dict[str, Any]:
    """The tensors by name, if the digest in the document holds; as `document_of`."""
    claimed = document.get("sha256")
    if not isinstance(claimed, str) or not re.fullmatch("[0-9a-f]{64}", claimed):
        raise damaged("it has no digest")
    if digest(data, data.find(claimed.encode())) != claimed:
        raise damaged("its digest does not match its content")
    try:
        return dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise damaged(str(error)) from error


def _dtype(row: dict[str, Any], key: str) -> str:
    name = row.get(key)
    if not isinstance(name, str) or name not in DTYPES:
        raise _damaged(f"the dtype of {row['path']!r} is unknown")
    return name


def _integer(value: Any, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise _damaged(f"a length is {str(value)[:40]}, not in 0..{largest}")
    return value


def _checksum(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{8}", text):
        raise _damaged("a checksum is not 8 hexadecimal digits")
    return int(text, 16)


def _damaged(reason: str) -> ValueError:
    return ValueError(
        f"The delta file is damaged: {reason}. Copy or save it again; nothing was "
        "loaded."
    )
