"""Weights that stage 1 updates as one array."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_bayestune.optimizers.weight_state import WeightState
from keras_bayestune.priors import LaplacePrior
from keras_bayestune.updates.joined import SMALL, joined, separated
from keras_bayestune.updates.sampled import Moments, Weight

Tensor = Any  # a backend tensor


@dataclass(frozen=True)
class WeightGroup:
    """One weight, or small ones that share prior, dtype and weight decay."""

    prior: LaplacePrior
    indices: tuple[int, ...]  # among the optimizer's variables
    states: tuple[WeightState, ...]
    variables: tuple[keras.Variable, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each weight."""
        return [tuple(variable.shape) for variable in self.variables]

    def weight(self) -> Weight:
        """What an update moves."""
        pairs = zip(self.states, self.variables, strict=True)
        return joined([state.weight(variable) for state, variable in pairs])

    def anchor(self) -> Tensor:
        """The pre-trained values."""
        return joined([ops.convert_to_tensor(state.anchor) for state in self.states])

    def moments(self) -> Moments:
        """The running means of the score."""
        return joined([state.moments() for state in self.states])

    def changes(self, new: Weight) -> list[tuple[Any, Tensor]]:
        """What to assign to which variable so that `new` is stored."""
        parts = zip(
            self.states, self.variables, separated(new, self.shapes), strict=True
        )
        return [pair for state, v, part in parts for pair in state.changes(v, part)]

    def moment_changes(self, new: Moments) -> list[tuple[Any, Tensor]]:
        """What to assign to which variable so that `new` is stored."""
        parts = zip(self.states, separated(new, self.shapes), strict=True)
        return [pair for state, part in parts for pair in state.moment_changes(part)]


def grouped(
    indices: Iterable[int],
    states: Sequence[WeightState],
    variables: Sequence[keras.Variable],
    decays: Sequence[bool],
) -> list[WeightGroup]:
    """Return the groups of the weights under a prior, in the order of `indices`."""
    groups: dict[Any, tuple[LaplacePrior, list[int]]] = {}
    for i in indices:
        prior, variable = states[i].prior, variables[i]
        if prior is None:
            continue
        kind: Any = i
        if math.prod(variable.shape) < SMALL and not states[i].is_sharded:
            dtype = keras.backend.standardize_dtype(variable.dtype)
            kind = (prior, dtype, decays[i])
        groups.setdefault(kind, (prior, []))[1].append(i)
    return [
        WeightGroup(
            prior,
            tuple(group),
            tuple(states[i] for i in group),
            tuple(variables[i] for i in group),
        )
        for prior, group in groups.values()
    ]
