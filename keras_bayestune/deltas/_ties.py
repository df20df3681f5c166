"""TIES: trim, elect a sign, and average what agrees with it."""

from collections.abc import Sequence

import numpy as np

from keras_bayestune.arguments import check_number
from keras_bayestune.deltas import displacements
from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.variable import VariableDelta


def ties(
    deltas: Sequence[SparseDelta],
    density: float = 1.0,
    factor: float = 1.0,
    whole_from: SparseDelta | None = None,
) -> SparseDelta:
    """Merge deltas without letting opposite signs cancel.

    Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS
    2023, algorithm 1. With d_k the displacement of delta k at one index:

    ```
    trim      d_k <- 0 unless |d_k| is among the `density` largest of delta k
    elect     s = sign(sum_k d_k)
    merge     new = base + factor * mean of the d_k != 0 with sign(d_k) = s
    ```

    Where the signs balance exactly (s = 0), the base is kept.

    Args:
        deltas: Deltas of one base, with base values (`from_model`, or `bind`).
        density: Fraction of each delta's own scalars that is kept, in (0, 1]. The paper
            keeps 0.2 of a *dense* difference; a delta is trimmed already.
        factor: The paper's lambda.
        whole_from: As in `weighted_sum`.

    Returns:
        A delta of the same base on the union of the indices.

    Raises:
        ValueError: `density` out of range; else as `weighted_sum`.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_bayestune.deltas import SparseDelta, ties
        >>> def model(bias):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        ...     model.set_weights([np.zeros((1, 2)), np.array(bias)])
        ...     return model
        >>> base = model([0.0, 0.0])
        >>> tuned = model([1.0, 4.0]), model([3.0, -2.0])
        >>> deltas = [SparseDelta.from_checkpoints(base, each) for each in tuned]
        >>> with ties(deltas).applied(base):
        ...     base.get_weights()[1].tolist()
        [2.0, 4.0]
    """
    density = check_number("density", density, "(0, 1]")
    factor = check_number("factor", factor, "(-inf, inf)")
    if not deltas:
        raise ValueError("Pass at least one delta. Received none.")
    smallest = np.array([_smallest_kept(delta, density) for delta in deltas])[:, None]

    def rule(moved: np.ndarray, selected: np.ndarray) -> np.ndarray:
        kept = np.where(np.abs(moved) >= smallest, moved, 0.0)
        sign = np.sign(kept.sum(axis=0))
        agrees = (np.sign(kept) == sign) & (sign != 0)
        count = np.maximum(agrees.sum(axis=0), 1)
        return factor * np.where(agrees, kept, 0.0).sum(axis=0) / count

    variables = displacements.combine(
        [delta.variables for delta in deltas],
        rule,
        None if whole_from is None else whole_from.variables,
    )
    metadata = displacements.provenance(
        [delta.metadata for delta in deltas],
        rule="ties",
        density=float(density),
        factor=float(factor),
    )
    return SparseDelta(variables, metadata)


def _smallest_kept(delta: SparseDelta, density: float) -> float:
    """The smallest magnitude among the `density` largest displacements."""
    sizes = np.concatenate(
        [_magnitudes(variable) for variable in delta.variables.values()]
    )
    count = max(1, int(density * len(sizes)))
    if count >= len(sizes):
        return 0.0
    return float(np.partition(sizes, len(sizes) - count)[len(sizes) - count])


def _magnitudes(variable: VariableDelta) -> np.ndarray:
    if variable.is_whole or not len(variable.values):
        return np.empty(0)
    return np.abs(displacements.aligned_displacements([variable])[2][0])
