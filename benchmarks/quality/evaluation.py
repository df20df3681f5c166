"""Batches to train on, and the figures of a trained model."""

from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.quality.suite import Data, Problem
from keras_bayestune.diagnostics import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)


def evaluate(problem: Problem, model: keras.Model, data: Data) -> dict[str, float]:
    """Return the task's metrics, and those of calibration for a classifier."""
    return figures(problem, outputs_of(model, data[0]), data[1])


def figures(problem: Problem, outputs: np.ndarray, labels: np.ndarray):
    """As `evaluate`, of logits."""
    found = problem.metrics(labels, outputs)
    if problem.is_classification:
        probabilities = ops.convert_to_numpy(ops.softmax(outputs))
        found["NLL"] = negative_log_likelihood(probabilities, labels)
        found["ECE"] = expected_calibration_error(probabilities, labels)
        found["Brier"] = brier_score(probabilities, labels)
    return {name: round(float(value), 6) for name, value in found.items()}


def outputs_of(model: keras.Model, x: Any, size: int = 50) -> np.ndarray:
    """Return the outputs for `x`, without `predict`, which `compile` makes compile.

    Layer by layer: small batches, whose activations fit the cache, take half the time.
    """
    arrays = keras.tree.flatten(x)
    pieces = range(0, len(arrays[0]), size)
    return np.concatenate(
        [
            ops.convert_to_numpy(
                model(
                    keras.tree.map_structure(lambda a, i=i: a[i : i + size], x),
                    training=False,
                )
            )
            for i in pieces
        ]
    )


def batches(data: Data, batch_size: int, seed: int) -> Any:
    """Endless batches of one size, the same ones for every method."""
    import tensorflow as tf  # the input pipeline, whatever the backend

    rows = len(data[1])
    examples = tf.data.Dataset.from_tensor_slices(data).shuffle(rows, seed=seed)
    return examples.repeat().batch(batch_size)
