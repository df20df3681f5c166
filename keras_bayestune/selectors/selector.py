"""The protocol of all selectors."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import show_arguments
from keras_bayestune.paths import variable_paths, variables_by_path
from keras_bayestune.priors import LaplacePrior, assign_priors
from keras_bayestune.selectors.steps import check_steps
from keras_bayestune.selectors.training import Training
from keras_bayestune.updates.replicas import strategy_scope


class Selector(abc.ABC):
    """Abstract rule that gives every scalar of a model a score.

    A large score says that the scalar is worth moving for this task. How many are
    moved is decided later, by `SparseMask.from_scores`; which variables compete is
    decided by `exclude` and `WithPrior`, for all selectors as for `BayesTuneSGLD`.
    A selector keeps nothing between two calls.

    A subclass implements `compute(variables, training)`, and may train the model: it
    gets its weights back.

    Examples:
        >>> class SmallMagnitude(Selector):
        ...     def compute(self, variables, training):
        ...         return [-np.abs(v.numpy()) for v in variables]
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3, use_bias=False)]
        ... )
        >>> scores = SmallMagnitude().scores(model)
        >>> [score.shape for score in scores.values()]
        [(4, 3)]
    """

    def scores(
        self,
        model: keras.Model,
        data: Any = None,
        loss: Any = None,
        *,
        batch_size: int | None = None,
        class_weight: Mapping[int, float] | None = None,
        steps_per_epoch: int | None = None,
        exclude: Sequence[str] = (),
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: str | int = 0,
    ) -> dict[str, np.ndarray]:
        """Return `{variable path: score of each scalar}`, float32, >= 0 or of any sign.

        The model is afterwards as it was: every weight to the bit, statistics of
        batch normalisation and states of random generators included, and what it is
        compiled with, the optimizer's state included. Meanwhile a copy of the weights
        lies in the host's memory.

        Args:
            model: A built Keras model; a KerasHub task preprocesses as in its `fit`.
            data: What `fit` takes as `validation_data`: a tuple of arrays `(x, y)` or
                `(x, y, sample_weight)`, or a data set of batches. Rules that look at
                the weights only need none.
            loss: A Keras loss; `None` for what the model is compiled with. The loss
                is the one that `fit` would train with: with the model's own
                `compute_loss`, the losses that layers add, and regularisers.
            batch_size: Rows of a batch, 32 if `None`; for arrays only.
            class_weight: As in `fit`.
            steps_per_epoch: Batches in one pass over the data; `None` for all.
            exclude: Regular expressions; a variable whose path one of them matches
                (`re.search`) gets no score.
            callbacks: Keras callbacks for the passes over the data, such as a
                `keras.callbacks.History`. Their `model` shares the weights.
            verbose: As in `fit`.

        Raises:
            TypeError: if `model` is not a Keras model.
            ValueError: if the model is not built, has no trainable variables or no
                loss, if `data` are needed and missing, if a pattern matches nothing or
                no variable is left.
        """
        variables = scored_variables(model, exclude)
        training = Training(
            model,
            data,
            loss,
            check_steps("batch_size", batch_size),
            class_weight,
            check_steps("steps_per_epoch", steps_per_epoch),
            callbacks,
            verbose,
        )
        with strategy_scope(model), weights_restored(model):
            found = self.compute(variables, training)
        paths = {
            id(variable): path
            for path, variable in variables_by_path(model.trainable_variables).items()
        }
        if isinstance(found, Mapping) or len(found) != len(variables):
            raise TypeError(
                f"`compute` of {type(self).__name__} must return a list of "
                f"{len(variables)} arrays, one for each variable, in order. Received: "
                f"{type(found).__name__} of {len(found)}."
            )
        return {
            paths[id(variable)]: np.asarray(array, "float32")
            for variable, array in zip(variables, found, strict=True)
            if array is not None
        }

    def __repr__(self) -> str:
        """Return the class with those of its arguments that are not the defaults."""
        return show_arguments(self)

    @abc.abstractmethod
    def compute(
        self, variables: Sequence[keras.Variable], training: Training
    ) -> Sequence[Any]:
        """Return an array of the variable's shape for each variable, in order.

        `None` in its place leaves a variable out.

        Args:
            variables: Those that compete.
            training: Runs the model over the data; `training.model` is the model.
        """


def scored_variables(
    model: keras.Model, exclude: Sequence[str]
) -> list[keras.Variable]:
    """Return the trainable variables that compete, as `BayesTuneSGLD` assigns priors.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if there are none.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: {type(model).__name__}."
        )
    variables = model.trainable_variables
    if not variables:
        raise ValueError(
            f"The model {model.name!r} has no trainable variables. Build it, for "
            "example by calling it on a batch, and set `trainable = True` on the "
            "layers that are to be tuned."
        )
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    priors = assign_priors(
        variables, variable_paths(variables), LaplacePrior(), patterns
    )
    return [v for v, prior in zip(variables, priors, strict=True) if prior is not None]


@contextmanager
def weights_restored(model: keras.Model) -> Iterator[None]:
    """At the end, also after an error, give every weight its value back."""
    before = [(v, ops.convert_to_numpy(v.value)) for v in model.variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
