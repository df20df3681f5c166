"""Flat positions as text: a mask in the config of an optimizer."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bayestune.selection.gaps import decode_gaps, encode_gaps


def pack(positions: np.ndarray) -> dict[str, Any]:
    """Positions as JSON: the codes of the gaps between them, deflated, in base64."""
    codes, width = encode_gaps(positions)
    data = base64.b64encode(zlib.compress(codes, level=9)).decode("ascii")
    return {"width": width, "bytes": len(codes), "data": data}


def unpack(path: str, packed: Mapping[str, Any]) -> np.ndarray:
    """The positions that `pack` packed, int64.

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
        raise ValueError(f"The positions of {path!r} are damaged: {error}.") from error
