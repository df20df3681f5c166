"""A train step that differentiates by more variables than the model shows outside."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
from keras import ops

Tensor = Any  # a backend tensor


def step_with_probes(
    model: keras.Model,
    train_step: Callable[..., Any],
    showing_probes: Callable[[], AbstractContextManager[None]],
    frozen: Sequence[keras.Variable],
    probed: Mapping[int, keras.Variable],
    note: Callable[[int], None],
) -> Callable[..., Any]:
    """Return `train_step`, run while the model counts probes as trainable variables.

    JAX hands a train step the values of the variables as lists; the values of the
    probes go in and out of them here. PyTorch computes the gradient of whatever is
    trainable, so there `frozen` is not meanwhile.

    Args:
        model: The model whose step it is.
        train_step: The model's own.
        showing_probes: Context in which `model.trainable_variables` has the probes.
        frozen: Variables that the optimizer leaves alone.
        probed: Weights that probes stand for, by place.
        note: Called with the place of each of these that has a gradient of its own, on
            JAX; elsewhere the gradient itself `is_whole`, or not.
    """
    if keras.backend.backend() == "jax":

        def stateless_step(state: Any, data: Any) -> Any:
            variables = model.trainable_variables
            values = {
                id(variable): value
                for variable, value in zip(variables, state[0], strict=True)
            }
            with showing_probes():
                variables = model.trainable_variables
                shown = [
                    values[id(v)] if id(v) in values else ops.zeros(v.shape, v.dtype)
                    for v in variables
                ]
                places = {id(probed[i]): i for i in probed}
                known = [places.get(id(variable)) for variable in variables]
                with _watching(model, known, note):
                    logs, (new, *others) = train_step((shown, *state[1:]), data)
            kept = [
                value
                for variable, value in zip(variables, new, strict=True)
                if id(variable) in values
            ]
            return logs, (kept, *others)

        return stateless_step

    def step(data: Any) -> Any:
        try:
            for variable in frozen:
                variable.trainable = False
            with showing_probes():
                return train_step(data)
        finally:
            for variable in frozen:
                variable.trainable = True

    return step


@contextmanager
def _watching(
    model: keras.Model, places: Sequence[int | None], note: Callable[[int], None]
) -> Iterator[None]:
    """Note which trainable variables that have a place the loss of JAX reaches."""
    from keras_bayestune.updates.selected_gradients_jax import watched

    original = model.compute_loss_and_updates

    def loss(values: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        values = [
            value if i is None else watched(value, functools.partial(note, i))
            for value, i in zip(values, places, strict=True)
        ]
        return original(values, *args, **kwargs)

    vars(model)["compute_loss_and_updates"] = loss
    try:
        yield
    finally:
        del vars(model)["compute_loss_and_updates"]


def is_whole(gradient: Tensor | None) -> bool:
    """Whether the gradient that a weight got says that something reads it.

    On JAX it does not: there zeros come from where nothing does.
    """
    return gradient is not None and keras.backend.backend() != "jax"


@contextmanager
def keeping_values(model: keras.Model, arguments: Sequence[Any]) -> Iterator[None]:
    """Give the model its values back if the step with these arguments does not end.

    Keras's JAX trainer takes them away for the time of a step (`purge`), and puts
    back what it remembers, which may be from before another optimizer came.
    """
    try:
        yield
    except BaseException:
        if keras.backend.backend() == "jax":
            groups = (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
            for variables, values in zip(groups, arguments[0], strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable._value = value
            model._jax_state_synced = True
        raise
