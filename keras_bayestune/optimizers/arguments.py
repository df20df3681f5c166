"""Checks of the optimizers' arguments."""

from typing import Any

import keras

from keras_bayestune.arguments import check_number


def check_effective_size(value: float | str) -> float | str:
    """Return `"auto"` or a number above 0."""
    if isinstance(value, str) and value == "auto":
        return value
    hint = 'Or "auto". Larger values mean less noise and a weaker prior.'
    return check_number("effective_size", value, "(0, inf)", hint=hint)


def check_noise_scale(value: float) -> float:
    """Return a number of at least 0."""
    hint = (
        "1 samples the posterior, 0 descends to a mode, None takes what suits "
        "`effective_size`."
    )
    return check_number("noise_scale", value, "[0, inf)", hint=hint)


def check_burn_in(burn_in_steps: int, warmup_steps: int) -> None:
    """Raise unless burn-in ends no earlier than warm-up."""
    if burn_in_steps < warmup_steps:
        raise ValueError(
            "`burn_in_steps` counts from the start and must not be smaller than "
            f"`warmup_steps`. Received: burn_in_steps={burn_in_steps}, "
            f"warmup_steps={warmup_steps}. Raise burn_in_steps to {warmup_steps} or "
            "more."
        )


def check_type(name: str, value: Any, kind: type, examples: str) -> None:
    """Raise a TypeError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"`{name}` must be a {kind.__name__}, such as {examples}. Received: "
            f"{value!r} of type {type(value).__name__}."
        )


def check_inner(name: str, optimizer: Any) -> None:
    """Raise unless `optimizer` can be the inner one of a `SparseOptimizer`."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"`{name}` must be a Keras optimizer such as keras.optimizers.Adam(1e-3). "
            f"Received: {optimizer!r}."
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # A skipped update would undo its change of the loss scale.
        raise ValueError(
            f"`{name}` must not be a LossScaleOptimizer. Pass its inner optimizer, and "
            "scale outside: LossScaleOptimizer(SparseOptimizer(inner, mask)). "
            "fine_tune and SparseMaskCallback do so where the model's optimizer is "
            "wrapped."
        )
    if optimizer.built:
        raise ValueError(
            f"`{name}`, {optimizer.name!r}, is built on other variables already. Pass "
            "a new one: its state belongs to the selected scalars."
        )
