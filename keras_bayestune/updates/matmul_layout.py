"""How a Dense or EinsumDense layer multiplies, seen as rows times a matrix."""

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

Tensor = Any  # a backend tensor


@dataclasses.dataclass(frozen=True)
class MatmulLayout:
    """An einsum of an input and a kernel that is one matrix product.

    Attributes:
        inputs: Axis labels of the input, `...` for any number of axes.
        kernel: Axis labels of the kernel.
        outputs: Axis labels of the output.
        kernel_shape: Shape of the kernel.
    """

    inputs: str
    kernel: str
    outputs: str
    kernel_shape: tuple[int, ...]

    @classmethod
    def parse(
        cls, equation: str, kernel_shape: tuple[int, ...]
    ) -> "MatmulLayout | None":
        """Return the layout of `equation`, or `None` if it is not a matrix product.

        It is one if each axis of the kernel is either summed over or put out, and
        the input has no other axis that is summed over.
        """
        left, outputs = equation.replace(" ", "").split("->")
        inputs, kernel = left.split(",")
        terms = [term.replace("...", "") for term in (inputs, kernel, outputs)]
        a, k, c = map(set, terms)
        repeats = any(len(set(term)) != len(term) for term in terms)
        if repeats or "..." in kernel or ("..." in inputs) != ("..." in outputs):
            return None
        if a & k & c or a ^ k ^ c or not (a & k and k & c):
            return None
        return cls(inputs, kernel, outputs, tuple(kernel_shape))

    @property
    def _summed(self) -> list[str]:
        return [label for label in self.kernel if label in self.inputs]

    @property
    def _put_out(self) -> list[str]:
        return [label for label in self.kernel if label in self.outputs]

    def _size(self, labels: list[str]) -> int:
        sizes = dict(zip(self.kernel, self.kernel_shape, strict=True))
        return math.prod(sizes[label] for label in labels)

    @property
    def rows(self) -> int:
        """Rows of the kernel as a matrix: what the product sums over."""
        return self._size(self._summed)

    @property
    def columns(self) -> int:
        """Columns of the kernel as a matrix: what the product puts out."""
        return self._size(self._put_out)

    def rows_and_columns(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column, int32, of flat C-order indices in the kernel."""
        places = np.unravel_index(np.asarray(flat, "int64"), self.kernel_shape)
        by_label = dict(zip(self.kernel, places, strict=True))
        sizes = dict(zip(self.kernel, self.kernel_shape, strict=True))

        def joined(labels: list[str]) -> np.ndarray:
            axes = tuple(by_label[label] for label in labels)
            shape = tuple(sizes[label] for label in labels)
            return np.ravel_multi_index(axes, shape).astype("int32")

        return joined(self._summed), joined(self._put_out)

    def aligned_input(self, x: Tensor) -> Tensor:
        """Return the input with shape `(n, rows)`."""
        labels = _expanded(self.inputs, len(x.shape))
        return _aligned(x, labels, self._batch(labels), self._summed, self.rows)

    def aligned_output(self, y: Tensor) -> Tensor:
        """Return the output, or its gradient, with shape `(n, columns)`."""
        labels = _expanded(self.outputs, len(y.shape))
        added = len(y.shape) - len(self.outputs.replace("...", ""))
        rank = len(self.inputs.replace("...", "")) + added
        batch = self._batch(_expanded(self.inputs, rank))
        return _aligned(y, labels, batch, self._put_out, self.columns)

    def _batch(self, labels: list[str]) -> list[str]:
        return [label for label in labels if label not in self.kernel]


def _expanded(term: str, rank: int) -> list[str]:
    """Return one label per axis; those that `...` stands for are numbers."""
    named = term.replace("...", "")
    if "..." not in term:
        return list(named)
    before, after = term.split("...")
    return [*before, *map(str, range(rank - len(named))), *after]


def _aligned(
    tensor: Tensor, labels: list[str], batch: list[str], last: list[str], width: int
) -> Tensor:
    order = [labels.index(label) for label in (*batch, *last)]
    if order != sorted(order):
        tensor = ops.transpose(tensor, order)
    return ops.reshape(tensor, (-1, width))
