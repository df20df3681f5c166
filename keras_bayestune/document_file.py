"""The one form of every file that this package reads: a JSON document and arrays.

A safetensors file, little-endian. Its `__metadata__` has `sha256` (of the whole file
with these 64 digits as zeros), `format`, `version` and `document`. Each format says
which fields its document has; what they mean is checked where they are used.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

import keras
import ml_dtypes  # noqa: F401  (tells NumPy about bfloat16)
import numpy as np
from keras import ops

from keras_bayestune.files import replacing

Loaded = TypeVar("Loaded")

_NO_DIGEST = b"0" * 64
_DIGEST_AT = 8 + len('{"__metadata__":{"sha256":"')
_MAX_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_MAX_NDIM = 32
_CHUNK = 1 << 20  # bytes
_DTYPES = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_NAMES = {code: name for name, code in _DTYPES.items()}


class Format(NamedTuple):
    """One kind of file."""

    kind: str  # as messages call it
    version: int
    writer: str  # what writes such files
    fields: Mapping[str, Any]  # of the document, each with its type: no more, no less
    cure: str = "Copy it or save it again."

    @property
    def name(self) -> str:
        """What the file says that it is."""
        return f"keras_bayestune.{self.kind}"


def write(
    path: str | os.PathLike[str],
    form: Format,
    document: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> None:
    """Write a file, whole or not at all, one array at a time.

    Args:
        path: Where. Its folder must exist.
        form: What the file is.
        document: The fields of the format.
        arrays: NumPy arrays or Keras variables by name.

    Raises:
        ValueError: The document is not JSON, or an array has a dtype that safetensors
            does not know.
        OSError: The folder cannot be written, or the disk is full. Whatever was at
            `path` stays.
    """
    with replacing(path) as temporary, open(temporary, "xb") as file:
        digest = hashlib.sha256()
        for piece in pieces(form, document, arrays):
            digest.update(piece)
            file.write(piece)
        file.seek(_DIGEST_AT)
        file.write(digest.hexdigest().encode())


def pieces(
    form: Format, document: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Iterator[Any]:
    """The bytes of a file part by part, the digest as zeros; arguments as `write`."""
    entries: dict[str, Any] = {}
    end = 0
    dtypes = {name: _dtype(name, array) for name, array in arrays.items()}
    # Wide ones first, as safetensors has them: so each lies where its dtype may.
    order = sorted(arrays, key=lambda name: -dtypes[name].itemsize)
    for name in order:
        shape = [int(length) for length in arrays[name].shape]
        start, end = end, end + math.prod(shape) * dtypes[name].itemsize
        entries[name] = {
            "dtype": _DTYPES[dtypes[name].name],
            "shape": shape,
            "data_offsets": [start, end],
        }
    metadata = {
        "sha256": _NO_DIGEST.decode(),
        "format": form.name,
        "version": str(form.version),
        "document": _to_json(form.kind, document),
    }
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"))
    data = header.encode()
    data += b" " * (-len(data) % 8)
    yield len(data).to_bytes(8, "little") + data
    for name in order:
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            array = ops.convert_to_numpy(array)
        # As bytes, because bfloat16 has no buffer of its own.
        flat = np.ascontiguousarray(array, dtypes[name]).reshape(-1)
        yield flat.view(np.uint8).data


def read(
    path: str | os.PathLike[str],
    form: Format,
    build: Callable[[dict[str, Any], Mapping[str, np.ndarray]], Loaded],
) -> Loaded:
    """Return what `build` makes of the document and the arrays of a file.

    Every byte is covered by the digest, and no memory is allocated for a size that the
    file only claims. An array is read whenever it is asked for.

    Args:
        path: The file.
        form: What it must be.
        build: Checks what it is given, and raises for what does not fit.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind or of another version.
    """
    try:
        if os.path.isdir(path):
            raise ValueError("It is a folder.")
        with open(path, "rb") as file:
            start, header = _header(file)
            document = _document(_metadata(header), form)
            arrays = _Arrays(path, start, _entries(header, _size(file) - start))
            _check_digest(file, start)
        return build(document, arrays)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = str(error)
        if not isinstance(error, ValueError):
            reason = f"It does not fit together ({type(error).__name__}: {error})."
        raise ValueError(
            f"{os.fspath(path)!r} is not a usable {form.kind} file. {reason:.500} "
            f"Nothing was loaded. {form.cure}"
        ) from error


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format that a file names, unchecked; `None` if it names none.

    Raises:
        FileNotFoundError: There is no such file.
    """
    try:
        with open(path, "rb") as file:
            return _metadata(_header(file)[1]).get("format")
    except (ValueError, RecursionError):
        return None


