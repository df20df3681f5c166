"""Many runs as one program: `jax.vmap` over runs that differ in arrays only.

A program is compiled once for a shape: as many runs side by side as `together` says.
On an accelerator many at once use it well; on two CPU cores one at a time is faster, by
the same code.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from benchmarks.transfer.network import Inputs, Network, take

Arrays = Any  # nested arrays

LARGEST = 1 << 28  # selected scalars of all runs side by side, 16 bytes each


class Run(NamedTuple):
    """What one run has of its own; every run of a program has the same shapes."""

    order: np.ndarray  # int32 (steps, batch): rows of the training data
    rates: np.ndarray  # float32 (steps,)
    start: Any  # `Whole`: weights; `Selected`: values of the selected scalars
    state: Any = None  # `Whole`: the optimizer's; `Selected`: int32 flat indices


class Whole:
    """Trains all weights by a Keras optimizer: stage 1 of the rules that train.

    Args:
        network: The model.
        optimizer: Built for the model's trainable variables. Its update is its own
            `stateless_apply`; state that a run has of its own (a seed) comes with it.
        data: Inputs and labels of the training set.
        together: Runs side by side.
    """

    def __init__(
        self,
        network: Network,
        optimizer: keras.optimizers.Optimizer,
        data: tuple[Inputs, np.ndarray],
        together: int = 1,
    ):
        self.data = jax.tree.map(jnp.asarray, data)
        self.together, self.fixed = together, network.fixed()
        place = _place_of_rate(optimizer)

        def step(carry, fixed, x, y, rows, rate):
            weights, state = carry
            found = network.gradients(weights, fixed, take(x, rows), y[rows])
            state = [*state[:place], rate, *state[place + 1 :]]
            return optimizer.stateless_apply(state, found, weights)

        axes = 0, None, None, None, 0, 0
        self._step = jax.jit(jax.vmap(step, axes), donate_argnums=0)

    def train(self, runs: Sequence[Run]) -> Iterator[tuple[list, list]]:
        """Yield weights and optimizer state of each run at its end."""
        for chunk, count in chunks(runs, self.together):
            carry = _stack([r.start for r in chunk]), _stack([r.state for r in chunk])
            end = _loop(self._step, (self.fixed, *self.data), carry, chunk)
            for i in range(count):
                yield jax.tree.map(lambda array, i=i: np.asarray(array[i]), end)


class Selected:
    """Trains selected scalars by Adam, all others at the model's own values: stage 2.

    The places of a run's scalars are mapped data, so that masks of one size share a
    program: each weight has a window as wide as any run needs, filled up with places
    behind its end, which are never read or written. The update is that of
    `SparseOptimizer(Adam(global_clipnorm=1.0))`; a test compares the two.

    Args:
        network: The model, at the values from which masks start.
        count: Selected scalars of a run.
        data: Inputs and labels of the training set.
        together: Runs side by side.
    """

    def __init__(
        self,
        network: Network,
        count: int,
        data: tuple[Inputs, np.ndarray],
        together: int = 1,
    ):
        self.network = network
        self.together = max(1, min(together, LARGEST // count))
        self.base = [jnp.asarray(w) for w in network.weights()]
        self.data = jax.tree.map(jnp.asarray, (network.fixed(), *data))
        self._ends = np.cumsum([0, *network.sizes])
        self._windows = np.zeros(len(network.sizes), int)
        self._outputs = jax.jit(jax.vmap(network.outputs, (0, None, None)))

    def train(
        self, runs: Sequence[Run], held_out: Sequence[Inputs], size: int = 50
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray], float]]:
        """Yield each run's trained scalars, its outputs for `held_out`, and seconds."""
        self._widen(runs)
        for chunk, count in chunks(runs, self.together):
            begin = time.perf_counter()
            windows = [self._places(run.state) for run in chunk]
            inside = np.stack([np.concatenate(w) < self._behind for w in windows])
            values = np.zeros(inside.shape, "float32")
            values[inside] = np.concatenate([run.start for run in chunk])
            places, vectors = _stack(windows), jnp.asarray(values)
            weights = self._start(self.base, places, vectors)
            states = _stack([self._state] * len(chunk))
            shared, carry = (places, *self.data), (weights, vectors, states)
            weights, vectors, _ = _loop(self._step, shared, carry, chunk)
            found = [self._predict(weights, x, size) for x in held_out]
            values = np.asarray(vectors)
            seconds = round((time.perf_counter() - begin) / count, 2)
            for i in range(count):
                yield values[i][inside[i]], [outputs[i] for outputs in found], seconds

    def _widen(self, runs: Sequence[Run]) -> None:
        """Make the windows wide enough; a new width is a new compilation."""
        counts = [np.diff(np.searchsorted(run.state, self._ends)) for run in runs]
        windows = np.max([self._windows, *counts], axis=0)
        if (windows > self._windows).any():
            self._windows = windows
            self._behind = np.repeat(self.network.sizes, windows)
            self._compile()

    def _places(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the places within each weight, ascending, as many as its window."""
        bounds = np.searchsorted(indices, self._ends)
        found = []
        for i, (size, window) in enumerate(
            zip(self.network.sizes, self._windows, strict=True)
        ):
            inside = indices[bounds[i] : bounds[i + 1]] - self._ends[i]
            behind = size + np.arange(window - len(inside))
            found.append(np.concatenate([inside, behind]).astype("int32"))
        return found

    def _compile(self) -> None:
        network, cuts = self.network, np.cumsum(self._windows)[:-1]
        adam = keras.optimizers.Adam(1e-3, global_clipnorm=1.0)
        adam.build([keras.Variable(np.zeros(self._windows.sum(), "float32"))])
        self._state = [np.asarray(v.value) for v in adam.variables]
        place = _place_of_rate(adam)
        kept = {"unique_indices": True, "indices_are_sorted": True}

        def put(weights, places, vector):
            return [
                w.ravel().at[p].set(part, mode="drop", **kept).reshape(w.shape)
                if p.size
                else w
                for w, p, part in zip(
                    weights, places, jnp.split(vector, cuts), strict=True
                )
            ]

        def step(carry, places, fixed, x, y, rows, rate):
            weights, vector, state = carry
            found = network.gradients(weights, fixed, take(x, rows), y[rows])
            chosen = [
                g.ravel().at[p].get(mode="fill", fill_value=0, **kept)
                for g, p in zip(found, places, strict=True)
            ]
            state = [*state[:place], rate, *state[place + 1 :]]
            (vector,), state = adam.stateless_apply(
                state, [jnp.concatenate(chosen)], [vector]
            )
            return put(weights, places, vector), vector, state

        self._start = jax.jit(jax.vmap(put, (None, 0, 0)))
        axes = 0, 0, None, None, None, 0, 0
        self._step = jax.jit(jax.vmap(step, axes), donate_argnums=0)

    def _predict(self, weights: Arrays, x: Inputs, size: int) -> np.ndarray:
        rows = len(jax.tree.leaves(x)[0])
        pieces = []
        for first in range(0, rows, size):
            # The last piece is filled up, for one compilation.
            piece = np.minimum(np.arange(first, first + size), rows - 1)
            found = self._outputs(weights, self.data[0], take(x, piece))
            pieces.append(np.asarray(found)[:, : rows - first])
        return np.concatenate(pieces, axis=1)


def chunks(runs: Sequence[Run], together: int) -> Iterator[tuple[list[Run], int]]:
    """Yield the runs that go side by side, and how many of them count.

    Those that are left are filled up with copies, to an eighth or the whole of
    `together`: each size is a compilation.
    """
    few = max(1, together // 8)
    for first in range(0, len(runs), together):
        chunk = list(runs[first : first + together])
        count = len(chunk)
        size = few if count <= few else together
        yield chunk + [chunk[-1]] * (size - count), count


def _stack(parts: Sequence[Arrays]) -> Arrays:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *parts)


def _loop(step, shared: Arrays, carry: Any, chunk: Sequence[Run]) -> Any:
    """Run all steps, from Python: XLA's loops are slow with convolutions on a CPU."""
    order = jnp.asarray(np.stack([run.order for run in chunk], 1))
    rates = jnp.asarray(np.stack([run.rates for run in chunk], 1))
    for i in range(len(order)):
        carry = step(carry, *shared, order[i], rates[i])
    return carry


def _place_of_rate(optimizer: keras.optimizers.Optimizer) -> int:
    names = [variable.name for variable in optimizer.variables]
    return names.index("learning_rate")
