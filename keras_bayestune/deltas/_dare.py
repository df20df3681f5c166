"""DARE: drop displacements at random and rescale the rest."""

import dataclasses

import numpy as np

from keras_bayestune.arguments import check_integer, check_number
from keras_bayestune.deltas import displacements
from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.variable import VariableDelta, checksum


def dare(delta: SparseDelta, drop_rate: float, seed: int) -> SparseDelta:
    """Drop displacements at random and rescale the rest, keeping their mean.

    Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous
    Models as a Free Lunch", ICML 2024, section 3.2. With m ~ Bernoulli(drop_rate) for
    each index:

    ```
    new = base + (1 - m) * (new - base) / (1 - drop_rate)
    ```

    Dropped indices leave the delta, so its file shrinks. Whole variables stay.

    Args:
        delta: A delta with base values (`from_model`, or `bind`).
        drop_rate: In [0, 1).
        seed: Of NumPy's generator: the same seed drops the same indices.

    Raises:
        ValueError: `drop_rate` out of range, or unknown base values.

    Examples:
        >>> import keras
        >>> from keras_bayestune.deltas import SparseDelta, dare
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(100)])
        >>> tuned = keras.Sequential([keras.Input((1,)), keras.layers.Dense(100)])
        >>> tuned.set_weights([weight + 1.0 for weight in model.get_weights()])
        >>> delta = SparseDelta.from_checkpoints(model, tuned)
        >>> delta.count, dare(delta, 0.9, seed=0).count
        (200, 30)
    """
    drop_rate = check_number("drop_rate", drop_rate, "[0, 1)")
    seed = check_integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    variables = {
        path: stored
        if stored.is_whole or not len(stored.values)
        else _dropped(stored, drop_rate, rng)
        for path, stored in delta.variables.items()
    }
    metadata = displacements.provenance(
        [delta.metadata], rule="dare", drop_rate=float(drop_rate), seed=seed
    )
    return SparseDelta(variables, metadata)


def _dropped(
    stored: VariableDelta, drop_rate: float, rng: np.random.Generator
) -> VariableDelta:
    rescaled = displacements.combine_variable(
        [stored], lambda moved, selected: moved[0] / (1.0 - drop_rate)
    )
    kept = rng.random(len(rescaled.values)) >= drop_rate
    base = np.asarray(rescaled.base)[kept]
    return dataclasses.replace(
        rescaled,
        indices=rescaled.flat_indices[kept],
        values=rescaled.values[kept],
        base_checksum=checksum(base),
        base=base,
    )
