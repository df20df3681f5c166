"""Selected scalars of weights as vectors, as few as an optimizer's rules allow."""

import dataclasses
import functools
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.updates.gather_scatter import (
    for_indexing,
    gather,
    resynced,
    scatter,
)
from keras_bayestune.updates.rows import in_a_row, split

Tensor = Any  # a backend tensor

# What one of these does to a scalar depends on that scalar alone. A subclass, or an
# optimizer from elsewhere, may ask for the name, the norm or the shape of a weight.
_NAMES = "SGD RMSprop Adam AdamW Adadelta Adagrad Adamax Nadam Ftrl Lion"
ELEMENTWISE = tuple(getattr(keras.optimizers, name) for name in _NAMES.split())


def is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether the scalars of several weights can share one vector."""
    # On PyTorch Keras makes a class of its own of each of them.
    of_keras = type(optimizer).__module__.startswith("keras.")
    return of_keras and isinstance(optimizer, ELEMENTWISE) and not optimizer.clipnorm


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedVector:
    """The selected scalars of some weights, one weight after another.

    Attributes:
        value: Shape `(k,)`, float32 or the weights' wider dtype.
        indices: Shape `(k,)`, int32: flat C-order indices in each weight.
        weights: Place of each weight among those of the optimizer.
        lengths: How many scalars each weight has here; their sum is k.
    """

    value: keras.Variable
    indices: keras.Variable
    weights: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def create(
        cls,
        optimizer: keras.optimizers.Optimizer,
        weights: Sequence[keras.Variable],
        selected: Mapping[int, np.ndarray],
    ) -> "SelectedVector":
        """Create the variables of a vector, among those of `optimizer`.

        Args:
            optimizer: Whose they are.
            weights: Those of the optimizer.
            selected: Flat indices in some of them, by place.
        """
        values = [
            # In NumPy: JAX would compile a gather for each weight.
            ops.convert_to_numpy(ops.convert_to_tensor(weights[i])).reshape(-1)[found]
            for i, found in selected.items()
        ]
        first = weights[next(iter(selected))]
        name = first.name if len(selected) == 1 else "selected"
        dtype = keras.backend.result_type(first.dtype, "float32")
        indices = np.concatenate(list(selected.values()))
        value = _add_vector(optimizer, name, np.concatenate(values), dtype)
        if len(selected) == 1:
            value._path = first.path  # for rules that go by it
        return cls(
            value,
            _add_vector(optimizer, f"{name}_indices", indices, "int32"),
            tuple(selected),
            tuple(map(len, selected.values())),
        )

    def refresh(self, weights: Sequence[keras.Variable]) -> None:
        """Take the present values of the weights, which others may have changed."""
        present = in_a_row(
            [
                gather(ops.convert_to_tensor(weights[i]), indices)
                for i, indices in self._parts(for_indexing(self.indices))
            ]
        )
        if weights[self.weights[0]].dtype != self.value.dtype:
            present = resynced(ops.convert_to_tensor(self.value), present)
        self.value.assign(present)

    def gradient(
        self,
        gradients: Mapping[int, Tensor | None],
        compact: Mapping[int, Tensor | None],
        weights: Sequence[keras.Variable],
    ) -> tuple[Tensor | None, set[int]]:
        """Return the gradient of the vector, and the weights that have one.

        Args:
            gradients: Of weights, by place; `None` for one that has none.
            compact: Of the selected scalars of weights, to be added.
            weights: Those of the optimizer.
        """
        parts: list[Tensor | None] = []
        for i, indices in self._parts(for_indexing(self.indices)):
            both = [compact.get(i)]
            if gradients.get(i) is not None:
                both.append(gather(gradients[i], indices))
            found = [ops.cast(g, self.value.dtype) for g in both if g is not None]
            parts.append(functools.reduce(ops.add, found) if found else None)
        having = {
            i for i, part in zip(self.weights, parts, strict=True) if part is not None
        }
        if not having:
            return None, having
        missing = [
            weights[i].path for i in gradients.keys() & set(self.weights) - having
        ]
        if missing:
            warnings.warn(
                f"Gradients do not exist for variables {missing} when minimizing the "
                "loss: they stay as they are.",
                stacklevel=2,
            )
        filled = [
            ops.zeros(length, self.value.dtype) if part is None else part
            for part, length in zip(parts, self.lengths, strict=True)
        ]
        return in_a_row(filled), having

    def constrain(
        self, weights: Sequence[keras.Variable], moved: Collection[int], finite: Tensor
    ) -> None:
        """Go to where the constraints of the weights that `moved` allow."""
        parts = dict(self._parts(self.value))
        constrained = [i for i in parts if i in moved and weights[i].constraint]
        if not constrained:
            return
        for i, indices in self._parts(for_indexing(self.indices)):
            if i in constrained:
                value = parts[i]
                new = scatter(ops.convert_to_tensor(weights[i]), indices, value)
                allowed = gather(weights[i].constraint(new), indices)
                parts[i] = ops.where(finite, resynced(value, allowed), value)
        self.value.assign(in_a_row(list(parts.values())))

    def written(self, moved: Collection[int]) -> list[tuple[int, Tensor, Tensor]]:
        """Return place, new scalars and their indices of the weights that `moved`."""
        both = zip(
            self._parts(self.value),
            self._parts(for_indexing(self.indices)),
            strict=True,
        )
        return [(i, value, found) for (i, value), (_, found) in both if i in moved]

    def indices_in(self, i: int) -> np.ndarray:
        """Return the flat indices in a weight of this vector."""
        return ops.convert_to_numpy(dict(self._parts(for_indexing(self.indices)))[i])

    def _parts(self, vector: Any) -> list[tuple[int, Tensor]]:
        """Return place and part of each weight, of `value` or `indices`."""
        shapes = [(length,) for length in self.lengths]
        parts = split(ops.convert_to_tensor(vector), shapes)
        return list(zip(self.weights, parts, strict=True))


def _add_vector(
    optimizer: keras.optimizers.Optimizer, name: str, start: np.ndarray, dtype: str
) -> keras.Variable:
    # Over devices Keras 3.15 compiles the initializer of a large variable, and would
    # give a vector the layout of the weight whose name it has.
    distribution = keras.distribution.distribution()
    layout = distribution and keras.distribution.TensorLayout(
        [None], distribution.device_mesh
    )

    def given(shape: tuple[int, ...], dtype: str) -> Tensor:
        return ops.array(np.asarray(start, dtype))

    vector = optimizer.add_variable(
        shape=(len(start),),
        initializer=given if distribution is None else "zeros",
        dtype=dtype,
        layout=layout,
        name=name,
    )
    if distribution is not None:
        vector.assign(np.asarray(start, dtype))
    return vector
