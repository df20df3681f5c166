"""Adding up what gradients say, on any backend, by an optimizer that moves nothing."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.selectors.training import Training
from keras_bayestune.updates.replicas import (
    dense_gradients,
    sum_over_replicas,
    update_each,
)

Tensor = Any  # a backend tensor
Term = Callable[[Tensor], Tensor]


def sum_over_gradients(
    term: Term,
    variables: Sequence[keras.Variable],
    training: Training,
    steps: int | None,
    per_example: bool = False,
) -> list[np.ndarray]:
    """Return the sum of term(gradient of the batch's loss) over batches, in order.

    Args:
        term: Function of a float32 gradient, element by element.
        variables: Those whose sums are returned.
        training: The model, the data and the loss.
        steps: At most so many batches; `None` for one pass over the data.
        per_example: Whether every batch is one example.

    Raises:
        ValueError: if no gradient was finite.
    """
    optimizer = GradientAccumulator(term)
    batches = training.visit(optimizer, steps, per_example)
    left_out = batches - optimizer.num_added
    if left_out == batches:
        raise ValueError(
            f"None of the gradients of {batches} batches was finite. Look at the data "
            "and the loss."
        )
    if left_out:
        warnings.warn(
            f"{left_out} of {batches} batches were left out because their gradient was "
            "not finite. Look at the data and the loss; in float16 a few are normal, "
            "while the scale of the loss is being found.",
            stacklevel=2,
        )
    return optimizer.sums(variables)


class GradientAccumulator(keras.optimizers.Optimizer):
    """Add up a function of every gradient and leave the weights alone.

    A gradient that is not finite anywhere is left out.

    Args:
        term: Function of a float32 gradient, element by element.
    """

    def __init__(self, term: Term):
        super().__init__(learning_rate=0.0)
        self.term = term

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the sums."""
        if self.built:
            return
        super().build(variables)
        self._added = self.add_variable(
            shape=(),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="added",
        )
        self._sums = [
            self.add_variable(
                shape=variable.shape,
                initializer="zeros",
                dtype="float32",
                layout=variable._layout,
                name=f"{variable.path.replace('/', '_')}_sum",
            )
            for variable in variables
        ]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Add; none of what Keras does to the weights besides their update is done."""
        variables = self._trainable_variables
        if trainable_variables is not None:
            variables = list(trainable_variables)
            self.build(variables)
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(
                dense_gradients(grads, variables), variables, strict=True
            )
            if gradient is not None
        ]
        gradients = sum_over_replicas([ops.cast(g, "float32") for g, _ in pairs])
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in gradients]))
        update_each(self._add, gradients, [variable for _, variable in pairs], finite)
        self._added.assign_add(ops.cast(finite, "int32"))
        self._iterations.assign_add(1)

    def _add(self, gradient: Tensor, variable: Any, finite: Tensor) -> None:
        total = self._sums[self._get_variable_index(variable)]
        self.assign_add(total, ops.where(finite, self.term(gradient), 0.0))

    @property
    def num_added(self) -> int:
        """Number of gradients that were finite."""
        return int(self._added.numpy())

    def sums(self, variables: Sequence[keras.Variable]) -> list[np.ndarray]:
        """Return the sum of each variable, float32."""
        return [
            ops.convert_to_numpy(self._sums[self._get_variable_index(v)].value)
            for v in variables
        ]