def check_fields(document: Any, fields: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a document has the fields, no more, of their types."""
    if not isinstance(document, dict) or document.keys() != fields.keys():
        raise ValueError(f"Its document must have {list(fields)}, nothing else.")
    for name, kind in fields.items():
        if not isinstance(document[name], kind):
            raise ValueError(f"{name!r} in its document is not of its type.")


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays of a file, each read when asked for."""

    def __init__(self, path: str | os.PathLike[str], start: int, entries: Any):
        self._path, self._start, self._entries = path, start, entries

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._entries:
            raise ValueError(f"It has no array {name!r:.70}.")
        dtype, shape, offset = self._entries[name]
        data = np.fromfile(
            self._path, dtype, math.prod(shape), offset=self._start + offset
        )
        return data.reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _dtype(name: str, array: Any) -> np.dtype:
    dtype = keras.backend.standardize_dtype(array.dtype)
    if dtype not in _DTYPES:
        raise ValueError(
            f"{name!r} is {dtype}, which a file cannot hold. Use one of "
            f"{list(_DTYPES)}."
        )
    return np.dtype(dtype)


def _to_json(kind: str, document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(document, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The document of a {kind} file must be JSON: {str(error).rstrip('.')}. "
            "Pass strings, numbers, lists and dictionaries as metadata."
        ) from error


def _plain(value: Any) -> Any:
    """NumPy scalars and Keras objects (an optimizer's schedule) as JSON takes them."""
    if isinstance(value, np.generic):
        return value.item()
    return keras.saving.serialize_keras_object(value)


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


def _metadata(header: dict[str, Any]) -> dict[str, Any]:
    """What is not an array, taken out of the header."""
    metadata = header.pop("__metadata__", None)
    return metadata if isinstance(metadata, dict) else {}


def _document(metadata: dict[str, Any], form: Format) -> dict[str, Any]:
    """The document, with the fields of the format."""
    if metadata.get("format") != form.name:
        raise ValueError(
            f"Its format is {str(metadata.get('format')):.70}, not {form.name}, which "
            f"{form.writer} writes."
        )
    if metadata.get("version") != str(form.version):
        raise ValueError(
            f"Its version is {str(metadata.get('version')):.20}, and this "
            f"keras_bayestune reads {form.version}: use the release that wrote it, or "
            "a newer one."
        )
    if not isinstance(metadata.get("document"), str):
        raise ValueError("It has no document.")
    document = json.loads(metadata["document"])
    check_fields(document, form.fields)
    return document


def _entries(header: dict[str, Any], size: int) -> dict[str, Any]:
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


def _check_digest(file: BinaryIO, start: int) -> None:
    file.seek(0)
    head = file.read(start)
    end = _DIGEST_AT + len(_NO_DIGEST)
    digest = hashlib.sha256(head[:_DIGEST_AT] + _NO_DIGEST + head[end:])
    while data := file.read(_CHUNK):
        digest.update(data)
    if digest.hexdigest().encode() != head[_DIGEST_AT:end]:
        raise ValueError("Its digest does not match: some of it has changed.")
