"""Time one training step: stage 1 and stage 2 beside Keras's own optimizers.

All methods of a run live in one process and take turns, so that a ratio does not
hear the machine's mood. Each has its own copy of a random-weight BERT. Example:

    KERAS_BACKEND=jax python -m benchmarks.step --size 23m --tokens 64
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import keras
import keras_hub
import numpy as np

import keras_bayestune as kbt
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.samplers import ScalarMetric

SIZES = {  # layers, heads, width, inner width, vocabulary
    "tiny": (12, 2, 16, 32, 30522),  # as many weights as BERT-base, for `dispatch`
    "4m": (2, 2, 128, 512, 30522),
    "23m": (6, 12, 384, 1536, 30522),
    "110m": (12, 12, 768, 3072, 30522),
    "1b": (24, 32, 1792, 7168, 30522),
}
FRACTION = 0.005


def build_model(size: str, tokens: int) -> keras.Model:
    """A BERT with a fresh two-class head on the mean of its last layer."""
    layers, heads, width, inner, vocabulary = SIZES[size]
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=inner,
        max_sequence_length=max(tokens, 128),
        dropout=0.0,
    )
    pooled = keras.ops.mean(backbone.output["sequence_output"], axis=1)
    outputs = keras.layers.Dense(2, name="logits")(pooled)
    return keras.Model(backbone.input, outputs)


def random_batch(batch: int, tokens: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One batch of random tokens and labels."""
    rng = np.random.default_rng(0)
    x = {
        "token_ids": rng.integers(0, 30522, (batch, tokens)).astype("int32"),
        "segment_ids": np.zeros((batch, tokens), "int32"),
        "padding_mask": np.ones((batch, tokens), "int32"),
    }
    return x, rng.integers(0, 2, batch)


def stage_one(sampler: kbt.samplers.Sampler) -> Callable[[keras.Model], object]:
    """Stage 1 past warm-up and burn-in, a sample every fifth step."""
    return lambda model: kbt.BayesTuneSGLD(
        1e-4,
        sampler=sampler,
        warmup_steps=1,
        burn_in_steps=1,
        thinning=5,
        exclude=["logits"],
        seed=0,
    )


def stage_two(model: keras.Model) -> kbt.SparseOptimizer:
    """Adam on a random 0.5 % and the head."""
    rng = np.random.default_rng(0)
    scores = {
        v.path: rng.random(v.shape, dtype="float32") for v in model.trainable_variables
    }
    mask = kbt.SparseMask.from_scores(
        scores, fraction=FRACTION, always=[p for p in scores if "logits" in p]
    )
    return kbt.SparseOptimizer(keras.optimizers.Adam(1e-3), mask)


METHODS: dict[str, Callable[[keras.Model], object]] = {
    "sgd": lambda model: keras.optimizers.SGD(1e-4),
    "adam": lambda model: keras.optimizers.Adam(1e-4),
    "adam, clipped": lambda model: keras.optimizers.Adam(1e-4, global_clipnorm=1.0),
    "stage 1": stage_one(kbt.Collapsed()),
    "stage 1, gaussian": stage_one(kbt.Collapsed(noise=kbt.noise.Gaussian())),
    "stage 1, scalar metric": stage_one(kbt.Collapsed(ScalarMetric())),
    "stage 1, joint": stage_one(kbt.JointLangevin()),
    "stage 1, authors": stage_one(kbt.Authors()),
    "stage 2": stage_two,
    "stage 2, compact": stage_two,
}


def nbytes(variable: keras.Variable) -> int:
    """Bytes of a variable."""
    return keras.ops.convert_to_numpy(variable).nbytes


def compact_training(
    model: keras.Model, name: str, when: bool | str = "auto"
) -> CompactTraining:
    """Return the callback that gives the methods of that name compact gradients."""
    training = CompactTraining(when if "compact" in name else False)
    training.set_model(model)
    training.start()
    return training


def train(model: keras.Model, training: CompactTraining, x: object, y: object) -> None:
    """Run one step as `fit` does."""
    training.on_train_batch_begin(0)
    model.train_on_batch(x, y)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="23m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    keras.config.set_dtype_policy(arguments.dtype)
    names = list(dict.fromkeys(["adam", *arguments.methods]))

    x, y = random_batch(arguments.batch, arguments.tokens)
    models, first, state, gradients, trainings = {}, {}, {}, {}, {}
    for name in names:
        model = build_model(arguments.size, arguments.tokens)
        model.compile(
            METHODS[name](model),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        start = time.perf_counter()
        training = trainings[name] = compact_training(model, name)
        train(model, training, x, y)
        first[name] = time.perf_counter() - start
        scalars = model.count_params()
        state[name] = sum(map(nbytes, model.optimizer.variables)) / scalars
        size = sum(map(nbytes, model.trainable_variables))
        if training.gradients is not None:
            size = training.gradients.gradient_bytes
        gradients[name] = size / scalars
        models[name] = model
        print(f"{name}: first step {first[name]:.1f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            start = time.perf_counter()
            train(models[name], trainings[name], x, y)
            times[name].append(time.perf_counter() - start)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{keras.backend.backend()}, BERT of {scalars / 1e6:.1f} M scalars, batch "
        f"{arguments.batch} x {arguments.tokens} tokens, {arguments.dtype}, median of "
        f"{arguments.repeats}; peak of the whole run {peak:.1f} GiB"
    )
    header = f"{'method':<22}{'step s':>8}{'/ Adam':>8}{'first s':>9}{'/ Adam':>8}"
    print(header + f"{'state B/scalar':>16}{'gradients':>11}")
    rows = []
    for name in names:
        step = statistics.median(times[name])
        ratio = statistics.median(
            a / b for a, b in zip(times[name], times["adam"], strict=True)
        )
        compile_ratio = first[name] / first["adam"]
        print(
            f"{name:<22}{step:8.3f}{ratio:8.2f}{first[name]:9.1f}{compile_ratio:8.2f}"
            f"{state[name]:16.2f}{gradients[name]:11.2f}"
        )
        row = [name, step, ratio, first[name], compile_ratio]
        rows.append([*row, state[name], gradients[name]])
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"arguments": vars(arguments), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
