"""Read and write the selected scalars of a weight, inside a training step."""

from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

Tensor = Any  # a backend tensor


def for_indexing(indices: Any) -> Tensor:
    """Return int32 indices as the backend takes them, once for several uses."""
    indices = ops.convert_to_tensor(indices)
    return indices.long() if keras.backend.backend() == "torch" else indices


def gather(value: Tensor, indices: Tensor) -> Tensor:
    """Return the scalars of `value` at flat C-order indices, shape `(k,)`."""
    if _may_be_sharded(value):
        return value[_coordinates(value, indices)]
    if keras.backend.backend() == "torch":
        import torch

        # One kernel, where `ops.take` has several.
        return torch.take(ops.convert_to_tensor(value), for_indexing(indices))
    return ops.take(ops.reshape(value, (-1,)), indices)


def scatter(value: Tensor, indices: Tensor, selected: Tensor) -> Tensor:
    """Return `value` with `selected` at flat indices; the rest keeps its bits."""
    if _may_be_sharded(value):
        return ops.scatter_update(
            value,
            ops.stack(_coordinates(value, indices), axis=-1),
            ops.cast(selected, value.dtype),
        )
    flat = ops.scatter_update(
        ops.reshape(value, (-1,)),
        ops.expand_dims(indices, 1),
        ops.cast(selected, value.dtype),
    )
    return ops.reshape(flat, value.shape)


def _may_be_sharded(value: Tensor) -> bool:
    return len(value.shape) > 1 and keras.distribution.distribution() is not None


def _coordinates(value: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """Return the index along each axis: XLA gathers a weight before it flattens it.

    With one index per axis every device looks among its own scalars, and only the
    selected ones are sent.
    """
    return tuple(ops.unravel_index(indices, tuple(value.shape)))


def write(variable: Any, indices: Tensor, selected: Tensor) -> None:
    """Set the scalars of `variable` at flat indices; the rest keeps its bits.

    In place on PyTorch, where nothing else does away with a copy of the weight: JAX
    donates its buffer, and TensorFlow's compiler sees both ends.
    """
    eager = keras.backend.backend() == "torch" and not in_stateless_scope()
    if eager and variable.value.is_contiguous():
        import torch

        with torch.no_grad():
            flat = variable.value.view(-1)
            # Not `put_`, which PyTorch's deterministic mode refuses.
            flat.index_put_((for_indexing(indices),), selected.to(flat.dtype))
        return
    before = ops.convert_to_tensor(variable)
    variable.assign(scatter(before, indices, selected))


def resynced(carried: Tensor, present: Tensor) -> Tensor:
    """Return the float32 values carried for a weight that rounds them.

    Where the weight no longer holds the rounded carried value, somebody else has
    written to it, and what it holds counts.
    """
    same = ops.equal(ops.cast(carried, present.dtype), present)
    return ops.where(same, carried, ops.cast(present, carried.dtype))
