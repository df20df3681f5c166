"""Stage 2 without the gradients of frozen scalars."""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from keras_bayestune.optimizers._unscaled import unscaled
from keras_bayestune.optimizers.compact_layers import Call, call_with_probes, uses_of
from keras_bayestune.optimizers.sparse import SparseOptimizer
from keras_bayestune.paths import variable_paths
from keras_bayestune.updates.probed_step import keeping_values, step_with_probes
from keras_bayestune.updates.replicas import is_one_device
from keras_bayestune.updates.selected_gradients import (
    is_faster_here,
    recording,
    with_gradient,
)


class CompactGradients:
    """Gradients of selected scalars only, for the layers of a model where it pays.

    A layer takes its weight as a constant and passes its output through an identity
    whose gradient goes to a *probe*: a vector with one entry per selected scalar,
    which the model counts among its trainable variables during a train step and at
    no other time. `SparseOptimizer` adds what the probe received to what the weight
    itself received from elsewhere (a regularizer, another layer that shares it), so
    the sum is right whoever else reads the weight. Nothing is saved with the model,
    and outside a train step model, layers and optimizer are as ever: what is changed
    for a step is put back when it ends, however it ends.

    Layers of another kind, quantised ones and those with LoRA keep their whole
    gradient, and so does everything under a distribution and a weight that is read
    without a call of its layer. A layer that is called
    inside a TensorFlow branch or loop or under PyTorch's `vmap`, from where no gradient
    reaches a probe, computes its whole gradient there.

    Args:
        model: A compiled model whose `SparseOptimizer` is built.
        force: Take every layer that can be, whatever is estimated.
    """

    def __init__(self, model: keras.Model, force: bool = False):
        """Decide which layers take part; `install` changes them."""
        self.model = model
        self.force = force
        optimizer = unscaled(model.optimizer)
        if not isinstance(optimizer, SparseOptimizer) or not optimizer.built:
            raise ValueError(
                "CompactGradients needs a model whose SparseOptimizer is built. "
                f"Received: {optimizer!r}. Call optimizer.build("
                "model.trainable_variables) first."
            )
        self.optimizer = optimizer
        self.layers: dict[str, str] = {}  # path of the weight -> of its layer
        self._calls: list[tuple[Layer, Call]] = []
        self._probes: dict[int, keras.Variable] = {}  # by index of the weight
        # Weights that have probes, and gradients of their own beside them.
        self._reached: set[int] = set()
        self._frozen = [
            variable
            for i, variable in enumerate(optimizer._trainable_variables)
            if not optimizer.trains(i)
        ]
        self._train_function: Any = None
        self._is_announced = False
        self._recording: Any = None
        # Where the layers are replicated or sharded, Keras places the gradients.
        can = is_one_device(model) and not model.run_eagerly
        # A train step of the user's own may differentiate by variables of its choice.
        is_usual = model.train_step == keras.Model.train_step.__get__(model)
        if can and (force or is_usual and is_faster_here(model.jit_compile)):
            for layer in model._flatten_layers():
                self._plan(layer)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of stage 2: of selected scalars, of weights, or both.

        What reads a weight otherwise than by calling its layer, such as a regularizer
        or KerasHub's Gemma 4, asks for a whole gradient. That shows in the first step:
        before it, whole are those of weights without a probe alone.
        """
        total = 0
        for i, variable in enumerate(self.optimizer._trainable_variables):
            if i in self._probes:
                total += np.dtype("float32").itemsize * math.prod(self._probes[i].shape)
            if i in self._reached or i not in self._probes and self.optimizer.trains(i):
                total += np.dtype(variable.dtype).itemsize * math.prod(variable.shape)
        return total

    def _plan(self, layer: Layer) -> None:
        probed = {}
        for name, use in uses_of(layer).items():
            i = self._indices().get(id(use.weight))
            indices = None if i is None else self.optimizer.selected_indices(i)
            if i is None or indices is None:
                continue
            gradient = use.gradient(indices, self.force, self.model.jit_compile)
            if gradient is not None:
                probe = self._probe_of(i, len(indices), layer)
                probed[name] = functools.partial(
                    with_gradient, probe=probe, gradient=gradient
                )
        if not probed:
            return
        original, compact = layer.call, call_with_probes(layer, probed)

        def call(*args: Any, **kwargs: Any) -> Any:
            is_reached = recording() == self._recording
            return (compact if is_reached else original)(*args, **kwargs)

        self._calls.append((layer, call))

    def _probe_of(self, i: int, size: int, layer: Layer) -> keras.Variable:
        if i not in self._probes:
            # Not cast with the layer's other variables: its gradient is to be float32.
            # A name of its own: by it PyTorch's module finds it to clear its gradient.
            self._probes[i] = keras.Variable(
                np.zeros(size, "float32"),
                dtype="float32",
                autocast=False,
                name=f"probe_{i}",
            )
            path = variable_paths(self.optimizer._trainable_variables)[i]
            self.layers[path] = layer.path
        return self._probes[i]

    def _indices(self) -> dict[int, int]:
        variables = self.optimizer._trainable_variables
        return {id(variable): i for i, variable in enumerate(variables)}

    def install(self) -> None:
        """Let the layers take part in train steps that are announced from now on."""
        if not self._probes:
            return
        with self._probed_step():
            self.model.make_train_function(force=True)
        function = self.model.train_function

        def train_function(*args: Any) -> Any:
            is_ours = unscaled(self.model.optimizer) is self.optimizer
            if not (self._is_announced and is_ours):
                # A `fit` that knows nothing of this, after one that was interrupted.
                self.remove()
                return self.model.train_function(*args)
            self._is_announced = False
            with keeping_values(self.model, args), self._probed_step():
                return function(*args)

        # The one thing that stays between steps; `compile` resets it.
        self._train_function = self.model.train_function = train_function

    def announce(self) -> None:
        """Say that the next train step belongs to whoever installed this."""
        self._is_announced = True

    def remove(self) -> None:
        """Leave the model as it was before `install`."""
        if self._probes and self.model.train_function is self._train_function:
            self.model.make_train_function(force=True)

    @contextlib.contextmanager
    def _probed_step(self) -> Iterator[None]:
        """Give the model its train step with probes."""
        attributes = vars(self.model)
        before = attributes.get("train_step")
        attributes["train_step"] = step_with_probes(
            self.model,
            self.model.train_step,
            self._showing_probes,
            self._frozen,
            {i: self.optimizer._trainable_variables[i] for i in self._probes},
            self._reached.add,
        )
        try:
            yield
        finally:
            del attributes["train_step"]
            if before is not None:
                attributes["train_step"] = before

    @contextlib.contextmanager
    def _showing_probes(self) -> Iterator[None]:
        """Count the probes among the trainable variables."""
        optimizers = [self.optimizer]
        if self.model.optimizer is not self.optimizer:
            optimizers.append(self.model.optimizer)
        before = [optimizer._trainable_variables for optimizer in optimizers]
        tracker = self.model._tracker
        was_locked = tracker.locked
        tracker.unlock()
        try:
            for probe in self._probes.values():
                self.model._track_variable(probe)
            for optimizer in optimizers:
                # By `__dict__`: else the optimizer takes them for its own state.
                optimizer.__dict__["_trainable_variables"] = (
                    self.model.trainable_variables
                )
            for layer, call in self._calls:
                vars(layer)["call"] = call  # not a state that Keras should track
            self.optimizer.expect(self._probes, self._reached.add)
            self._recording = recording()
            yield
        finally:
            self.optimizer.expect({}, self._reached.add)
            for layer, _ in self._calls:
                vars(layer).pop("call", None)
            for optimizer, variables in zip(optimizers, before, strict=True):
                optimizer.__dict__["_trainable_variables"] = variables
            for probe in self._probes.values():
                self.model._untrack_variable(probe)
            if was_locked:
                tracker.lock()
