"""What a run says of itself between the lines of `fit`."""

import math

import keras
import numpy as np

from keras_bayestune.callbacks.stage_one import statistics
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD


def beginning(model: keras.Model, optimizer: BayesTuneSGLD) -> str:
    """Say what stage 1 samples, when it begins to, and the memory that it takes."""
    scalars = sum(math.prod(mean.shape) for _, mean in optimizer.running_means())
    head = sum(math.prod(v.shape) for v in model.trainable_variables) - scalars
    parts = [f"{scalars:,} scalars are sampled"]
    if head:
        parts.append(f"{head:,} train beside them")
    first = optimizer.burn_in_steps + optimizer.thinning
    parts.append(f"the first sample comes after update {first:,}")
    size = sum(
        math.prod(v.shape) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize
        for v in model.optimizer.variables
    )
    parts.append(f"the optimizer's state takes {_bytes(size)}")
    return f"Stage 1: {'; '.join(parts)}."


def switching(
    model: keras.Model, mask: SparseMask, samples: int, start: str, inner: str
) -> str:
    """Say what was selected, from what, and what follows."""
    parts = [f"{inner} trains {mask!r}, selected from {samples:,} samples"]
    if start != "last state":
        others = len(statistics(model))
        beside = f" and {others} statistics" if others else ""
        but = ", but for the selected scalars" if start == "last values" else ""
        parts.append(f"pre-trained values{beside} were restored{but}")
    parts.append("the next step is compiled anew, where the backend compiles")
    return f"Stage 2: {'; '.join(parts)}."


def resuming(
    stage: int, epoch: int, epochs: int, batches: int, optimizer: keras.Optimizer
) -> str:
    """Say where an interrupted run goes on."""
    done = f"{batches:,} batches are done"
    if isinstance(optimizer, BayesTuneSGLD):
        done += f", {optimizer.num_samples:,} samples taken"
    return f"Resumed in stage {stage} with epoch {epoch + 1}/{epochs}: {done}."


def _bytes(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} GB"
