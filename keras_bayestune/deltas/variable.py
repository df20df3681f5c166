"""What a delta says about one variable: indices, new values, marks of the base."""

import dataclasses
import hashlib
import math
import zlib
from collections.abc import Iterable

import ml_dtypes  # comes with keras; registers "bfloat16" with NumPy
import numpy as np

from keras_bayestune.selection import index_dtype

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("float16"),
    "float32": np.dtype("float32"),
    "float64": np.dtype("float64"),
}


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes in C order (little-endian hosts)."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view("uint8").data)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class VariableDelta:
    """Indices and new values in one variable, and how to recognise its base.

    One of three kinds: *sparse* (some indices, possibly none: then the variable
    only has to equal the base), *whole* (`indices` is None: every scalar is stored,
    the base may hold anything) and *free* (no indices and no checksum: the variable
    is not a concern of the delta).
    """

    shape: tuple[int, ...]
    dtype: str  # the variable's; `values` may be narrower
    indices: np.ndarray | None  # (count,) int32 or int64, sorted, flat in C order
    values: np.ndarray  # (count,) the new values
    checksum: int | None = None  # of the whole base variable
    base_checksum: int | None = None  # of the base values at `indices`
    base: np.ndarray | None = None  # (count,) the base values, where known

    def __post_init__(self) -> None:
        for array in (self.indices, self.values, self.base):
            if array is not None:
                array.flags.writeable = False

    def __repr__(self) -> str:
        kind = "whole" if self.is_whole else f"{len(self.values):,} of {self.size:,}"
        kind = "free" if self.is_free else kind
        return f"VariableDelta({kind}, shape {self.shape}, {self.dtype})"

    @classmethod
    def sparse(
        cls, base: np.ndarray, indices: np.ndarray, values: np.ndarray
    ) -> "VariableDelta":
        """The delta that writes `values` at `indices` of a variable equal to `base`."""
        base_values = base.reshape(-1)[indices]
        return cls(
            shape=tuple(base.shape),
            dtype=base.dtype.name,
            indices=np.array(indices, index_dtype(base.size)),
            values=np.array(values),
            checksum=checksum(base),
            base_checksum=checksum(base_values),
            base=base_values,
        )

    @classmethod
    def whole(cls, array: np.ndarray) -> "VariableDelta":
        """The delta that replaces every scalar."""
        values = np.array(array).reshape(-1)
        return cls(tuple(array.shape), array.dtype.name, None, values)

    @classmethod
    def free(cls, shape: tuple[int, ...], dtype: str) -> "VariableDelta":
        """The delta that leaves a variable alone and asks nothing of it."""
        nothing = np.empty(0, DTYPES[dtype])
        return cls(shape, dtype, np.empty(0, index_dtype(math.prod(shape))), nothing)

    @property
    def is_whole(self) -> bool:
        """Whether every scalar is stored, whatever the base holds."""
        return self.indices is None

    @property
    def is_free(self) -> bool:
        """Whether the delta neither changes nor checks the variable."""
        return not self.is_whole and self.checksum is None

    @property
    def size(self) -> int:
        """Number of scalars of the variable."""
        return math.prod(self.shape)

    @property
    def flat_indices(self) -> np.ndarray:
        """Flat indices of the stored scalars, also for a whole variable."""
        if self.indices is None:
            return np.arange(self.size, dtype=index_dtype(self.size))
        return self.indices

    @property
    def new_values(self) -> np.ndarray:
        """The values as the variable will hold them: cast to its dtype."""
        return self.values.astype(DTYPES[self.dtype])

    def astype(self, dtype: str) -> "VariableDelta":
        """The delta with values narrowed to `dtype`; never widened."""
        narrower = DTYPES[dtype].itemsize < self.values.dtype.itemsize
        if not narrower or not len(self.values):
            return self
        with np.errstate(over="ignore"):
            values = self.values.astype(DTYPES[dtype])
        return dataclasses.replace(self, values=values)

    def emptied(self) -> "VariableDelta":
        """The delta that changes nothing: as the base, or free if it was whole."""
        if self.indices is None:
            return VariableDelta.free(self.shape, self.dtype)
        return dataclasses.replace(
            self,
            indices=self.indices[:0],
            values=self.values[:0],
            base_checksum=checksum(self.values[:0]),
            base=None if self.base is None else self.base[:0],
        )

    def with_base(self, base: np.ndarray) -> "VariableDelta":
        """The delta with the base values at its indices."""
        return dataclasses.replace(self, base=base)


def fingerprint(variables: Iterable[VariableDelta]) -> str:
    """Name of the base of these variables, in their order: 16 hexadecimal digits.

    Whole and free variables do not count: their base may hold anything.
    """
    base = [
        (delta.shape, delta.dtype, delta.checksum)
        for delta in variables
        if delta.checksum is not None
    ]
    return hashlib.sha256(repr(base).encode()).hexdigest()[:16]
