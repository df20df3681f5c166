"""Deltas of one base as displacements `new - base`, and back: the ground of algebra.

A rule of combination sees, for each variable, the displacements of all deltas on the
union of their indices, and says what the combined displacement is. Nothing of the
size of a variable is ever made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_bayestune.deltas.variable import DTYPES, VariableDelta, checksum
from keras_bayestune.matching import match_paths

Variables = Mapping[str, VariableDelta]

# (displacements, selected) -> combined: float64 (deltas, indices), bool of the same
# shape (False: the delta does not select the index, its displacement is 0), and
# float64 (indices,).
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def combine(
    deltas: Sequence[Variables], rule: Rule, whole_from: Variables | None = None
) -> dict[str, VariableDelta]:
    """Combine deltas of one base into one, scalar by scalar.

    `new = base + rule(displacements)`, in float64, rounded once to the variable's
    dtype. Where the combined displacement is that of one delta, its value is taken bit
    for bit, and where it is 0, the base. The result selects the union of the
    indices.

    A variable that is stored whole has no displacement, because its base (the random
    start of a head) is not part of the delta. It is taken from `whole_from`; without
    that, all deltas that hold it must agree bit for bit.

    Args:
        deltas: Variables of each delta; the first one's paths are kept.
        rule: The combined displacement of one variable.
        whole_from: Variables of the delta whose whole variables are taken.

    Raises:
        ValueError: Different bases, unknown base values, or whole variables that
            differ.
    """
    aligned = align(deltas)
    whole = align([deltas[0], whole_from])[1] if whole_from is not None else None
    return {
        path: _whole(path, [delta[path] for delta in aligned], whole)
        if any(delta[path].is_whole or delta[path].is_free for delta in aligned)
        else combine_variable([delta[path] for delta in aligned], rule)
        for path in aligned[0]
    }


def align(deltas: Sequence[Variables]) -> list[Variables]:
    """The deltas with the paths of the first one.

    Raises:
        ValueError: The deltas are of different bases.
    """
    first = deltas[0]
    return [first, *(_renamed(first, other) for other in deltas[1:])]


def aligned_displacements(
    deltas: Sequence[VariableDelta],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One variable of several deltas on the union of their indices.

    Returns:
        Indices `(n,)`, base values `(n,)`, displacements float64 `(deltas, n)`,
        selected bool `(deltas, n)`.

    Raises:
        ValueError: Base values are unknown.
    """
    flat_indices = np.unique(np.concatenate([delta.flat_indices for delta in deltas]))
    base = np.zeros(len(flat_indices), DTYPES[deltas[0].dtype])
    displacements = np.zeros((len(deltas), len(flat_indices)))
    selected = np.zeros((len(deltas), len(flat_indices)), bool)
    for row, delta in enumerate(deltas):
        if delta.base is None:
            if not len(delta.values):
                continue
            raise ValueError(
                "Algebra works on displacements and needs the base values, which a "
                "delta file does not hold. Read them from the base model first: "
                "`delta = delta.bind(model)`."
            )
        where = np.searchsorted(flat_indices, delta.flat_indices)
        base[where] = delta.base
        selected[row, where] = True
        new = delta.new_values.astype("float64")
        displacements[row, where] = new - delta.base.astype("float64")
    return flat_indices, base, displacements, selected


def weighted_sum(weights: Sequence[float]) -> Rule:
    """The rule `sum_k weights[k] * displacement_k`."""

    def rule(displacements: np.ndarray, selected: np.ndarray) -> np.ndarray:
        return np.asarray(weights, "float64") @ displacements

    return rule


def provenance(metadata: Sequence[Mapping[str, Any]], **rule: Any) -> dict[str, Any]:
    """Metadata of a combined delta: the rule, and what the deltas said of theirs."""
    return {**rule, "deltas": [dict(entry) for entry in metadata]}


def combine_variable(deltas: Sequence[VariableDelta], rule: Rule) -> VariableDelta:
    """Combine what several deltas say of one variable; see `combine`."""
    flat_indices, base, displacements, selected = aligned_displacements(deltas)
    first = deltas[0]
    moved = rule(displacements, selected)
    with np.errstate(over="ignore"):
        values = (base.astype("float64") + moved).astype(DTYPES[first.dtype])
    # base + (new - base) loses the last bits of a value much smaller than its base,
    # and base + 0 the sign of a base of -0.0: what is known is taken as it is.
    for row, delta in enumerate(deltas):
        own = moved[np.searchsorted(flat_indices, delta.flat_indices)]
        own = own == displacements[row, selected[row]]
        values[np.flatnonzero(selected[row])[own]] = delta.new_values[own]
    values[moved == 0.0] = base[moved == 0.0]
    return VariableDelta(
        first.shape,
        first.dtype,
        flat_indices,
        values,
        checksum=first.checksum,
        base_checksum=checksum(base),
        base=base,
    )


def _whole(
    path: str, deltas: Sequence[VariableDelta], whole_from: Variables | None
) -> VariableDelta:
    if whole_from is not None:
        return whole_from[path]
    stored = [delta for delta in deltas if delta.is_whole or len(delta.values)]
    if not stored:
        return next((delta for delta in deltas if not delta.is_free), deltas[0])
    bits = {(delta.shape, delta.values.tobytes()) for delta in stored}
    if len(bits) > 1 or not all(delta.is_whole for delta in stored):
        raise ValueError(
            f"{path} is stored whole and differs between the deltas (each task has "
            "its own head). Say whose to take with `whole_from=`, or leave them out "
            "with `delta.without(paths)`."
        )
    return stored[0]


def _renamed(first: Variables, other: Variables) -> Variables:
    """`other` with the paths of `first`, checked to be of the same base."""
    try:
        matched = match_paths(_shapes(other, first), _shapes(first, other))
    except ValueError as error:
        raise ValueError(f"The deltas are of different models. {error}") from error
    renamed = {matched[path]: delta for path, delta in other.items()}
    different = [
        path
        for path, delta in first.items()
        if not (delta.is_whole or delta.is_free)
        and not (renamed[path].is_whole or renamed[path].is_free)
        and (delta.checksum, delta.dtype)
        != (renamed[path].checksum, renamed[path].dtype)
    ]
    if len(renamed) != len(first) or different:
        raise ValueError(
            "The deltas are of different bases: "
            f"{len(first)} and {len(renamed)} variables, of which {len(different)} "
            f"hold other base values ({different[:3]}). Combine deltas made from the "
            "same base model."
        )
    return renamed


def _shapes(variables: Variables, other: Variables) -> dict[str, tuple[int, ...]]:
    """Shapes for matching, without those of heads: each task may have its own."""

    def is_loose(path: str, side: Variables) -> bool:
        return path in side and (side[path].is_whole or side[path].is_free)

    return {
        path: () if is_loose(path, variables) or is_loose(path, other) else delta.shape
        for path, delta in variables.items()
    }
