"""An ensemble of deltas: stage 2 again and again, from other heads and orders."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_bayestune.arguments import check_integer
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.paths import variables_by_path
from keras_bayestune.selectors.selector import weights_restored
from keras_bayestune.uncertainty.posterior import DeltaPosterior


def ensemble(
    model: keras.Model,
    tune: Callable[[int], SparseDelta],
    members: int = 5,
    *,
    head: Sequence[str] = (),
    outputs: str = "logits",
    seed: int = 0,
    metadata: Any = None,
) -> DeltaPosterior:
    """Tune a model several times and keep the deltas.

    Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles", NeurIPS 2017: equal weights, members that differ
    by their start and the order of the data. Here all share the backbone, and a member
    is a few MB:

    ```
    p(y | x) = (1/K) sum_k p(y | x, delta_k)
    ```

    Cost: `members` runs of `tune`. One mask for all members costs one stage 1, masks
    of their own cost `members`.

    Args:
        model: The base model. Every run starts from its weights, and at the end, also
            after an error, it has them back.
        tune: Function of a seed that trains `model`, for instance
            `lambda seed: fine_tune(model, train, seed=seed).delta`, and returns the
            delta. Keras's global seed is set before.
        members: K >= 1.
        head: Regular expressions: variables whose path one of them matches
            (`re.search`) start with their scalars in another random order for each
            member but the first, which is another draw of whatever drew them. Name
            the new head here: that its members differ pays most.
        outputs: As in `DeltaPosterior`.
        seed: Int >= 0; member k gets `seed + k`.
        metadata: As in `DeltaPosterior`.

    Raises:
        TypeError: `tune` does not return a `SparseDelta`.
        ValueError: `members` is out of range, or a pattern matches nothing.

    Examples:
        >>> from keras_bayestune import SparseDelta, SparseMask, SparseOptimizer
        >>> from keras_bayestune.uncertainty import ensemble
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
        ... )
        >>> x, y = np.random.rand(32, 4), np.random.randint(0, 2, 32)
        >>> base = {v.path: v.numpy() for v in model.weights}
        >>> *backbone, kernel, bias = model.weights
        >>> scores = {v.path: np.random.rand(*v.shape) for v in backbone}
        >>> mask = SparseMask.from_scores(
        ...     scores, 0.2, always={v.path: v.shape for v in (kernel, bias)}
        ... )
        >>> def tune(seed):
        ...     adam = keras.optimizers.Adam(1e-2)
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     model.compile(SparseOptimizer(adam, mask), loss)
        ...     model.fit(x, y, verbose=0)
        ...     return SparseDelta.from_model(model, mask=mask, base=base)
        >>> posterior = ensemble(model, tune, members=3, head=[kernel.path])
        >>> posterior.predict(model, x, verbose=0).mean.shape
        (32, 2)
    """
    members = check_integer("members", members, 1)
    seed = check_integer("seed", seed, 0)
    patterns = (head,) if isinstance(head, str) else tuple(head)
    heads = _matching(model, patterns)
    start = model.get_weights()
    deltas = []
    with weights_restored(model):
        for k in range(members):
            model.set_weights(start)
            keras.utils.set_random_seed(seed + k)
            if k:
                _redraw(heads, seed + k)
            delta = tune(seed + k)
            if not isinstance(delta, SparseDelta):
                raise TypeError(
                    "`tune` must return the SparseDelta of the model it has tuned. "
                    f"Received: {type(delta).__name__}."
                )
            deltas.append(delta)
    return DeltaPosterior(deltas, outputs=outputs, metadata=metadata)


def _matching(model: keras.Model, patterns: Sequence[str]) -> list[keras.Variable]:
    variables = variables_by_path(model.trainable_variables)
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in variables):
            raise ValueError(
                f"The pattern {pattern!r} in `head` matches no trainable variable. "
                f"Paths: {list(variables)[-5:]}."
            )
    return [
        variable
        for path, variable in variables.items()
        if any(re.search(pattern, path) for pattern in patterns)
    ]


def _redraw(variables: Sequence[keras.Variable], seed: int) -> None:
    """Put the scalars of each variable into another order."""
    generator = np.random.default_rng(seed)
    for variable in variables:
        values = keras.ops.convert_to_numpy(variable.value)
        mixed = generator.permutation(values.reshape(-1)).reshape(values.shape)
        variable.assign(mixed)
