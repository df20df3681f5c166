"""What a callback changed at the end of a batch, kept."""

import keras

_GROUPS = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)


def keep_changes(model: keras.Model) -> None:
    """Make the present values those that Keras's trainer goes on with.

    Between two steps the trainer of Keras 3.15 on JAX holds the values of the last
    step beside the variables. When the data end there without having said so, it puts
    them back, over whatever was assigned since, the variables of another optimizer
    included. Call it after `model` was read from the callback, which syncs the values.
    """
    if keras.backend.backend() != "jax" or not getattr(model, "_jax_state", None):
        return
    present = model._get_jax_state(**dict.fromkeys(_GROUPS, True))
    model._jax_state = dict(zip(_GROUPS, present, strict=True))
