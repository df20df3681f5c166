"""A model as users without this library can load it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_bayestune.deltas.model_variables import keras_layers
from keras_bayestune.priors import WithPrior

_PACKAGE = "keras_bayestune"


@contextlib.contextmanager
def plain(model: keras.Model) -> Iterator[keras.Model]:
    """For a `with` block: a model of equal outputs that does not need this library.

    Without a `WithPrior` it is `model` itself, with one a copy that has the wrapped
    layer in place of every `WithPrior`. Loss and metrics stay; in place of an optimizer
    of this library stands plain SGD, within the block.

    Raises:
        ValueError: The model's own code makes a `WithPrior`, or the model cannot be
            made anew from its configuration.
    """
    if _wrappers(model):
        yield _unwrapped(model)
    elif _has_own_optimizer(model):
        optimizer, config = model.optimizer, model._compile_config.config
        compiled = config["optimizer"]
        # Both are what Keras saves (Keras 3.15).
        model.optimizer = config["optimizer"] = keras.optimizers.SGD()
        try:
            yield model
        finally:
            model.optimizer, config["optimizer"] = optimizer, compiled
    else:
        yield model


def check_is_plain(model: keras.Model) -> None:
    """Raise a ValueError if the model's configuration asks for this library."""
    left = sorted(_own_names(keras.saving.serialize_keras_object(model)))
    if left:
        raise ValueError(
            f"The configuration of {model.name!r} holds {', '.join(left)}, so the file "
            "could not be loaded without keras_bayestune. Take it out of the model's "
            "layers, or save the weights only: a `path` that ends in .weights.h5."
        )


def _has_own_optimizer(model: keras.Model) -> bool:
    optimizer = model.optimizer if model.compiled else None
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return type(optimizer).__module__.startswith(f"{_PACKAGE}.")


def _wrappers(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in keras_layers(model) if isinstance(layer, WithPrior)]


def _unwrapped(model: keras.Model) -> keras.Model:
    """A copy with the layers inside the wrappers, its optimizer without state."""
    _check_no_vocabulary(model)
    config = _without_wrappers(keras.saving.serialize_keras_object(model))
    if _has_own_optimizer(model):
        sgd = keras.saving.serialize_keras_object(keras.optimizers.SGD())
        config["compile_config"]["optimizer"] = sgd
    # Python code in it (a Lambda's) is the user's own.
    copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
    if _wrappers(copy):
        raise ValueError(
            f"{type(model).__name__} makes a WithPrior in its own code, which cannot "
            "run without keras_bayestune. Hand the wrapped layers to the model as "
            "arguments, or make the model without WithPrior and apply the delta to it."
        )
    shapes = [[tuple(w.shape) for w in one.weights] for one in (model, copy)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The model that the configuration of {model.name!r} describes has "
            f"{len(shapes[1])} weights, the model has {len(shapes[0])}, or of other "
            "shapes. Give the model a `get_config` that describes it as it is."
        )
    for weight, value in zip(copy.weights, model.weights, strict=True):
        weight.assign(keras.ops.copy(value))
    return copy


def _check_no_vocabulary(model: keras.Model) -> None:
    kinds = (
        keras.layers.StringLookup,
        keras.layers.IntegerLookup,
        keras.layers.TextVectorization,
    )
    found = [layer.name for layer in keras_layers(model) if isinstance(layer, kinds)]
    if found:
        raise ValueError(
            f"The layer {found[0]!r} holds a vocabulary, which a copy of the model "
            "without WithPrior would lack. Put it in front of the model."
        )


def _without_wrappers(config: Any) -> Any:
    """The configuration with every wrapper replaced by what it wraps."""
    if isinstance(config, list):
        # A part of a functional model must not get the name of another one.
        taken = {_name(item) for item in config if not _is_wrapper(item)}
        items = []
        for item in config:
            plain_item = _without_wrappers(item)
            if _is_wrapper(item):
                if _name(plain_item) in taken:
                    plain_item["config"]["name"] = _name(item)
                taken.add(_name(plain_item))
            items.append(plain_item)
        return items
    if not isinstance(config, dict):
        return config
    if _is_wrapper(config):
        # Its place in a functional model; the nodes refer to it by the wrapper's name.
        place = {key: config[key] for key in ("name", "inbound_nodes") if key in config}
        return _without_wrappers({**config["config"]["layer"], **place})
    return {key: _without_wrappers(value) for key, value in config.items()}


def _is_wrapper(config: Any) -> bool:
    name = f"{_PACKAGE}>{WithPrior.__name__}"
    return isinstance(config, dict) and config.get("registered_name") == name


def _name(config: Any) -> Any:
    inside = config.get("config") if isinstance(config, dict) else None
    return inside.get("name") if isinstance(inside, dict) else None


def _own_names(config: Any) -> set[str]:
    """Names of this library's classes in a configuration."""
    if isinstance(config, dict):
        registered = str(config.get("registered_name"))
        own = {registered} if registered.startswith(f"{_PACKAGE}>") else set()
        return own.union(*map(_own_names, config.values()))
    if isinstance(config, list | tuple):
        return set().union(*map(_own_names, config))
    return set()
