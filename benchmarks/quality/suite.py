"""What a suite of tasks gives the benchmark: data, models, budgets."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

Data = tuple[Any, np.ndarray]  # inputs of the model, labels


@dataclasses.dataclass
class Problem:
    """One task under one seed."""

    model: keras.Model
    weights: list[np.ndarray]  # of `model`: where every method starts
    train: Data
    validation: Data
    test: Data
    loss: keras.losses.Loss
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]  # the first one ranks
    head: tuple[str, ...]  # regular expressions: what does not compete
    is_classification: bool
    # Told of the passes over the data in which a rule trains.
    callbacks: tuple[keras.callbacks.Callback, ...] = ()


class Suite(abc.ABC):
    """Abstract: tasks of one kind, with the budgets and rates that suit them."""

    name: str
    tasks: tuple[str, ...]
    fractions: tuple[float, ...]
    batch_size: int
    selection_steps: int  # of the rules that train in stage 1
    finetune_steps: int
    fisher_examples: int
    selection_rate: float  # of BayesTune and of movement with a scalar metric
    rates: tuple[float, ...]  # stage 2
    full_rates: tuple[float, ...]  # full fine-tuning
    movement_rate: float  # of movement under Adam
    compiles_once: bool  # see `stage2.Masked`

    @classmethod
    def label(cls) -> str:
        """Name and budget, by which results are kept apart."""
        return f"{cls.name}-{cls.selection_steps}-{cls.finetune_steps}"

    @property
    def budget(self) -> int:
        """Gradient steps of every method, selection included."""
        return self.selection_steps + self.finetune_steps

    @abc.abstractmethod
    def problem(self, task: str, seed: int, head: str) -> Problem:
        """Return the task; `head` is "always" (trained whole) or "competes"."""

    @abc.abstractmethod
    def with_lora(self, problem: Problem, scalars: int) -> keras.Model | None:
        """Return a copy in which LoRA trains about `scalars` scalars, beside the head.

        `None` if the smallest LoRA is too large.
        """
