"""The stage 1 of `fine_tune` and `sweep` where the user names no selector."""

import re

import keras

from keras_bayestune.optimizers import BayesTuneSGLD
from keras_bayestune.priors import is_marked
from keras_bayestune.selectors import ScaleSelector, Selector
from keras_bayestune.selectors.steps import check_steps
from keras_bayestune.tasks import task_head_paths

THINNING = 5  # updates from one sample to the next


def default_selector(
    epochs: int | None, steps: int | None, batches: int | None, seed: int | None
) -> ScaleSelector:
    """Return BayesTune for `steps` batches, or `epochs` passes of `batches` each.

    Raises:
        ValueError: if both are given, or too few for one posterior sample.
    """
    if epochs is not None and steps is not None:
        raise ValueError(
            "Give `selection_epochs` or `selection_steps`, not both. Received: "
            f"selection_epochs={epochs}, selection_steps={steps}."
        )
    updates = steps
    if updates is None:
        if batches is None:
            raise ValueError(
                "The data set does not say how many batches it has, so stage 1 cannot "
                "be planned. Pass `selection_steps=` or `steps_per_epoch=`."
            )
        epochs = epochs or 3
        updates = epochs * batches
    if updates < 2 * THINNING:
        plan = f"selection_steps={steps}"
        if steps is None:
            plan = f"selection_epochs={epochs} of {batches} batches"
        raise ValueError(
            f"Stage 1 is planned for {updates} updates: {plan}. It needs "
            f"{2 * THINNING} for a first posterior sample, and 400 or more for good "
            "ones. Plan more."
        )
    sampling = BayesTuneSGLD(
        learning_rate=1e-4,
        warmup_steps=updates // 4,
        burn_in_steps=updates // 2,
        thinning=THINNING,
        seed=seed,
    )
    return ScaleSelector(sampling, epochs=epochs, steps=steps)


def default_exclude(model: keras.Model) -> list[str]:
    """Return patterns of what does not compete where the user names none."""
    if any(is_marked(variable) for variable in model.trainable_variables):
        return []
    return [f"^{re.escape(path)}$" for path in task_head_paths(model)]


def checked_selector(
    selector: Selector | None,
    epochs: int | None,
    steps: int | None,
    batches: int | None,
    seed: int | None,
) -> Selector:
    """Return the selector, or the default one for `epochs` or `steps` of stage 1."""
    epochs = check_steps("selection_epochs", epochs)
    steps = check_steps("selection_steps", steps)
    if selector is None:
        return default_selector(epochs, steps, batches, seed)
    if not isinstance(selector, Selector):
        raise TypeError(
            "`selector` must be a keras_bayestune.selectors.Selector. Received: "
            f"{selector!r}."
        )
    if epochs is not None or steps is not None:
        raise ValueError(
            "`selection_epochs` and `selection_steps` are for the default selector. "
            f"Received: selection_epochs={epochs}, selection_steps={steps} with a "
            f"{type(selector).__name__}, which says itself how long it runs."
        )
    return selector
