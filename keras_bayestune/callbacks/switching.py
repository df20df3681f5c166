"""Another optimizer for a model, and else what it is compiled with."""

from typing import Any

import keras

from keras_bayestune.updates.replicas import strategy_scope


def switch_optimizer(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss: Any = None,
    metrics: Any = None,
) -> None:
    """Train on with `optimizer`, under the loss scaling that the model had.

    It goes into the compile configuration, too, from which saved and copied models
    are compiled. A new `loss` comes without loss weights, new `metrics` replace the
    weighted ones; what is `None` stays, as everything else does.
    """
    with strategy_scope(model):
        scaling = model.optimizer if model.compiled else None
        if isinstance(scaling, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer,
                initial_scale=_scale(scaling),
                dynamic_growth_steps=scaling.dynamic_growth_steps,
            )
        if loss is None and metrics is None:
            # Not `compile`: in the middle of a `fit` it would end the metrics' epoch.
            optimizer.build(model.trainable_variables)
            model.optimizer = optimizer
            # Else `model.save` would write the optimizer of `compile` (Keras 3.15).
            model._compile_config.config["optimizer"] = optimizer
            model.make_train_function(force=True)
            return
        compiled = model._compile_config.config if model.compiled else {}
        names = "loss", "loss_weights", "metrics", "weighted_metrics"
        kept = {name: compiled.get(name) for name in names}
        if loss is not None:
            kept.update(loss=loss, loss_weights=None)
        if metrics is not None:
            kept.update(metrics=metrics, weighted_metrics=None)
        model.compile(
            optimizer,
            **kept,
            run_eagerly=model.run_eagerly,
            steps_per_execution=model.steps_per_execution,
            jit_compile=model.jit_compile,
            auto_scale_loss=not model.compiled,
        )


def _scale(optimizer: keras.optimizers.LossScaleOptimizer) -> float:
    if not optimizer.built:
        return optimizer.initial_scale
    return float(optimizer.dynamic_scale.numpy())
