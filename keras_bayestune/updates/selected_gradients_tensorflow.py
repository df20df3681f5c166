"""Gradients of selected scalars on TensorFlow; see `selected_gradients`."""

import os
from typing import Any

import numpy as np
import tensorflow as tf


def products(x: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, step: int) -> Any:
    """As `selected_gradients_jax.products`."""
    x, dy = (tf.reshape(a, (-1, step, a.shape[-1])) for a in (x, dy))

    def add(i, total):
        for n in range(step):
            left = tf.cast(tf.gather(x[i, n], rows), "float32")
            right = tf.cast(tf.gather(dy[i, n], columns), "float32")
            total += left * right
        return i + 1, total

    start = (tf.constant(0), tf.zeros(len(rows)))
    return tf.while_loop(lambda i, total: i < tf.shape(x)[0], add, start)[1]


def products_uncompiled(
    x: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, step: int
) -> Any:
    """As `products`, in few operations: each has its price where nothing fuses them.

    All rows of the batch for some entries at a time, which stay in the cache.
    """
    x, dy = tf.transpose(x), tf.transpose(dy)
    count = len(rows)
    chunk = max(256, -(-count // 32))
    sums = []
    for i in range(0, count, chunk):
        left = tf.cast(tf.gather(x, rows[i : i + chunk]), "float32")
        right = tf.cast(tf.gather(dy, columns[i : i + chunk]), "float32")
        sums.append(tf.reduce_sum(left * right, axis=1))
    return tf.concat(sums, axis=0)


def lookups(
    ids: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, entries: int
) -> Any:
    """As `selected_gradients_jax.lookups`."""
    ids = tf.cast(ids, "int32")
    count = tf.shape(ids)[0]
    place = tf.tensor_scatter_nd_min(
        tf.fill((entries,), count), ids[:, None], tf.range(count)
    )
    sums = tf.scatter_nd(
        tf.gather(place, ids)[:, None],
        tf.cast(dy, "float32"),
        (count + 1, dy.shape[-1]),
    )
    return tf.gather_nd(sums, tf.stack([tf.gather(place, rows), columns], axis=1))


def with_gradient(y: Any, x: Any, probe: Any, gradient: Any) -> Any:
    """See `selected_gradients.with_gradient`."""

    @tf.custom_gradient
    def identity(y, probe):
        return tf.identity(y), lambda dy: (dy, gradient(x, dy))

    return identity(y, probe)


def recording() -> Any:
    """See `selected_gradients.recording`."""
    graph = tf.compat.v1.get_default_graph()
    # `vectorized_map` writes what it maps into the same graph first, under this name.
    return graph, "loop_body" in graph.get_name_scope()


def slowdown(jit_compile: bool = True) -> int:
    """The loop runs on one core, a dense product on all."""
    return (os.cpu_count() or 1) if jit_compile else 1


def is_faster_here(jit_compile: bool) -> bool:
    """See `selected_gradients.is_faster_here`."""
    return not tf.config.list_logical_devices("GPU")
