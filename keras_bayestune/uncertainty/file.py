"""The file of a posterior: deltas in a row, and their deviations.

The arrays of the k-th delta are those of its own file, behind `<k>.`; `<k>.deviations`
has the deviations of its variables one after another, and the document says which
variables these are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bayestune._version import __version__
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.deltas import file as delta_file
from keras_bayestune.document_file import Format, check_fields

FORMAT = Format(
    "posterior",
    version=1,
    writer="DeltaPosterior.save",
    fields={
        "library": str,
        "outputs": str,
        "temperature": int | float,
        "noise_variance": int | float,
        "deltas": list,
        "deviations": list,
        "metadata": dict,
    },
)


def to_document(posterior: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the document and the arrays of a posterior."""
    documents = []
    arrays: dict[str, np.ndarray] = {}
    for k, delta in enumerate(posterior.deltas):
        document, own = delta_file.to_document(delta.variables, delta.metadata)
        documents.append(document)
        if posterior.deviations[k]:
            own["deviations"] = np.concatenate([*posterior.deviations[k].values()])
        arrays |= {f"{k}.{name}": array for name, array in own.items()}
    return {
        "library": __version__,
        "outputs": posterior.outputs,
        "temperature": posterior.temperature,
        "noise_variance": posterior.noise_variance,
        "deltas": documents,
        "deviations": [list(own) for own in posterior.deviations],
        "metadata": posterior.metadata,
    }, arrays


def from_document(
    document: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the constructor's arguments.

    Raises:
        ValueError: The arrays do not fit together.
    """
    own: list[dict[str, np.ndarray]] = [{} for _ in document["deltas"]]
    for name in arrays:
        k, _, rest = name.partition(".")
        if not k.isdecimal() or int(k) >= len(own):
            raise ValueError(f"It holds {name!r:.70}, which belongs to no delta.")
        own[int(k)][rest] = arrays[name]
    deltas, deviations = [], []
    for each, paths, its in zip(
        document["deltas"], document["deviations"], own, strict=True
    ):
        spread = its.pop("deviations", np.empty(0, np.float32))
        check_fields(each, delta_file.FORMAT.fields)
        deltas.append(SparseDelta(*delta_file.from_document(each, its)))
        deviations.append(_deviations(deltas[-1], paths, spread))
    names = "outputs", "temperature", "noise_variance", "metadata"
    return {
        "deltas": deltas,
        "deviations": deviations,
        **{name: document[name] for name in names},
    }


def _deviations(
    delta: SparseDelta, paths: list[str], values: np.ndarray
) -> dict[str, np.ndarray]:
    unknown = set(paths) - set(delta.variables)
    if unknown:
        raise ValueError("It has deviations of a variable that its delta lacks.")
    ends = np.cumsum([len(delta.variables[path].values) for path in paths])
    if values.dtype != np.float32 or values.shape != (ends[-1] if len(ends) else 0,):
        raise ValueError("Its deviations do not fit its deltas.")
    parts = np.split(values, ends[:-1])
    return dict(zip(paths, parts, strict=True)) if paths else {}
