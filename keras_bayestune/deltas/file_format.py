"""The delta file: encoding and decoding; `docs/delta-format.md` describes it.

One safetensors file. The tensor `indices` holds the gap codes of all variables one
after another, `values.<dtype>` their values, and `variables` the table that says which
part belongs to which variable: JSON, deflated, because as plain text it weighs as much
as 30 selected scalars for each variable. One entry of `__metadata__` is the part that
people read.
"""

import hashlib
import zlib

FORMAT = "keras_bayestune.delta"
VERSION = 1

ENTRY = "keras_bayestune"  # the key in safetensors' `__metadata__`
NO_DIGEST = "0" * 64
TENSOR_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


def digest(data: bytes, start: int) -> str:
    """SHA-256 of the file with its own 64 digits, at `start`, set to zero."""
    sha256 = hashlib.sha256(data[: max(start, 0)])
    sha256.update(NO_DIGEST.encode())
    sha256.update(memoryview(data)[max(start, 0) + 64 :])
    return sha256.hexdigest()


def deflated(text: bytes) -> bytes:
    """The table of variables as it is stored."""
    packed = zlib.compress(text, 9)
    # What a reader would take for a bomb is stored as it is.
    return packed if len(text) <= most_text(packed) else zlib.compress(text, 0)


def most_text(packed: bytes) -> int:
    """Length up to which `packed` may inflate.

    Tables of real models shrink about tenfold; those of a thousand equal layers more,
    but they are short. Python objects made of the text take up to 30 times its length.
    """
    return 16 * len(packed) + 1_000_000
