"""The models that a delta is applied to, and the base values that it replaced there."""

import weakref
from collections.abc import Mapping

import keras
import numpy as np

from keras_bayestune.deltas import swap
from keras_bayestune.deltas.model_variables import (
    Target,
    check_still_there,
    lost_variables,
    pair_with_model,
)
from keras_bayestune.deltas.variable import VariableDelta

Variables = Mapping[str, VariableDelta]


class Applications:
    """Applies one delta to models, and takes it back; see `SparseDelta.apply`."""

    def __init__(self) -> None:
        # Old values by model; a model that is gone takes its entry with it.
        self._replaced: weakref.WeakKeyDictionary[
            keras.Model, tuple[list[Target], list[np.ndarray]]
        ] = weakref.WeakKeyDictionary()

    def apply(self, variables: Variables, model: keras.Model) -> None:
        """Writes the new values, once everything is checked."""
        if self._holds(model):
            raise ValueError(
                "This delta is already applied to this model. Call `revert(model)` "
                "first."
            )
        targets = pair_with_model(variables, model)
        swap.check_base(targets)
        self._replaced[model] = targets, swap.swap_in(targets)

    def revert(self, model: keras.Model) -> None:
        """Writes the old values."""
        if model not in self._replaced:
            raise ValueError(
                "This delta is not applied to this model, so there is nothing to "
                "revert."
            )
        targets, old = self._replaced[model]
        check_still_there(model, [target.variable for target in targets])
        swap.swap_out(targets, old)
        del self._replaced[model]

    def bound(
        self, variables: Variables, model: keras.Model
    ) -> dict[str, VariableDelta]:
        """The variables with the base's values at their indices."""
        if self._holds(model):
            targets, old = self._replaced[model]
        else:
            targets = pair_with_model(variables, model)
            old = swap.read_base(targets)
        bound = dict(variables)
        for target, values in zip(targets, old, strict=True):
            if not target.delta.is_whole:
                bound[target.path] = target.delta.with_base(values.copy())
        return bound

    def _holds(self, model: keras.Model) -> bool:
        """Whether `revert` would have something to do."""
        if model not in self._replaced:
            return False
        targets, _ = self._replaced[model]
        # Else layers were exchanged, or other weights loaded, since.
        return not lost_variables(
            model, [target.variable for target in targets]
        ) and swap.holds_new(targets)
