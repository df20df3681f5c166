"""What stage 1 leaves behind."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bayestune.masks import SparseMask


@dataclass(frozen=True)
class Result:
    """Mask, scores and anchors, by variable path."""

    mask: SparseMask
    scores: dict[str, np.ndarray]
    anchors: dict[str, np.ndarray]
    skipped_steps: int
    metadata: dict[str, Any]
