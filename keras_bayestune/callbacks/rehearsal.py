"""The end of stage 1 tried before its first step, so that no hour is lost at it."""

from collections.abc import Mapping

import keras
import numpy as np

from keras_bayestune.callbacks.plan import Plan
from keras_bayestune.callbacks.stage_one import make_mask, stage_one_optimizer
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import SparseOptimizer
from keras_bayestune.updates.replicas import strategy_scope


def random_scores(
    shapes: Mapping[str, tuple[int, ...]], threshold: float | None
) -> dict[str, np.ndarray]:
    """Return scores to select among: what fails is the budget, or the model."""
    if threshold is not None:
        largest = np.finfo("float32").max  # above every threshold
        return {path: np.full(shape, largest) for path, shape in shapes.items()}
    rng = np.random.default_rng(0)
    # Of many sizes, so that "auto" finds a knee.
    return {p: np.exp(8.0 * rng.random(s, "float32")) for p, s in shapes.items()}


def rehearse(model: keras.Model, plan: Plan) -> None:
    """Build a mask from random scores, and the optimizer of stage 2 around it.

    Raises:
        ValueError: `fraction` or `budget` do not fit the model, a pattern of
            `exclude` matches nothing, or `finetune_optimizer` was used before.
    """
    optimizer = stage_one_optimizer(model)
    if not optimizer.built:
        with strategy_scope(model):
            model.optimizer.build(model.trainable_variables)
    shapes = {path: tuple(mean.shape) for path, mean in optimizer.running_means()}
    scores = random_scores(shapes, plan.threshold)
    mask: SparseMask = make_mask(model, scores, plan)
    if plan.finetune_optimizer is not None:
        SparseOptimizer(plan.finetune_optimizer, mask)
