"""Gradients and updates across the replicas of a `tf.distribute` strategy.

On JAX and PyTorch gradients arrive summed over devices, and every function here
passes its input through.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

Tensor = Any  # a backend tensor


def creation_scope() -> AbstractContextManager[None]:
    """Scope in which variables are created and filled at once.

    TensorFlow builds an optimizer inside the compiled first step; an initial value
    that is read from another variable cannot be lifted out of it.
    """
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def check_have_values(variables: Sequence[keras.Variable]) -> None:
    """Raise if variables have no values yet that an optimizer could start from.

    TensorFlow builds a model without `Input` inside the compiled first step, and its
    weights get their values after that is traced.

    Raises:
        ValueError: some variables have none.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    with tf.init_scope():
        late = [v.path for v in variables if not v.value.is_initialized()]
    if late:
        raise ValueError(
            f"{len(late)} weights have no values yet, e.g. {late[0]}: on TensorFlow a "
            "model without an Input is built inside the first training step, when the "
            "optimizer already needs the weights that it starts from. Build the model "
            "before `fit`: begin it with keras.Input, or call it on a batch."
        )


def strategy_scope(model: keras.Model) -> AbstractContextManager[Any]:
    """Scope in which an optimizer for `model` must be created."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    return model.distribute_strategy.scope()


def is_one_device(model: keras.Model) -> bool:
    """Return whether neither the model nor its batches are spread over devices."""
    if keras.distribution.distribution() is not None:
        return False
    if keras.backend.backend() != "tensorflow":
        return True
    return model.distribute_strategy.num_replicas_in_sync == 1


def native(variable: keras.Variable) -> Any:
    """Return the variable as Keras's optimizers see it, on TensorFlow its own kind."""
    return variable.value if keras.backend.backend() == "tensorflow" else variable


def dense_gradients(
    gradients: Sequence[Tensor | None], variables: Sequence[Any]
) -> list[Tensor | None]:
    """Return the gradients with TensorFlow's `IndexedSlices` made dense."""
    if keras.backend.backend() != "tensorflow":
        return [None if g is None else ops.convert_to_tensor(g) for g in gradients]
    import tensorflow as tf

    # Keras takes slices for tensors, and would square and sum them with the rows
    # that occur twice left apart. What slices become does not know its shape.
    return [
        None if g is None else tf.ensure_shape(tf.convert_to_tensor(g), v.shape)
        for g, v in zip(gradients, variables, strict=True)
    ]


def sum_over_replicas(gradients: list[Tensor]) -> list[Tensor]:
    """Return the gradients summed over the replicas, equal on each."""
    if keras.backend.backend() != "tensorflow":
        return gradients
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradients
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, gradients))


def holds_on_all(condition: Tensor) -> Tensor:
    """Return whether `condition` holds on every replica, equal on each."""
    if keras.backend.backend() != "tensorflow":
        return condition
    (failures,) = sum_over_replicas([1.0 - ops.cast(condition, "float32")])
    return ops.equal(failures, 0.0)


def update_each(
    update: Callable[[Tensor, Any, Any], None],
    gradients: Sequence[Tensor],
    variables: Sequence[Any],
    step: Any,
) -> None:
    """Call `update(gradient, variable, step)` for each variable, on every replica.

    `step` and each gradient may be nested tuples of tensors; under a strategy they
    reach each replica as that replica's own tensors.
    """
    if keras.backend.backend() != "tensorflow":
        for gradient, variable in zip(gradients, variables, strict=True):
            update(gradient, variable, step)
        return
    import tensorflow as tf

    def merged(strategy, gradients, step):
        for gradient, variable in zip(gradients, natives, strict=True):
            strategy.extended.update(
                variable,
                lambda variable, gradient, step: update(gradient, variable, step),
                args=(gradient, step),
                group=False,
            )

    natives = [native(v) if isinstance(v, keras.Variable) else v for v in variables]
    strategy = tf.distribute.get_strategy()
    if natives and isinstance(natives[0], tf.distribute.DistributedValues):
        # At the end of `fit` no strategy is in scope.
        strategy = natives[0].distribute_strategy
    tf.__internal__.distribute.interim.maybe_merge_call(
        merged, strategy, list(gradients), step
    )


def assign_each(pairs: Sequence[tuple[keras.Variable, Tensor]]) -> None:
    """Assign each value to its variable, on every replica."""
    backend = keras.backend.backend()
    if backend == "torch" and not in_stateless_scope():
        import torch

        changed = [(v.value, new) for v, new in pairs if v.value is not new]
        if changed:
            torch._foreach_copy_(*map(list, zip(*changed, strict=True)))
        return
    if backend != "tensorflow":
        for variable, value in pairs:
            variable.assign(value)
        return
    variables, values = zip(*pairs, strict=True)
    update_each(
        lambda value, variable, _: variable.assign(value), values, variables, ()
    )


def clear_gradients(variables: Sequence[keras.Variable]) -> None:
    """Clear the gradients that PyTorch keeps at the weights.

    Keras 3.15 registers one weight for each path. It does not clear those of a second
    layer of one name, in another tower, and they would add up over the steps.
    """
    if keras.backend.backend() == "torch" and not in_stateless_scope():
        for variable in variables:
            variable.value.grad = None


def without_gradient() -> AbstractContextManager[Any]:
    """Scope in which PyTorch records nothing for a backward pass."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()
