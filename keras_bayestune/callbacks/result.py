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
