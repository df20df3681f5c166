"""The switch from stage 1 to stage 2 in a training loop of one's own."""

from collections.abc import Mapping

import keras
import numpy as np

from keras_bayestune.budgets import Budget
from keras_bayestune.callbacks.stage_two_start import (
    OF_A_DELTA,
    check_start,
    give_to_selected,
    selected_values,
)
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer
from keras_bayestune.paths import variables_by_path


def switch(
    model: keras.Model,
    optimizer: BayesTuneSGLD,
    base: Mapping[str, np.ndarray],
    finetune_optimizer: keras.optimizers.Optimizer,
    *,
    fraction: float | str | None = None,
    threshold: float | None = None,
    budget: Budget | None = None,
    stage_2_start: str = "anchors",
) -> SparseOptimizer:
    """End stage 1 of a custom loop: select, restore, and return stage 2's optimizer.

    Weights under a prior and statistics, such as those of batch normalisation, get
    their values of `base` back; a fresh head keeps what it learned, and is in the mask
    as a whole. `SparseMaskCallback` does the same within `fit`. Afterwards
    `SparseDelta.from_model(model, mask=stage_2.mask, base=base)` is the delta.

    Args:
        model: The model, its variables as the loop left them (in JAX, assigned).
        optimizer: That of stage 1.
        base: `base_values(model)`, taken before the loop.
        finetune_optimizer: A Keras optimizer for stage 2, not built yet.
        fraction: As in `SparseMask.from_scores`; 0.005 if neither it nor `threshold` is
            given.
        threshold: As in `SparseMask.from_scores`.
        budget: As in `SparseMask.from_scores`.
        stage_2_start: "anchors": the selected scalars, too, get their values of `base`
            back. "last values": they stay where the loop left them.

    Raises:
        TypeError: if `optimizer` is not a `BayesTuneSGLD`.
        ValueError: if no sample was taken, `base` lacks a variable, or an argument is
            out of range; the model is unchanged.

    Examples:
        >>> from keras_bayestune.deltas import base_values
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> base = base_values(model)
        >>> stage_1 = BayesTuneSGLD(1e-2, warmup_steps=1, burn_in_steps=2, thinning=1)
        >>> stage_1.build(model.trainable_variables)
        >>> for step in range(4):  # your loop
        ...     gradients = [keras.ops.ones(v.shape) for v in model.trainable_variables]
        ...     stage_1.apply(gradients)
        >>> stage_2 = switch(model, stage_1, base, keras.optimizers.SGD(), fraction=0.2)
        >>> stage_2.apply(gradients)
        >>> delta = SparseDelta.from_model(model, mask=stage_2.mask, base=base)
        >>> delta.count
        3
    """
    if not isinstance(optimizer, BayesTuneSGLD):
        raise TypeError(
            "`optimizer` must be the BayesTuneSGLD of stage 1. Received: "
            f"{type(optimizer).__name__}."
        )
    check_start(stage_2_start, OF_A_DELTA)
    if fraction is None and threshold is None:
        fraction = 0.005
    scores = optimizer.posterior_scales()
    trained = variables_by_path(model.trainable_variables)
    mask = SparseMask.from_scores(
        scores,
        fraction=fraction,
        threshold=threshold,
        budget=budget,
        always={p: tuple(v.shape) for p, v in trained.items() if p not in scores},
    ).in_order_of(model.trainable_variables)
    restored = {
        path: variable
        for path, variable in variables_by_path(model.weights).items()
        if path not in mask.always and keras.backend.is_float_dtype(variable.dtype)
    }
    missing = [path for path in restored if path not in base]
    if missing:
        raise ValueError(
            f"`base` lacks {len(missing)} variables, e.g. {missing[0]}. Take "
            "base_values(model) of this very model before the loop."
        )
    stage_two = SparseOptimizer(finetune_optimizer, mask)
    last = selected_values(model, mask) if stage_2_start == "last values" else {}
    for path, variable in restored.items():
        variable.assign(base[path])
    give_to_selected(model, mask, last)
    stage_two.build(model.trainable_variables)
    return stage_two
