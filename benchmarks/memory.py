"""Bytes of one training step of a language model, read from the compiled program.

What the step is given (weights, optimizer state) and what XLA sets aside meanwhile
(gradients, activations); nothing runs, so the numbers do not depend on the machine's
load. JAX only. Example:

    KERAS_BACKEND=jax python -m benchmarks.memory --size 110m --dtype bfloat16 --remat
"""

import argparse
import contextlib
import math

import jax
import keras
import keras_hub
import numpy as np

import keras_bayestune as kbt
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.deltas import QuantizedBase

SIZES = {  # layers, heads, width, inner width, vocabulary: Gemma 3's blocks, tied
    "4m": (2, 2, 128, 512, 16384),
    "27m": (6, 6, 384, 1536, 32768),
    "110m": (12, 12, 768, 2048, 32768),
}
FRACTION = 0.005
METHODS = "adam", "stage 1", "stage 2", "stage 2, int8"


def build(size: str, dtype: str, remat: bool) -> keras.Model:
    """A language model of random weights that takes tokens."""
    layers, heads, width, inner, vocabulary = SIZES[size]
    keras.utils.set_random_seed(0)
    blocks = [f"decoder_block_{i}" for i in range(layers)] if remat else []
    with keras.RematScope("list_of_layers", layer_names=blocks):
        backbone = keras_hub.models.Gemma3Backbone(
            vocabulary_size=vocabulary,
            image_size=16,
            num_layers=layers,
            num_query_heads=heads,
            num_key_value_heads=heads,
            hidden_dim=width,
            intermediate_dim=inner,
            head_dim=width // heads,
            dtype=dtype,
        )
        task = keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=None)
    return keras.Model(task.inputs, task.outputs)


def optimizer(method: str, model: keras.Model, accumulate: int | None):
    """The optimizer of a stage, in the state of its first step."""
    steps = {"gradient_accumulation_steps": accumulate}
    if method == "adam":
        return keras.optimizers.Adam(1e-4, **steps)
    if method == "stage 1":
        return kbt.BayesTuneSGLD(1e-4, warmup_steps=1, burn_in_steps=1, seed=0, **steps)
    rng = np.random.default_rng(0)
    scores = {
        v.path: rng.random(v.shape, dtype="float32") for v in model.trainable_variables
    }
    mask = kbt.SparseMask.from_scores(scores, fraction=FRACTION)
    if method == "stage 2, int8":
        mask = QuantizedBase(model, mask).mask
    return kbt.SparseOptimizer(keras.optimizers.Adam(1e-3, **steps), mask)


def step_bytes(model: keras.Model, batch: int, tokens: int, compact: bool):
    """Return the bytes of weights, of optimizer state, and of what lies beside them."""
    model.optimizer.build(model.trainable_variables)
    step: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if compact:
        training = CompactTraining(True)
        training.set_model(model)
        training.start()
        step = training.gradients._probed_step()  # the model has it in no other time
    ids = np.zeros((batch, tokens), "int32")
    data = {"token_ids": ids, "padding_mask": ids + 1}, ids, np.ones(ids.shape)
    model._symbolic_build(data_batch=data)
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    with step:
        lowered = jax.jit(model.train_step, donate_argnums=0).lower(state, data)
    compiled = lowered.compile()
    trained, frozen, kept, _ = (sum(array.nbytes for array in part) for part in state)
    return trained + frozen, kept, compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="27m")
    add("--batch", type=int, default=4)
    add("--tokens", type=int, default=256)
    add("--dtype", default="float32")
    add("--remat", action="store_true", help="RematScope of each block")
    add("--accumulate", type=int, help="gradient_accumulation_steps")
    add("--compact", action="store_true", help="compact gradients in stage 2")
    add("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    for method in arguments.methods:
        model = build(arguments.size, arguments.dtype, arguments.remat)
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        scalars = sum(math.prod(v.shape) for v in model.trainable_variables)
        model.compile(optimizer(method, model, arguments.accumulate), loss)
        compact = arguments.compact and method == "stage 2"
        rows = step_bytes(model, arguments.batch, arguments.tokens, compact)
        weights, kept, beside = (n / scalars for n in rows)
        print(
            f"{method:14} {scalars / 1e6:6.1f} M scalars, {arguments.dtype}, "
            f"{arguments.batch} x {arguments.tokens} tokens; bytes per scalar: "
            f"weights {weights:5.2f}, state {kept:5.2f}, beside {beside:6.2f}; "
            f"{sum(rows) / 1e6:,.0f} MB in all",
            flush=True,
        )


if __name__ == "__main__":
    main()
