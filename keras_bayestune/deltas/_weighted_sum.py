"""Weighted sum and mean of deltas: task arithmetic."""

from collections.abc import Sequence

import numpy as np

from keras_bayestune.deltas import displacements
from keras_bayestune.deltas.delta import SparseDelta


def weighted_sum(
    deltas: Sequence[SparseDelta],
    weights: Sequence[float],
    whole_from: SparseDelta | None = None,
) -> SparseDelta:
    """Sum of displacements, each with its weight: task arithmetic.

    Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, section 2.

    ```
    new = base + sum_k weights[k] * (new_k - base)
    ```

    A delta that does not select an index has displacement 0 there.

    Args:
        deltas: Deltas of one base, with base values (`from_model`, or `bind`).
        weights: One finite number for each.
        whole_from: The delta whose whole variables (head, statistics) are taken.
            Needed where the deltas hold different ones.

    Returns:
        A delta of the same base on the union of the indices.

    Raises:
        ValueError: No deltas, a weight too few or not finite, different bases,
            unknown base values, or differing whole variables.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_bayestune.deltas import SparseDelta, weighted_sum
        >>> def model(bias):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        ...     model.set_weights([np.zeros((1, 2)), np.array(bias)])
        ...     return model
        >>> base = model([0.0, 0.0])
        >>> one = SparseDelta.from_checkpoints(base, model([1.0, 0.0]))
        >>> two = SparseDelta.from_checkpoints(base, model([1.0, 4.0]))
        >>> with weighted_sum([one, two], [1.0, 0.5]).applied(base):
        ...     base.get_weights()[1].tolist()
        [1.5, 2.0]
    """
    if len(weights) != len(deltas) or not deltas:
        raise ValueError(
            "Pass at least one delta, and one weight for each. Received: "
            f"{len(deltas)} deltas, {len(weights)} weights."
        )
    if not np.isfinite(weights).all():
        raise ValueError(f"`weights` must be finite. Received: {list(weights)}.")
    variables = displacements.combine(
        [delta.variables for delta in deltas],
        displacements.weighted_sum(weights),
        None if whole_from is None else whole_from.variables,
    )
    metadata = displacements.provenance(
        [delta.metadata for delta in deltas],
        rule="weighted_sum",
        weights=[float(weight) for weight in weights],
    )
    return SparseDelta(variables, metadata)


def weighted_mean(
    deltas: Sequence[SparseDelta],
    weights: Sequence[float] | None = None,
    whole_from: SparseDelta | None = None,
) -> SparseDelta:
    """Mean of displacements: `weighted_sum` with weights that add up to 1.

    Args:
        deltas: As in `weighted_sum`.
        weights: Numbers >= 0, not all 0; equal ones if None.
        whole_from: As in `weighted_sum`.

    Returns:
        As `weighted_sum`: a delta of the same base.

    Raises:
        ValueError: A negative weight, or all are 0; else as `weighted_sum`.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_bayestune.deltas import SparseDelta, weighted_mean
        >>> def model(bias):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        ...     model.set_weights([np.zeros((1, 2)), np.array(bias)])
        ...     return model
        >>> base = model([0.0, 0.0])
        >>> one = SparseDelta.from_checkpoints(base, model([1.0, 0.0]))
        >>> two = SparseDelta.from_checkpoints(base, model([1.0, 4.0]))
        >>> with weighted_mean([one, two], [1.0, 3.0]).applied(base):
        ...     base.get_weights()[1].tolist()
        [1.0, 3.0]
    """
    weights = [1.0] * len(deltas) if weights is None else list(weights)
    if weights and not (min(weights) >= 0 and sum(weights) > 0):
        raise ValueError(f"`weights` must be >= 0, and not all 0. Received: {weights}.")
    total = sum(weights)
    return weighted_sum(deltas, [weight / total for weight in weights], whole_from)
