"""Stage 2 without the gradients of frozen scalars."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Dense, EinsumDense, Embedding, Layer, ReversibleEmbedding

from keras_bayestune.optimizers.sparse import SparseOptimizer
from keras_bayestune.optimizers.unscaled import unscaled
from keras_bayestune.paths import variable_paths
from keras_bayestune.updates.matmul_layout import MatmulLayout
from keras_bayestune.updates.probed_step import keeping_values, step_with_probes
from keras_bayestune.updates.replicas import is_one_device
from keras_bayestune.updates.selected_gradients import (
    Gradient,
    is_faster_here,
    kernel_gradient,
    recording,
    table_gradient,
    with_gradient,
)

Tensor = Any  # a backend tensor
Call = Callable[..., Any]


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
    gradient, and so does everything under a distribution. A layer that is called
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
        """Bytes of the gradients of stage 2: of selected scalars, or of a weight."""
        total = 0
        for i, variable in enumerate(self.optimizer._trainable_variables):
            if i in self._probes:
                total += np.dtype("float32").itemsize * math.prod(self._probes[i].shape)
            elif self.optimizer.trains(i):
                total += ops.convert_to_numpy(variable).nbytes
        return total

    def _plan(self, layer: Layer) -> None:
        weight = _weight_of(layer)
        if weight is None or id(weight) not in self._indices():
            return
        i = self._indices()[id(weight)]
        indices = self.optimizer.selected_indices(i)
        if i in self._probes or indices is None:
            return
        new_call = _new_call(layer, indices, self.force, self.model.jit_compile)
        if new_call is None:
            return
        # Not cast with the layer's other variables: its gradient is to be float32.
        probe = keras.Variable(
            np.zeros(len(indices), "float32"),
            dtype="float32",
            autocast=False,
            name=f"{layer.name}_probe",
        )
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            if recording() != self._recording:
                return original(*args, **kwargs)
            return new_call(original, probe, *args, **kwargs)

        self._probes[i] = probe
        self._calls.append((layer, call))
        path = variable_paths(self.optimizer._trainable_variables)[i]
        self.layers[path] = layer.path

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
            self.model, self.model.train_step, self._showing_probes, self._frozen
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
            self.optimizer.expect(self._probes)
            self._recording = recording()
            yield
        finally:
            self.optimizer.expect({})
            for layer, _ in self._calls:
                vars(layer).pop("call", None)
            for optimizer, variables in zip(optimizers, before, strict=True):
                optimizer.__dict__["_trainable_variables"] = variables
            for probe in self._probes.values():
                self.model._untrack_variable(probe)
            if was_locked:
                tracker.lock()


def _weight_of(layer: Layer) -> keras.Variable | None:
    """Return the weight whose gradient can be compact, or `None`."""
    calls = {  # a subclass may do anything with the weight in a `call` of its own
        Dense.call: Dense.kernel,
        EinsumDense.call: EinsumDense.kernel,
        Embedding.call: Embedding.embeddings,
        ReversibleEmbedding.call: Embedding.embeddings,
    }
    attribute = calls.get(type(layer).call)
    if attribute is None or "call" in vars(layer) or not layer.built:
        return None
    name = "embeddings" if attribute is Embedding.embeddings else "kernel"
    if vars(type(layer)).get(name, attribute) is not attribute:
        return None
    if layer.quantization_mode is not None or layer.lora_enabled:
        return None
    if layer._remat_mode is not None:
        return None
    if type(layer).call is ReversibleEmbedding.call and layer.mask_zero:
        return None  # its call also makes the mask
    weight = layer._embeddings if name == "embeddings" else layer._kernel
    if weight.dtype not in ("float32", "bfloat16", "float16"):
        return None
    return weight


def _new_call(
    layer: Any, indices: np.ndarray, force: bool, jit_compile: bool
) -> Call | None:
    if isinstance(layer, Embedding):
        shape = (layer.input_dim, layer.output_dim)
        of_table = table_gradient(shape, indices, force)
        return None if of_table is None else _embedding_call(layer, of_table)
    equation = layer.equation if isinstance(layer, EinsumDense) else "...a,ab->...b"
    layout = MatmulLayout.parse(equation, tuple(layer._kernel.shape))
    if layout is None:
        return None
    of_kernel = kernel_gradient(layout, indices, force, jit_compile)
    return None if of_kernel is None else _dense_call(layer, equation, of_kernel)


def _dense_call(layer: Any, equation: str, gradient: Gradient) -> Call:
    """Return `Dense.call` or `EinsumDense.call` with the gradient for a probe."""

    def call(original: Call, probe: Any, inputs: Any, training: Any = None) -> Any:
        kernel = ops.stop_gradient(layer.kernel)
        if isinstance(layer, Dense):
            x = ops.matmul(inputs, kernel)
        else:
            x = ops.einsum(equation, inputs, kernel)
        x = with_gradient(x, inputs, ops.convert_to_tensor(probe), gradient)
        if layer.bias is not None:
            x = ops.add(x, layer.bias)
        if layer.activation is not None:
            x = layer.activation(x)
        return x

    return call


def _embedding_call(layer: Any, gradient: Gradient) -> Call:
    """Return `Embedding.call` with the gradient for a probe."""

    def call(original: Call, probe: Any, inputs: Any, reverse: bool = False) -> Any:
        if reverse:  # the table as a kernel: its gradient is dense anyway
            return original(inputs, reverse=True)
        if inputs.dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        x = ops.take(ops.stop_gradient(layer.embeddings), inputs, axis=0)
        x = ops.cast(x, layer.compute_dtype)
        return with_gradient(x, inputs, ops.convert_to_tensor(probe), gradient)

    return call
