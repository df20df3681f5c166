"""Updates of large arrays with few passes over memory and few kernels."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope

# 1 MiB per float32 array: what an update reads and writes of a piece stays in cache.
PIECE = 1 << 18  # scalars, a multiple of 32
# A smaller array is not worth a compilation.
SMALLEST_COMPILED = 1 << 16  # scalars


class Compiled:
    """`function`, of nested tensors only, as few kernels as the backend makes of it.

    JAX compiles the whole train step; there the function is traced once for all
    arguments of the same shapes. TensorFlow does without XLA on a CPU unless told
    otherwise; there the function alone is compiled, once for all arguments of the same
    shapes. PyTorch compiles it on an accelerator, once for all lengths; on a CPU, and
    where it has no Triton, it runs operation by operation.

    Args:
        function: Takes nested tuples and dicts of tensors and `None`, the first leaf of
            the shape that decides, and returns such.
        **fixed: Keyword arguments of the function that are equal in all calls.
    """

    def __init__(self, function: Callable[..., Any], **fixed: Any):
        self._function = functools.partial(function, **fixed)
        self._compiled: dict[Any, Callable[..., Any]] = {}  # on TensorFlow by shape

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's value at `arguments`."""
        backend = keras.backend.backend()
        if backend == "tensorflow":
            return self._on_tensorflow(arguments)
        if backend == "torch" and (runs_on_cpu(arguments) or not has_triton()):
            return self._function(*arguments)
        if None not in self._compiled:
            self._compiled[None] = (
                self._on_torch() if backend == "torch" else self._on_jax()
            )
        return self._compiled[None](*arguments)

    def _on_jax(self) -> Callable[..., Any]:
        import jax

        return jax.jit(self._function)

    def _on_torch(self) -> Callable[..., Any]:
        import torch

        # Not the `partial`: all of them would share one cache of small size.
        compiled = torch.compile(self._function.func, dynamic=True)

        def detached(tensor: Any) -> Any:
            # A parameter's shape would be compiled in.
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            return tensor.detach() if is_parameter else tensor

        return lambda *arguments: compiled(
            *keras.tree.map_structure(detached, arguments), **self._function.keywords
        )

    def _on_tensorflow(self, arguments: Any) -> Any:
        import tensorflow as tf

        # Keras's `convert_to_tensor` returns a variable as it is, and a compiled
        # function does not take one.
        arguments = keras.tree.map_structure(
            lambda leaf: (
                tf.convert_to_tensor(leaf) if isinstance(leaf, keras.Variable) else leaf
            ),
            arguments,
        )
        first = keras.tree.flatten(arguments)[0]
        shape = tuple(first.shape)
        # Eagerly each call would be compiled anew; on macOS TensorFlow lacks XLA.
        small = math.prod(shape) < SMALLEST_COMPILED
        if small or tf.executing_eagerly() or sys.platform == "darwin":
            return self._function(*arguments)
        key = shape, first.dtype
        if key not in self._compiled:
            # One for each shape: TensorFlow warns of one that is traced often.
            self._compiled[key] = tf.function(
                self._function, jit_compile=True, autograph=False
            )
        return self._compiled[key](*arguments)


def elementwise(
    function: Callable[..., Any],
    own: Any,
    arrays: Any,
    factors: tuple[Any, ...] = (),
) -> Any:
    """Return `function(own, arrays, factors, 0)`, which works scalar by scalar.

    PyTorch on a CPU would read and write whole arrays at each operation; there the
    function gets pieces, of whole rows if there are factors, that begin at scalar
    `start`, its last argument, and `own` is overwritten with the result.

    Args:
        function: Returns nested arrays like `own`.
        own: Nested tuples and dicts of arrays of one shape, and `None`.
        arrays: More of them, which are only read.
        factors: Arrays that broadcast to that shape, one number for each row or for
            each column.
    """
    first = keras.tree.flatten(own)[0]
    size = math.prod(first.shape)
    if keras.backend.backend() != "torch" or size <= PIECE or not runs_on_cpu(own):
        return function(own, arrays, factors, 0)
    columns = first.shape[-1] if factors else 1
    # Whole rows, so many that `start` is a multiple of 32.
    length = max(PIECE // columns // 32, 1) * 32
    if in_stateless_scope():
        own = map_arrays(lambda array: array.clone(), own)  # they are the caller's
    own = map_arrays(lambda array: array.contiguous(), own)
    view = (-1, columns) if factors else (-1,)
    flat, read = (map_arrays(lambda a: a.reshape(view), tree) for tree in (own, arrays))
    lines = [f.reshape((-1, 1) if f.shape[-1] == 1 else (1, -1)) for f in factors]
    for start in range(0, size // columns, length):

        def piece(array: Any) -> Any:
            return array[start : start + length]  # noqa: B023

        parts = tuple(piece(f) if f.shape[-1] == 1 else f for f in lines)
        target = map_arrays(piece, flat)
        result = function(target, map_arrays(piece, read), parts, start * columns)
        map_arrays(lambda old, new: old.copy_(new), target, result)
    return own


def runs_on_cpu(tensors: Any) -> bool:
    """Whether PyTorch's tensors lie in the main memory."""
    return bool(keras.tree.flatten(tensors)[0].device.type == "cpu")


def has_triton() -> bool:
    """Whether PyTorch can compile for an accelerator."""
    from torch.utils._triton import has_triton

    return bool(has_triton())


def map_arrays(change: Callable[..., Any], *trees: Any) -> Any:
    """Return `change` of the arrays of nested tuples and dicts; `None` stays."""
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else change(*leaves), *trees
    )
