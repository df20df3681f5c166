"""Apply an optimizer; undo it where a gradient is not finite."""

from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

from keras_bayestune.updates.replicas import holds_on_all, update_each

Tensor = Any  # a backend tensor


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    gradients: list[Tensor | None],
    variables: list[Any],
) -> Tensor:
    """Apply `gradients` if all are finite; return whether they are.

    If not, every variable keeps its bits, those of `optimizer` included. The update
    is undone then rather than left out: a branch would wait for the device, and XLA
    fuses the choice between old and new with the update.
    """
    found = [ops.all(ops.isfinite(g)) for g in gradients if g is not None]
    finite = holds_on_all(found[0] if len(found) == 1 else ops.all(ops.stack(found)))
    touched = variables + optimizer.variables
    before = [ops.copy(v) for v in touched]
    if keras.backend.backend() == "torch" and in_stateless_scope():
        # The tensors are the caller's, and Keras's optimizers write in place there.
        for variable, value in zip(touched, before, strict=True):
            variable.assign(ops.copy(value))
    optimizer.apply(gradients, variables)

    def undo(old: Tensor, variable: Any, finite: Tensor) -> None:
        variable.assign(ops.where(finite, ops.convert_to_tensor(variable), old))

    update_each(undo, before, touched, finite)
    return finite
