"""Gradient of the selected scalars of a weight, without the gradient of the others.

A kernel `W` of shape `(R, C)` in `y = x W` has the gradient

    dW[r, c] = sum_n x[n, r] dy[n, c]

over the `n` rows of a batch: as many multiplications as the layer itself. Where few
entries `(r_k, c_k)` are selected, the sums of those entries cost less. In the same way
the gradient of an embedding table is needed at the selected entries only.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.updates.matmul_layout import MatmulLayout

Tensor = Any  # a backend tensor
Gradient = Callable[[Tensor, Tensor], Tensor]  # (input, gradient of output) -> (k,)

# What one entry computed by itself costs, in entries of a dense product. Measured on
# two cores at 1,024 rows, on kernels 384 x 384 and 384 x 1,536: 40 to 60.
ENTRY_COST = 50
# Taking rows and columns out before a smaller dense product, likewise.
BLOCK_COST = 1.5
# A smaller weight is not worth another operation.
SMALLEST_WEIGHT = 1 << 14


def kernel_gradient(
    layout: MatmulLayout,
    selected: np.ndarray,
    force: bool = False,
    jit_compile: bool = True,
) -> Gradient | None:
    """Return how to compute a kernel's gradient at `selected`, or `None`.

    `None` says that the whole gradient is expected to be faster, unless `force`.

    Args:
        layout: How the layer multiplies.
        selected: Flat C-order indices in the kernel, shape `(k,)`.
        force: Never `None`.
        jit_compile: Whether the train step is compiled.
    """
    rows, columns = layout.rows_and_columns(selected)
    dense = layout.rows * layout.columns
    active_rows, row_places = np.unique(rows, return_inverse=True)
    active_columns, column_places = np.unique(columns, return_inverse=True)
    block = BLOCK_COST * len(active_rows) * len(active_columns)
    entries = ENTRY_COST * _backend().slowdown(jit_compile) * len(selected)
    if not force and (dense < SMALLEST_WEIGHT or min(block, entries) >= dense):
        return None

    def from_entries(x: Tensor, dy: Tensor) -> Tensor:
        step = math.gcd(8, _known_rows(x, layout.rows))
        x, dy = layout.aligned_input(x), layout.aligned_output(dy)
        backend = _backend()
        products = backend.products if jit_compile else backend.products_uncompiled
        return products(x, dy, rows, columns, step)

    def from_block(x: Tensor, dy: Tensor) -> Tensor:
        x = ops.take(layout.aligned_input(x), active_rows, axis=1)
        dy = ops.take(layout.aligned_output(dy), active_columns, axis=1)
        dense = ops.matmul(ops.transpose(x), dy)
        flat = row_places * len(active_columns) + column_places
        return ops.cast(ops.take(ops.reshape(dense, (-1,)), flat), "float32")

    return from_block if block <= entries else from_entries


def _known_rows(x: Tensor, width: int) -> int:
    """A number that divides how many rows of `width` scalars `x` holds."""
    known = math.prod(n for n in x.shape if n is not None)
    return max(known // width, 1)


def table_gradient(
    shape: tuple[int, int], selected: np.ndarray, force: bool = False
) -> Gradient | None:
    """Return how to compute the gradient of a table at `selected`, or `None`.

    Rows of the batch that look up one entry of the table are summed first, so the
    work is that of the batch and of the selected scalars, not that of the table.

    Args:
        shape: Of the table, `(entries, width)`.
        selected: Flat C-order indices in the table, shape `(k,)`.
        force: As in `kernel_gradient`.
    """
    size = math.prod(shape)
    if not force and (size < SMALLEST_WEIGHT or 2 * len(selected) >= size):
        return None
    rows, columns = (a.astype("int32") for a in np.unravel_index(selected, shape))

    def gradient(ids: Tensor, dy: Tensor) -> Tensor:
        ids = ops.reshape(ids, (-1,))
        dy = ops.reshape(dy, (-1, shape[1]))
        return _backend().lookups(ids, dy, rows, columns, shape[0])

    return gradient


def with_gradient(y: Tensor, x: Tensor, probe: Tensor, gradient: Gradient) -> Tensor:
    """Return `y`; on the way back, `probe` receives `gradient(x, dy)`.

    Args:
        y: Output of a layer.
        x: Its input; nothing flows back to it from here.
        probe: Shape `(k,)`; its value does not matter.
        gradient: The probe's gradient from `x` and the gradient of `y`.
    """
    return _backend().with_gradient(y, x, ops.convert_to_tensor(probe), gradient)


def recording() -> Any:
    """Return what takes down the operations of this moment, to be compared with `==`.

    A gradient reaches a probe from where the train step itself is taken down: not out
    of the branch of a TensorFlow conditional, nor from under PyTorch's `vmap`. JAX
    follows it everywhere.
    """
    return _backend().recording()


def is_faster_here(jit_compile: bool) -> bool:
    """Whether any of this can be faster on this device.

    On an accelerator a dense product of this size costs next to nothing; JAX without
    a compiler pays for each small operation, and `torch.compile` does not know them.
    """
    return _backend().is_faster_here(jit_compile)


def _backend() -> Any:
    name = keras.backend.backend()
    return importlib.import_module(f"keras_bayestune.updates.selected_gradients_{name}")
