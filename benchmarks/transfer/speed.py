"""Run-steps per second of stage 2: side by side, and by `fit`, one after the other."""

import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np

import keras_bayestune as kbt
from benchmarks.transfer.network import orders, schedule, take
from benchmarks.transfer.programs import Run, Selected
from benchmarks.transfer.sources import Settings
from benchmarks.transfer.tasks import Task


def measure(
    task: Task, settings: Settings, fraction: float, together: Sequence[int], steps: int
) -> Iterator[tuple[str, float]]:
    """Yield what was run, and its run-steps per second without compilation."""
    network = task.network
    count = int(fraction * network.count)
    rng = np.random.default_rng(0)
    indices = np.sort(rng.permutation(network.count)[:count]).astype("int32")
    start = network.flat(network.weights())[indices]
    rows = len(task.train[1])

    def run(steps):
        order = orders(rows, settings.batch_size, steps, seed=0)
        return Run(order, schedule(1e-3, steps), start, indices)

    for number in together:
        program = Selected(network, count, task.train, number)
        for length in (2, steps):  # the first ones compile
            begin = time.perf_counter()
            list(program.train([run(length)] * number, []))
            seconds = time.perf_counter() - begin
        yield f"{number} side by side", number * steps / seconds

    scores = {v.path: rng.random(v.shape) for v in network.model.trainable_variables}
    mask = kbt.SparseMask.from_scores(scores, fraction)
    adam = keras.optimizers.Adam(1e-3, global_clipnorm=1.0)
    network.model.compile(kbt.SparseOptimizer(adam, mask), network.loss)
    chosen = orders(rows, settings.batch_size, steps, seed=0).ravel()
    x, y = take(task.train[0], chosen), task.train[1][chosen]

    for _ in range(2):  # the first one compiles
        begin = time.perf_counter()
        network.model.fit(x, y, batch_size=settings.batch_size, verbose=0)
        seconds = time.perf_counter() - begin
    yield "`fit`, one at a time", steps / seconds
