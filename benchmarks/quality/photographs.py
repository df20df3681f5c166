"""Photographs: EfficientNet-Lite0 with ImageNet weights, on two kinds of them."""

import functools

import numpy as np

from benchmarks.quality.suite import Problem, Suite
from benchmarks.transfer.tasks import HEAD, Task


class Photographs(Suite):
    """Tasks that `benchmarks.transfer prepare` wrote, at about 1,000 labels each.

    On a CPU run it on TensorFlow, whose convolutions are the fastest there. Batch
    normalisation keeps its pre-trained statistics; its scales and offsets compete.

    Args:
        prepared: Folder that `benchmarks.transfer prepare` wrote.
    """

    name = "photographs"
    tasks = ("flowers", "gtsrb")
    fractions = (0.005,)
    batch_size = 16
    selection_steps, finetune_steps = 60, 80
    fisher_examples = 512
    selection_rate = 1e-4
    rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    full_rates = (3e-5, 1e-4, 3e-4, 1e-3)
    movement_rate = 1e-4
    compiles_once = True
    most_validation, most_test = 250, 500  # rows

    def __init__(self, prepared):
        self.prepared = prepared

    @functools.cache  # noqa: B019 (one suite lives as long as the run)
    def task(self, name):
        """Return a task and its model's weights as pre-trained; all seeds share it."""
        task = Task(self.prepared, name, self.most_validation, self.most_test)
        return task, task.network.model.get_weights()

    def problem(self, task, seed, head):
        """Return the task with a new head, which competes or not."""
        task, weights = self.task(task)
        order = np.random.default_rng(seed).permutation(len(task.train[1]))
        return Problem(
            task.network.model,
            [*weights[:-2], *task.start(seed)[-2:]],
            tuple(array[order] for array in task.train),
            task.validation,
            task.test,
            loss=task.network.loss,
            metrics=task.metrics,
            head=HEAD if head == "always" else (),
            is_classification=True,
        )

    def with_lora(self, problem, scalars):
        """Return `None`: KerasHub has LoRA for no convolution."""
