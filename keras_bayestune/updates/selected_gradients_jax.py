"""Gradients of selected scalars on JAX; see `selected_gradients`."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def products(x: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, step: int) -> Any:
    """Sums over n of `x[n, rows] * dy[n, columns]`, `step` rows of the batch a time.

    One row of the batch stays in the cache while all entries read from it; gathering
    for all rows at once would write `n` times `k` scalars to memory.
    """

    def add(total, pair):
        x, dy = pair
        for n in range(step):
            left = jnp.take(x[n], rows, mode="clip").astype("float32")
            right = jnp.take(dy[n], columns, mode="clip").astype("float32")
            total += left * right
        return total, None

    blocks = tuple(a.reshape(-1, step, a.shape[1]) for a in (x, dy))
    return jax.lax.scan(add, jnp.zeros(len(rows)), blocks)[0]


products_uncompiled = products


def lookups(
    ids: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, entries: int
) -> Any:
    """Sums of the rows of `dy` whose id is in `rows`, at `columns`."""
    count = len(ids)
    # Any one place for all rows of the batch with one id; `count` where there is none.
    place = jnp.full(entries, count, "int32").at[ids].min(jnp.arange(count))
    sums = jnp.zeros((count + 1, dy.shape[1])).at[place[ids]].add(dy.astype("float32"))
    return sums.at[place[rows], columns].get(mode="clip")


def with_gradient(y: Any, x: Any, probe: Any, gradient: Any) -> Any:
    """See `selected_gradients.with_gradient`."""

    @jax.custom_vjp
    def identity(y, x, probe):
        return y

    def forward(y, x, probe):
        return y, x

    def backward(x, dy):
        return dy, None, gradient(x, dy)

    identity.defvjp(forward, backward)
    return identity(y, jax.lax.stop_gradient(x), probe)


def watched(value: Any, note: Callable[[], None]) -> Any:
    """Return `value`; call `note` if it turns out that a gradient flows back to it."""

    @jax.custom_vjp
    def identity(value):
        return value

    def forward(value):
        return value.value, None

    def backward(_, gradient):
        if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
            return (None,)
        note()
        return (gradient,)

    identity.defvjp(forward, backward, symbolic_zeros=True)
    return identity(value)


def recording() -> Any:
    """See `selected_gradients.recording`."""
    return None


def slowdown(jit_compile: bool = True) -> int:
    """The loop runs on one core, a dense product on all."""
    return os.cpu_count() or 1


def is_faster_here(jit_compile: bool) -> bool:
    """See `selected_gradients.is_faster_here`."""
    return jit_compile and jax.default_backend() == "cpu"
