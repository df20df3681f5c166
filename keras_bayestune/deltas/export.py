"""A tuned model as full weights, for users who do not have the library."""

import os

import keras

from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.plain import check_is_plain, plain
from keras_bayestune.files import replacing


def save_merged(
    model: keras.Model, delta: SparseDelta, path: str | os.PathLike[str]
) -> None:
    """Save the full weights of the tuned model; the model itself keeps its base.

    The ending of `path` says what is written: `.keras` the whole model,
    `.weights.h5` its weights, anything else a KerasHub preset folder. File or folder
    appear whole or not at all. Merging changes no output: these are the values that
    `apply` writes.

    What is written needs this library no more: every `WithPrior` is replaced by the
    layer in it, and an optimizer of this library by plain SGD without state, so that
    the loaded model can `evaluate` with its loss and metrics.

    Args:
        model: The base model; for a preset, a KerasHub backbone or task.
        delta: What to merge into it.
        path: Where to write. A folder must not exist, or be empty.

    Raises:
        TypeError: A preset folder is asked for, but the model is none of KerasHub's.
        ValueError: As `SparseDelta.apply`; or the model cannot do without this
            library, because its own code makes a `WithPrior` or a layer has a
            `LaplacePrior` as regularizer.
        ImportError: KerasHub is missing: `pip install keras-hub`.

    Examples:
        >>> import keras
        >>> from keras_bayestune.deltas import SparseDelta, save_merged
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> tuned = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> tuned.set_weights([weight + 1.0 for weight in model.get_weights()])
        >>> delta = SparseDelta.from_checkpoints(model, tuned)
        >>> save_merged(model, delta, "tuned.keras")
        >>> keras.saving.load_model("tuned.keras").get_weights()[1].tolist()
        [1.0, 1.0]
        >>> model.get_weights()[1].tolist()
        [0.0, 0.0]
    """
    name = os.fspath(path)
    suffix = next((s for s in (".keras", ".weights.h5") if name.endswith(s)), "")
    if not suffix:
        _check_has_preset(model, name)
    with (
        delta.applied(model),
        plain(model) as saved,
        replacing(path, suffix) as temporary,
    ):
        if suffix == ".weights.h5":
            saved.save_weights(temporary)
        elif suffix == ".keras":
            check_is_plain(saved)
            saved.save(temporary)
        else:
            saved.save_to_preset(str(temporary))


def _check_has_preset(model: keras.Model, name: str) -> None:
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            f"Writing a preset folder ({name}) needs KerasHub: `pip install keras-hub`."
        ) from error
    if not isinstance(model, keras_hub.models.Backbone | keras_hub.models.Task):
        raise TypeError(
            f"Only KerasHub backbones and tasks have preset folders. Received: "
            f"{type(model).__name__}. End `path` ({name}) in .keras or .weights.h5."
        )
