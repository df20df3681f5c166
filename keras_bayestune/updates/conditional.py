"""A branch that is taken in a training step only when it is due."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bayestune.updates import elementwise

Tensor = Any  # a backend tensor


def branch(
    condition: Tensor,
    taken: Callable[[], tuple[Tensor, ...]],
    otherwise: Callable[[], tuple[Tensor, ...]],
    harmless: bool = False,
) -> tuple[Tensor, ...]:
    """Return `taken()` where `condition` holds, else `otherwise()`.

    Args:
        condition: bool scalar.
        taken: Returns tensors.
        otherwise: Returns tensors of the same shapes.
        harmless: Whether `taken()` equals `otherwise()` where `condition` does not
            hold. PyTorch on an accelerator then takes it always: to read the condition
            the host would have to wait for the device.
    """
    backend = keras.backend.backend()
    if backend == "torch" and harmless and not elementwise.runs_on_cpu(condition):
        return taken()
    # Outside `jit` JAX would compile a conditional anew at every call.
    if backend == "jax":
        import jax

        if not isinstance(condition, jax.core.Tracer):
            return taken() if condition else otherwise()
    return ops.cond(condition, taken, otherwise)
