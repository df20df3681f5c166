"""What the callback knows in the middle of a `fit`, as JSON and arrays, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bayestune.callbacks.result import Result
from keras_bayestune.masks import SparseMask

Read = Callable[[str], np.ndarray]  # the array of a name; a KeyError if there is none


@dataclass(frozen=True)
class Progress:
    """What the callback itself knows at the start of an epoch."""

    epoch: int  # the one that comes next, from 0
    first_epoch: int | None  # of stage 1; `None` before it begins
    batches: int  # since then
    numbers: dict[str, float]  # logged so far
    result: Result | None  # of stage 1, once that is over
    non_trainable: list[np.ndarray]  # anchors, until stage 1 is over
    trace: tuple[int, np.ndarray, np.ndarray] | None  # count, samples, running total


def progress_document(
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a document for JSON and the arrays beside it, by name."""
    arrays: dict[str, np.ndarray] = {}
    document: dict[str, Any] = {
        "epoch": progress.epoch,
        "first_epoch": progress.first_epoch,
        "batches": progress.batches,
        "numbers": progress.numbers,
        "non_trainable": len(progress.non_trainable),
        "result": None,
        "trace": None,
    }
    for i, anchor in enumerate(progress.non_trainable):
        arrays[f"non_trainable.{i}"] = anchor
    if progress.result is not None:
        document["result"] = _describe(progress.result, arrays)
    if progress.trace is not None:
        document["trace"], samples, total = progress.trace
        arrays |= {"trace.samples": samples, "trace.total": total}
    return document, arrays


def read_progress(document: dict[str, Any], read: Read) -> Progress:
    """Undo `progress_document`.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: they do not fit together.
    """
    count, first = document["trace"], document["first_epoch"]
    trace = None
    if count is not None:
        trace = (int(count), read("trace.samples"), read("trace.total"))
    return Progress(
        epoch=int(document["epoch"]),
        first_epoch=None if first is None else int(first),
        batches=int(document["batches"]),
        numbers=dict(document["numbers"]),
        non_trainable=read_arrays(document, "non_trainable", read),
        result=_read_result(document["result"], read),
        trace=trace,
    )


def read_arrays(document: dict[str, Any], name: str, read: Read) -> list[np.ndarray]:
    """Return the arrays `name.0`, `name.1`, of which the document has the number."""
    return [read(f"{name}.{i}") for i in range(int(document[name]))]


def _describe(result: Result, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The document of a result, whose arrays are added to `arrays`."""
    mask = result.mask
    groups = {"mask": mask.indices, "scores": result.scores, "anchors": result.anchors}
    for name, group in groups.items():
        for i, array in enumerate((group or {}).values()):
            arrays[f"{name}.{i}"] = array
    return {
        **{n: None if group is None else list(group) for n, group in groups.items()},
        "shapes": [list(shape) for shape in mask.shapes.values()],
        "always": mask.always,
        "mean_scores": dict(mask.mean_scores),
        "candidates": mask.candidates,
        "skipped_steps": result.skipped_steps,
        "metadata": result.metadata,
    }


def _read_result(document: Any, read: Read) -> Result | None:
    if document is None:
        return None

    def arrays(name: str) -> dict[str, np.ndarray]:
        return {path: read(f"{name}.{i}") for i, path in enumerate(document[name])}

    def arrays_if_kept(name: str) -> dict[str, np.ndarray] | None:
        return None if document[name] is None else arrays(name)

    return Result(
        mask=SparseMask(
            arrays("mask"),
            dict(zip(document["mask"], document["shapes"], strict=True)),
            always=document["always"],
            mean_scores=document["mean_scores"],
            candidates=document["candidates"],
        ),
        scores=arrays_if_kept("scores"),
        anchors=arrays_if_kept("anchors"),
        skipped_steps=int(document["skipped_steps"]),
        metadata=dict(document["metadata"]),
    )
