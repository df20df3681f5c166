"""Where the deltas of several tasks overlap, and where they pull apart."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_bayestune.deltas import displacements
from keras_bayestune.deltas.delta import SparseDelta


@dataclasses.dataclass(frozen=True)
class Conflicts:
    """Counts for each pair of deltas, in the order of `names`; printable."""

    names: tuple[str, ...]
    shared: np.ndarray  # (deltas, deltas) int: indices that both select
    opposed: np.ndarray  # (deltas, deltas) int: of these, with opposite signs

    @property
    def counts(self) -> np.ndarray:
        """`(deltas,)` selected indices of each."""
        return np.diagonal(self.shared)

    def overlap(self, one: str, other: str) -> float:
        """`shared / min(count)`: 1 if the smaller selection lies in the larger."""
        i, j = self.names.index(one), self.names.index(other)
        return float(self.shared[i, j] / max(1, min(self.counts[i], self.counts[j])))

    def __str__(self) -> str:
        rows = [("pair", "selected", "shared", "overlap", "opposite signs")]
        for i, one in enumerate(self.names):
            for j, other in enumerate(self.names[:i]):
                shared, opposed = int(self.shared[i, j]), int(self.opposed[i, j])
                rows.append(
                    (
                        f"{other} / {one}",
                        f"{self.counts[j]:,} / {self.counts[i]:,}",
                        f"{shared:,}",
                        f"{self.overlap(one, other):.1%}",
                        f"{opposed:,} ({opposed / max(1, shared):.1%} of shared)",
                    )
                )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows
        )


def conflicts(deltas: Mapping[str, SparseDelta]) -> Conflicts:
    """How much the deltas of several tasks overlap, and how often signs differ.

    Variables stored whole (heads) do not count.

    Args:
        deltas: `{name: delta}`, of one base, with base values (`from_model`, `bind`).

    Raises:
        ValueError: No deltas, different bases, or unknown base values.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_bayestune.deltas import SparseDelta, conflicts
        >>> def model(bias):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
        ...     model.set_weights([np.zeros((1, 3)), np.array(bias)])
        ...     return model
        >>> base = model([0.0, 0.0, 0.0])
        >>> report = conflicts({
        ...     "rte": SparseDelta.from_checkpoints(base, model([1.0, 1.0, 0.0])),
        ...     "mrpc": SparseDelta.from_checkpoints(base, model([1.0, -1.0, 2.0])),
        ... })
        >>> print(report)
        pair        selected  shared  overlap  opposite signs
        rte / mrpc  2 / 3     2       100.0%   1 (50.0% of shared)
    """
    if not deltas:
        raise ValueError("Pass at least one delta. Received none.")
    aligned = displacements.align([delta.variables for delta in deltas.values()])
    shared = np.zeros((len(deltas), len(deltas)), "int64")
    opposed = np.zeros_like(shared)
    for path in aligned[0]:
        variables = [delta[path] for delta in aligned]
        if any(variable.is_whole or variable.is_free for variable in variables):
            continue
        _, _, moved, selected = displacements.aligned_displacements(variables)
        both = selected.astype("float64")  # counts in float64: exact, and by BLAS
        shared += (both @ both.T).astype("int64")
        positive, negative = (moved > 0) * 1.0, (moved < 0) * 1.0
        opposed += (positive @ negative.T + negative @ positive.T).astype("int64")
    return Conflicts(tuple(deltas), shared, opposed)
