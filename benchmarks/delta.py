"""Size and speed of deltas on a BERT of 110 M random weights, beside KerasHub's LoRA.

    KERAS_BACKEND=jax python -m benchmarks.delta
    KERAS_BACKEND=jax python -m benchmarks.delta --fraction 0.02 --swaps 100

Prints a table: bytes per trained scalar, and the times to save, load, apply, swap and
revert. The selection is uniformly random, which costs the most bytes per index.
After `--swaps` random swaps the checksum of every weight must be that of the base.
LoRA is saved and loaded as KerasHub does it (`save_lora_weights`, `load_lora_weights`;
query and value, its default layers); loading is also how it swaps tasks. The last
rows are figures that PEFT's maintainers published (pull request 2584).
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_bayestune.deltas import DeltaSet, SparseDelta, swap
from keras_bayestune.deltas.model_variables import floating_variables, read_variable
from keras_bayestune.deltas.variable import VariableDelta

PUBLISHED = [  # huggingface/peft#2584, 2025-07-02: file size, trained scalars
    ("PEFT LoRA, published", 36_715_216, 9_175_040),
    ("PEFT SHiRA, published", 110_115_520, 9_175_040),
]


def backbone(arguments: argparse.Namespace) -> keras.Model:
    return keras_hub.models.BertBackbone(
        vocabulary_size=arguments.vocabulary,
        num_layers=arguments.layers,
        num_heads=arguments.hidden // 64,
        hidden_dim=arguments.hidden,
        intermediate_dim=4 * arguments.hidden,
        max_sequence_length=512,
    )


def random_delta(model: keras.Model, fraction: float, seed: int) -> SparseDelta:
    """A delta of random indices, without a second model in memory."""
    generator = np.random.default_rng(seed)
    variables = {}
    for path, variable in floating_variables(model).items():
        base = read_variable(variable)
        flat_indices = np.flatnonzero(
            generator.random(base.size, np.float32) < np.float32(fraction)
        )
        step = generator.normal(scale=1e-2, size=len(flat_indices)).astype("float32")
        values = base.reshape(-1)[flat_indices] + step
        variables[path] = VariableDelta.sparse(base, flat_indices, values)
    return SparseDelta(variables, {"selector": "random", "fraction": fraction})


def timed(action: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of an action."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def checksums(model: keras.Model) -> list[int]:
    return [swap.variable_checksum(v) for v in floating_variables(model).values()]


def wait(model: keras.Model) -> None:
    """Until what was written has arrived: JAX runs ahead."""
    for weight in model.weights[-3:]:
        keras.ops.convert_to_numpy(weight.value)


def swap_times(tasks: DeltaSet, repeats: int) -> tuple[float, float]:
    """Median seconds of an activation from the base, and of the way back."""
    names = np.resize(list(tasks), len(tasks) + repeats)
    seconds = []
    for name in names:
        activate = timed(lambda name=name: (tasks.activate(name), wait(tasks.model)), 1)
        revert = timed(lambda: (tasks.deactivate(), wait(tasks.model)), 1)
        seconds.append((activate, revert))
    # Each delta's first turn may compile what JAX compiles once per shape.
    activate, revert = np.median(seconds[len(tasks) :], axis=0)
    return float(activate), float(revert)


def measure_deltas(
    model: keras.Model, arguments: argparse.Namespace, folder: pathlib.Path
) -> list[tuple[str, ...]]:
    base = checksums(model)
    deltas = [
        random_delta(model, arguments.fraction, seed) for seed in range(arguments.tasks)
    ]
    rows = []
    for dtype in ("float32", "bfloat16"):
        path = folder / f"{dtype}.safetensors"
        save = timed(lambda path=path, dtype=dtype: deltas[0].save(path, dtype))
        load = timed(lambda path=path: SparseDelta.load(path))
        size = path.stat().st_size
        loaded = SparseDelta.load(path)
        start = time.perf_counter()
        loaded.apply(model)
        wait(model)
        first = time.perf_counter() - start
        loaded.revert(model)

        tasks = DeltaSet(model)
        for number, delta in enumerate(deltas):
            tasks.add(str(number), delta.astype(dtype))
        swap_in, revert = swap_times(tasks, arguments.repeats)
        rows.append(
            row(
                f"delta, p = {arguments.fraction:.2%}, {dtype}",
                size,
                deltas[0].count,
                save,
                load,
                first,
                swap_in,
                revert,
            )
        )
        start = time.perf_counter()
        for name in np.random.default_rng(1).choice(list(tasks), arguments.swaps):
            tasks.activate(str(name))
        tasks.deactivate()
        seconds = time.perf_counter() - start
        if checksums(model) != base:
            sys.exit("The base differs after the swaps.")
        print(
            f"{dtype}: {arguments.swaps} random swaps among {len(tasks)} deltas in "
            f"{seconds:.1f} s, then every weight of the base has its bits."
        )
    return rows


def measure_lora(
    model: keras.Model, arguments: argparse.Namespace, folder: pathlib.Path
) -> list[tuple[str, ...]]:
    model.enable_lora(arguments.rank)
    count = sum(int(np.prod(w.shape)) for w in model.weights if "lora" in w.path)
    path = folder / "task.lora.h5"
    save = timed(lambda: model.save_lora_weights(str(path)))
    load = timed(lambda: (model.load_lora_weights(str(path)), wait(model)))
    name = f"KerasHub LoRA, rank {arguments.rank}"
    return [row(name, path.stat().st_size, count, save, load, None, load, None)]


def row(name: str, size: int, count: int, *seconds: float | None) -> tuple[str, ...]:
    times = ["-" if second is None else f"{second * 1e3:.1f}" for second in seconds]
    times += ["-"] * (5 - len(times))
    return (name, f"{count:,}", f"{size:,}", f"{size / count:.2f}", *times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fraction", type=float, default=0.005)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    model = backbone(arguments)
    size = sum(int(np.prod(w.shape)) for w in model.weights)
    print(f"{keras.config.backend()}, keras {keras.__version__}, {size:,} scalars")
    with tempfile.TemporaryDirectory() as name:
        rows = [
            (
                "what",
                "trained scalars",
                "bytes",
                "bytes / scalar",
                "save ms",
                "load ms",
                "first apply ms",
                "swap in ms",
                "revert ms",
            )
        ]
        rows += measure_deltas(model, arguments, pathlib.Path(name))
        rows += measure_lora(model, arguments, pathlib.Path(name))
    rows += [row(*figures) for figures in PUBLISHED]
    print()
    for number, cells in enumerate(rows):
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + " --- |" * len(cells))


if __name__ == "__main__":
    main()
