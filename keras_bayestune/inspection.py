"""What a file of this library holds, as text: `python -m keras_bayestune inspect`."""

import io
import json
import os
from collections.abc import Callable
from typing import Any

from keras_bayestune import document_file
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.masks import SparseMask
from keras_bayestune.uncertainty import DeltaPosterior


def inspect_file(path: str | os.PathLike[str]) -> str:
    """Say what a mask, a delta or a posterior holds; the whole file is checked.

    Args:
        path: A file that `save` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or of another kind.

    Examples:
        >>> from keras_bayestune import SparseMask
        >>> from keras_bayestune.inspection import inspect_file
        >>> SparseMask({"a/kernel": [1]}, {"a/kernel": (4,)}).save("m.safetensors")
        >>> print(inspect_file("m.safetensors").partition(", ")[0])
        m.safetensors: SparseMask(25 % of 4 scalars (1))
    """
    kind = document_file.format_of(path)
    if kind not in _DESCRIBED:
        raise ValueError(
            f"{os.fspath(path)!r} is not a mask, a delta or a posterior of this "
            f"library: its format is {kind!r}. Pass a file that SparseMask.save, "
            "SparseDelta.save or DeltaPosterior.save wrote."
        )
    load, describe = _DESCRIBED[kind]
    value = load(path)
    size = f"{os.path.getsize(path):,} bytes"
    first = f"{os.path.basename(path)}: {value!r}, {size}"
    return "\n".join([first, *describe(value)])


def _of_mask(mask: SparseMask) -> list[str]:
    lines = [_table(mask)]
    if mask.candidates:
        bends = ", ".join(f"{100 * p:.3g} %" for p in mask.candidates)
        lines.append(f"bends of the sorted scores: {bends}")
    return lines


def _of_delta(delta: SparseDelta) -> list[str]:
    stored = delta.variables.items()
    mask = SparseMask(
        {path: v.flat_indices for path, v in stored},
        {path: v.shape for path, v in stored},
        always=tuple(path for path, v in stored if v.is_whole),
    )
    dtypes = sorted({v.values.dtype.name for _, v in stored if len(v.values)})
    lines = [_table(mask), f"values: {', '.join(dtypes) or 'none'}"]
    if delta.metadata:
        lines.append(f"metadata: {json.dumps(dict(delta.metadata), indent=1)}")
    return lines


def _of_posterior(posterior: DeltaPosterior) -> list[str]:
    lines = [repr(delta) for delta in posterior.deltas]
    if posterior.metadata:
        lines.append(f"metadata: {json.dumps(posterior.metadata, indent=1)}")
    return lines


def _table(mask: SparseMask) -> str:
    file = io.StringIO()
    mask.summary(file)
    return file.getvalue().rstrip()


_DESCRIBED: dict[str | None, tuple[Callable[[Any], Any], Callable[[Any], list[str]]]]
_DESCRIBED = {
    "keras_bayestune.mask": (SparseMask.load, _of_mask),
    "keras_bayestune.delta": (SparseDelta.load, _of_delta),
    "keras_bayestune.posterior": (DeltaPosterior.load, _of_posterior),
}
