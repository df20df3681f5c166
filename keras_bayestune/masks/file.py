"""A mask as a file, and its indices as text in the config of an optimizer.

The file has one array of flat indices per variable, int32 or int64.
"""

import base64
import os
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_bayestune import document_file
from keras_bayestune.selection.gaps import decode_gaps, encode_gaps

if TYPE_CHECKING:
    from keras_bayestune.masks.sparse_mask import SparseMask

FORMAT = document_file.Format(
    "mask",
    version=1,
    writer="SparseMask.save",
    fields={"shapes": dict, "always": list, "mean_scores": dict, "candidates": list},
)


def write(path: str | os.PathLike[str], mask: "SparseMask") -> None:
    """Write the mask to a file, whole or not at all."""
    document = {
        "shapes": dict(mask.shapes),
        "always": mask.always,
        "mean_scores": dict(mask.mean_scores),
        "candidates": mask.candidates,
    }
    document_file.write(path, FORMAT, document, mask.indices)


def fields_of(
    document: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the constructor's arguments, which the constructor checks."""
    indices = dict(arrays)
    for name, found in indices.items():
        # Without indices the constructor takes any dtype.
        if found.dtype not in (np.int32, np.int64):
            raise ValueError(
                f"Its indices of {name!r} are {found.dtype}, expected int32 or int64."
            )
    return {**document, "indices": indices}


def pack(flat_indices: np.ndarray) -> dict[str, Any]:
    """Indices as JSON: the codes of the gaps between them, deflated, in base64."""
    codes, width = encode_gaps(flat_indices)
    data = base64.b64encode(zlib.compress(codes, level=9)).decode("ascii")
    return {"width": width, "bytes": len(codes), "data": data}


def unpack(path: str, packed: Mapping[str, Any]) -> np.ndarray:
    """The indices that `pack` packed, int64.

    Raises:
        ValueError: The text is damaged.
    """
    try:
        compressed = base64.b64decode(packed["data"], validate=True)
        # One byte more than expected would show; a bomb stops there.
        codes = zlib.decompressobj().decompress(compressed, packed["bytes"] + 1)
        if len(codes) != packed["bytes"]:
            raise ValueError(f"{len(codes)} bytes, expected {packed['bytes']}")
        return decode_gaps(codes, packed["width"])
    except (ValueError, OverflowError, zlib.error) as error:
        raise ValueError(f"The indices of {path!r} are damaged: {error}.") from error
