"""What stage 1 leaves behind."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bayestune.masks import SparseMask


@dataclass(frozen=True)
class Result:
    """Mask, scores and anchors, by variable path; `None` what was not kept."""

    mask: SparseMask
    scores: dict[str, np.ndarray] | None
    anchors: dict[str, np.ndarray] | None
    skipped_steps: int
    metadata: dict[str, Any]


def kept(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return scores or anchors; a ValueError if they were not kept."""
    if arrays is None:
        raise ValueError(
            "A model that was saved after the end of `fit` does not hold scores and "
            "anchors of stage 1, only its mask. Take them from the callback of that "
            "`fit`."
        )
    return arrays
