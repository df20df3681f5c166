"""The delta file; `docs/delta-format.md` describes it.

The array `indices` holds the gap codes of all variables one after another,
`values.<dtype>` their values, and `variables` the table that says which part belongs to
which variable: JSON, deflated, because as plain text it weighs as much as 30 selected
scalars for each variable. Reading believes nothing that the table says.
"""

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_bayestune._version import __version__
from keras_bayestune.deltas.variable import DTYPES, VariableDelta, fingerprint
from keras_bayestune.document_file import Format
from keras_bayestune.selection import index_dtype
from keras_bayestune.selection.gaps import decode_gaps, encode_gaps
from keras_bayestune.updates import scatter

FORMAT = Format(
    "delta",
    version=1,
    writer="SparseDelta.save",
    fields={
        "library": str,
        "keras": str,
        "backend": str,
        "fingerprint": str,
        "selected": int,
        "scalars": int,
        "metadata": dict,
    },
)
_MAX_NDIM = 32
_MAX_SIZE = 2**63 - 1

Document = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


def to_document(
    variables: Mapping[str, VariableDelta], metadata: Mapping[str, Any]
) -> tuple[Document, dict[str, np.ndarray]]:
    """The document and the arrays of a delta."""
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
                code, row["width"] = encode_gaps(delta.flat_indices)
                row["bytes"] = len(code)
                codes.append(code)
        rows.append(row)
    document = {
        "library": __version__,
        "keras": keras.__version__,
        "backend": scatter.backend_name(),
        "fingerprint": fingerprint(variables.values()),
        "selected": sum(len(delta.values) for delta in variables.values()),
        "scalars": sum(delta.size for delta in variables.values()),
        "metadata": dict(metadata),
    }
    table = json.dumps(rows, separators=(",", ":")).encode()
    arrays = {
        "indices": np.frombuffer(b"".join(codes), "uint8"),
        "variables": np.frombuffer(deflated(table), "uint8"),
    }
    arrays |= {f"values.{name}": np.concatenate(own) for name, own in values.items()}
    return document, arrays


def from_document(
    document: Document, arrays: Arrays
) -> tuple[dict[str, VariableDelta], dict[str, Any]]:
    """Variables and metadata of a delta.

    Memory is bounded by the length of the arrays: nothing is allocated for a size that
    the table merely claims.

    Raises:
        ValueError: The arrays do not fit together.
    """
    named = {"indices": "uint8", **{f"values.{name}": name for name in DTYPES}}
    foreign = set(arrays) - {"variables", *named}
    if foreign:
        raise ValueError(
            f"It holds arrays that a delta has not: {sorted(foreign)[:3]}."
        )
    readers = {name: _Reader(arrays, name, dtype) for name, dtype in named.items()}
    variables: dict[str, VariableDelta] = {}
    for row in _rows(_Reader(arrays, "variables", "uint8").rest()):
        path = row.get("path")
        if not isinstance(path, str) or path in variables:
            raise ValueError(f"The variable path {path!r} is missing or repeated.")
        variables[path] = _variable(row, readers)
    if any(reader.left for reader in readers.values()):
        raise ValueError("It holds data that belong to no variable.")
    return variables, document["metadata"]


def deflated(text: bytes) -> bytes:
    """The table of variables as it is stored."""
    packed = zlib.compress(text, 9)
    # What a reader would take for a bomb is stored as it is.
    return packed if len(text) <= _most_text(packed) else zlib.compress(text, 0)


def _most_text(packed: bytes) -> int:
    """Length up to which `packed` may inflate.

    Tables of real models shrink about tenfold; those of a thousand equal layers more,
    but they are short. Python objects made of the text take up to 30 times its length.
    """
    return 16 * len(packed) + 1_000_000


def _rows(packed: bytes) -> list[dict[str, Any]]:
    """The table of variables; memory is bounded by the length of `packed`."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, _most_text(packed))
        # Before it is read: what is too long would take that much more memory.
        whole = inflate.eof and not inflate.unused_data
        rows = json.loads(text) if whole else None
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError("Its table of variables cannot be read.") from error
    if not whole:
        raise ValueError("Its table of variables is too long.")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("Its table does not list its variables.")
    return rows


def _variable(row: dict[str, Any], readers: dict[str, "_Reader"]) -> VariableDelta:
    shape, path = row.get("shape"), row["path"]
    dtype = _dtype(row, "dtype")
    if not isinstance(shape, list) or len(shape) > _MAX_NDIM:
        raise ValueError(f"The shape of {path!r} is not a list.")
    shape = tuple(_integer(length, _MAX_SIZE) for length in shape)
    size = _integer(math.prod(shape), _MAX_SIZE)
    count = _integer(row.get("count", 0), size)
    stored = _dtype(row, "values") if "values" in row else dtype
    new = readers[f"values.{stored}"].take(count)
    if row.get("whole", False):
        if count != size:
            raise ValueError(f"{path!r} is stored whole, but not all of it.")
        return VariableDelta(shape, dtype, None, new)
    if "checksum" not in row:
        if count:
            raise ValueError(f"{path!r} has values, but no checksum.")
        return VariableDelta.free(shape, dtype)
    indices = _positions(row, count, size, readers["indices"])
    return VariableDelta(
        shape,
        dtype,
        indices.astype(index_dtype(size)),
        new,
        checksum=_checksum(row["checksum"]),
        base_checksum=_checksum(row.get("base_checksum", "00000000")),
    )


def _positions(
    row: dict[str, Any], count: int, size: int, codes: "_Reader"
) -> np.ndarray:
    if count == size:
        return np.arange(size)
    code = codes.take(_integer(row.get("bytes", 0), codes.left))
    indices = decode_gaps(code.tobytes(), row.get("width", 1))
    if len(indices) != count or (count and indices[-1] >= size):
        raise ValueError(f"The indices in {row['path']!r} do not fit its shape.")
    return indices


class _Reader:
    """Takes parts of an array from front to back, never more than there is."""

    def __init__(self, arrays: Arrays, name: str, dtype: str):
        self._array = arrays[name] if name in arrays else np.empty(0, dtype)
        if self._array.dtype.name != dtype or self._array.ndim != 1:
            raise ValueError(f"The array {name!r} has another type than its name says.")
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._array) - self._position

    def rest(self) -> bytes:
        return self.take(self.left).tobytes()

    def take(self, count: int) -> np.ndarray:
        if count > self.left:
            raise ValueError("A variable claims more values than there are.")
        self._position += count
        return self._array[self._position - count : self._position]


def _dtype(row: dict[str, Any], key: str) -> str:
    name = row.get(key)
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"The dtype of {row['path']!r} is unknown.")
    return name


def _integer(value: Any, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError(f"A length is {str(value)[:40]}, not in 0..{largest}.")
    return value


def _checksum(text: Any) -> int:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{8}", text):
        raise ValueError("A checksum is not 8 hexadecimal digits.")
    return int(text, 16)
