"""The end of stage 1: from the state of its optimizer to a result."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_bayestune.budgets import Global
from keras_bayestune.callbacks.optimizer_config import config_of
from keras_bayestune.callbacks.plan import Plan
from keras_bayestune.callbacks.run_state import Result
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer, unscaled
from keras_bayestune.paths import variables_by_path


def stage_one_optimizer(model: keras.Model) -> BayesTuneSGLD:
    """Return the optimizer of a model in stage 1.

    Raises:
        TypeError: the model is compiled with another one.
    """
    optimizer = unscaled(model.optimizer)
    if isinstance(optimizer, SparseOptimizer):
        raise TypeError(
            f"The model {model.name!r} is in stage 2 already: its optimizer is a "
            "SparseOptimizer, and this SparseMaskCallback has not run its stage 1. To "
            "sample again, build the model anew, with its pre-trained weights, and "
            "compile it with a new BayesTuneSGLD. To train stage 2 on, call `fit` "
            "with the callback of the first `fit`, or without any."
        )
    if not isinstance(optimizer, BayesTuneSGLD):
        raise TypeError(
            "SparseMaskCallback needs a model compiled with BayesTuneSGLD. "
            f"Received: {type(optimizer).__name__}. Use model.compile("
            "optimizer=BayesTuneSGLD(learning_rate=1e-4), ...)."
        )
    return optimizer


def check_built(model: keras.Model) -> None:
    """Raise a ValueError if the model has no weights yet, and an error as above."""
    stage_one_optimizer(model)
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built, so there are no weights yet that "
            "stage 1 could start from. Build it before `fit`: begin it with "
            "keras.Input, or call it on a batch."
        )


def statistics(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that are not trained and change, as moving averages do."""
    return [
        v
        for v in model.non_trainable_variables
        if keras.backend.is_float_dtype(v.dtype)
    ]


def begin_chain(model: keras.Model) -> None:
    """Have the optimizer remember where the chain starts, if it starts now."""
    optimizer = stage_one_optimizer(model)
    if optimizer.built and optimizer.num_updates == 0:
        optimizer.reset_anchors()
    if optimizer.num_updates == 0 or not optimizer.non_trainable_anchors:
        optimizer.non_trainable_anchors = [
            np.array(ops.convert_to_numpy(v)) for v in statistics(model)
        ]


def make_mask(
    model: keras.Model,
    scores: Mapping[str, np.ndarray],
    plan: Plan,
) -> SparseMask:
    """Select among `scores`, and take the weights without a prior as a whole."""
    excluded = stage_one_optimizer(model).excluded_paths()
    variables = model.trainable_variables
    whole = {
        path: tuple(v.shape)
        for path, v in variables_by_path(variables).items()
        if path in excluded
    }
    mask = SparseMask.from_scores(
        scores,
        fraction=plan.fraction,
        threshold=plan.threshold,
        budget=plan.budget,
        always=whole,
    )
    return mask.in_order_of(variables)


def result_of_stage_one(model: keras.Model, plan: Plan) -> Result:
    """Return mask, scores and anchors; nothing changes.

    Raises:
        ValueError: no sample was taken, or the samples select nothing.
    """
    optimizer = stage_one_optimizer(model)
    scores = optimizer.posterior_scales()
    return Result(
        mask=make_mask(model, scores, plan),
        scores=scores,
        anchors=anchors_of(model),
        skipped_steps=optimizer.skipped_steps,
        metadata={
            "selector": "posterior mean scale",
            "fraction": plan.fraction,
            "threshold": plan.threshold,
            "budget": repr(plan.budget or Global()),
            "samples": optimizer.num_samples,
            "effective_size": optimizer.current_effective_size(),
            "optimizer": config_of(optimizer),
        },
    )


def anchors_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the values at the start of all that stage 1 must not change.

    By path, as `base_values` has them.
    """
    optimizer, variables = stage_one_optimizer(model), statistics(model)
    anchors = optimizer.non_trainable_anchors
    shapes = [tuple(v.shape) for v in variables]
    if shapes != [anchor.shape for anchor in anchors]:
        raise ValueError(
            f"The model has {len(variables)} non-trainable float variables, and the "
            f"state of stage 1 was begun with {len(anchors)} or with others. Keep the "
            "layers and their `trainable` as they were when it began."
        )
    values = {id(v): a for v, a in zip(variables, anchors, strict=True)}
    trained = variables_by_path(optimizer._trainable_variables)
    values |= {id(trained[path]): a for path, a in optimizer.anchors().items()}
    paths = variables_by_path(model.weights)
    return {p: values[id(v)] for p, v in paths.items() if id(v) in values}


def restore(model: keras.Model, anchors: Mapping[str, np.ndarray]) -> None:
    """Give every variable that has an anchor its value back."""
    for path, variable in variables_by_path(model.weights).items():
        if path in anchors:
            variable.assign(anchors[path])
