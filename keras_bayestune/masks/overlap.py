"""How much two masks have in common."""

from typing import TYPE_CHECKING

import numpy as np

from keras_bayestune.matching import match_paths

if TYPE_CHECKING:
    from keras_bayestune.masks.sparse_mask import SparseMask


def overlap_coefficient(one: "SparseMask", other: "SparseMask") -> float:
    """`|A and B| / min(|A|, |B|)`, see `SparseMask.overlap`."""
    if len(one.shapes) != len(other.shapes):
        raise ValueError(
            "The masks belong to different models: "
            f"{len(one.shapes)} and {len(other.shapes)} variables."
        )
    try:
        partners = match_paths(one.shapes, other.shapes)
    except ValueError as error:
        raise ValueError(f"The masks belong to different models. {error}") from error
    both = ours = theirs = 0
    for path, partner in partners.items():
        if path in one.always or partner in other.always:
            continue
        ours += len(one.indices[path])
        theirs += len(other.indices[partner])
        both += np.intersect1d(
            one.indices[path], other.indices[partner], assume_unique=True
        ).size
    if not ours or not theirs:
        raise ValueError(
            "No overlap to measure: of the scalars that competed in both masks, one "
            f"chose {ours}, the other {theirs}."
        )
    return both / min(ours, theirs)
