"""Both stages on 8 virtual JAX devices and on one: `jax_devices_run.py WIDTH`.

Prints one JSON list: a run on one device, under DataParallel and under ModelParallel,
then what the compiled optimizers send around for weights of several layouts.
"""

import json
import math
import os
import re
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402  (the devices must be known first)
import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_bayestune as kbt  # noqa: E402

# Keras shards a variable while it is initialised from 250 MiB over all devices on; here
# each one, because large ones take another way through it.
keras.src.backend.jax.core.should_shard_at_init = lambda layout, shape: True

WIDTH = int(sys.argv[1])
DEVICES = keras.distribution.list_devices()
LAYOUTS = {
    ".*a/kernel": (None, "model"),
    ".*a/bias": ("model",),
    ".*b/kernel": ("model", "batch"),
    ".*c/kernel": ("model", None),
}
COLLECTIVE = re.compile(
    r"= (.*) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def model_parallel():
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], DEVICES)
    layouts = keras.distribution.LayoutMap(mesh)
    for path, axes in LAYOUTS.items():
        layouts[path] = axes
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def lies_like(state, weight):
    one, other = state.value.sharding, weight.value.sharding
    return one.is_equivalent_to(other, len(weight.shape))


def bytes_per_device(variables):
    found = dict.fromkeys(jax.devices(), 0)
    for variable in variables:
        for shard in variable.value.addressable_shards:
            found[shard.device] += shard.data.nbytes
    return max(found.values())


def replicas_differ(variables):
    """Paths of the variables whose copies of one part are not equal bit for bit."""
    differing = []
    for variable in variables:
        parts = {}
        for shard in variable.value.addressable_shards:
            parts.setdefault(str(shard.index), []).append(np.asarray(shard.data))
        for first, *others in parts.values():
            if any(first.tobytes() != other.tobytes() for other in others):
                differing.append(variable.path)
    return differing


def states(block):
    """Every array that stage 1 keeps for a weight."""
    kept = [block.anchor, block.mean]
    for arrays in (block.slots, block.squares, block.lines):
        kept += arrays.values()
    return [state for state in kept if state is not None]


class Look(keras.callbacks.Callback):
    """Where the state of each stage lies, at the end of its first epoch."""

    def __init__(self):
        super().__init__()
        self.found, self.lies = {}, {}

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        if epoch == 0:
            self._stage_one(optimizer)
        elif isinstance(optimizer, kbt.SparseOptimizer) and logs["stage"] == 2:
            self._stage_two(optimizer)

    def _stage_one(self, optimizer):
        self.found["stage_1_elsewhere"] = [
            state.path
            for block in optimizer._blocks
            for state in states(block)
            if not (
                lies_like(state, block.weights[0])
                if tuple(state.shape) == tuple(block.weights[0].shape)
                else state.value.sharding.is_fully_replicated  # in a row; lines
            )
        ]
        weights = optimizer._trainable_variables
        self.lies = {v.path: str(v.value.sharding) for v in weights}
        self.found["sharded"] = sorted(
            path
            for path, mean in optimizer.running_means()
            if not mean.sharding.is_fully_replicated
        )
        self.found["stage_1_bytes"] = bytes_per_device(
            state
            for block in optimizer._blocks
            for state in states(block)
            if not any(state is line for line in block.lines.values())
        )

    def _stage_two(self, optimizer):
        compact = [v for each in optimizer._vectors for v in (each.value, each.indices)]
        inner = [v for v in optimizer.inner.variables if len(v.shape) == 1]
        self.found["compact"] = len(compact)
        self.found["compact_sharded"] = [
            v.path
            for v in [*compact, *inner]
            if not v.value.sharding.is_fully_replicated
        ]
        self.found["stage_2_elsewhere"] = [
            v.path
            for v in optimizer._trainable_variables
            if self.lies[v.path] != str(v.value.sharding)
        ]
        self.found["stage_2_bytes"] = bytes_per_device(optimizer.variables)


class SelectAgain(keras.callbacks.Callback):
    """The mask from the scores as they lie on the devices, and from NumPy copies."""

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        if epoch == 1:
            lying = dict(optimizer.running_means())
            copies = {path: np.array(value) for path, value in lying.items()}
            masks = [
                kbt.SparseMask.from_scores(scores, fraction=0.1)
                for scores in (lying, copies)
            ]
            self.equal = masks[0] == masks[1]


def train():
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 16)).astype("float32")
    y = (x[:, :4] * x[:, 4:8]).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(WIDTH, activation="tanh", name="a"),
            keras.layers.Dense(WIDTH, activation="tanh", name="b"),
            keras.layers.Dense(WIDTH, activation="tanh", name="c"),
            keras.layers.Dense(4, name="head"),
        ]
    )
    optimizer = kbt.BayesTuneSGLD(
        1e-3, warmup_steps=3, burn_in_steps=6, thinning=1, exclude="head", seed=3
    )
    model.compile(optimizer, loss="mse")
    select = kbt.SparseMaskCallback(
        fraction=0.1, selection_epochs=2, finetune_optimizer=keras.optimizers.Adam(1e-3)
    )
    look, again = Look(), SelectAgain()
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[again, select, look],
    )
    variables = [*model.variables, *model.optimizer.variables]
    return {
        **look.found,
        "devices": len(model.layers[0].kernel.value.sharding.device_set),
        "scalars": sum(s.size for s in select.scores.values()),
        "selected": select.mask.count,
        "weights": [np.asarray(w.value).tolist() for w in model.trainable_variables],
        "scores": [s.tolist() for s in select.scores.values()],
        "mask": [i.tolist() for i in select.mask.indices.values()],
        "samples": history.history["samples"],
        "selection_equal": again.equal,
        "differ": replicas_differ(variables),
    }


def largest_sent(text):
    """Most scalars in one array that a collective operation of a program returns."""
    shapes = [
        s for line in COLLECTIVE.findall(text) for s in re.findall(r"\[.*?\]", line)
    ]
    return max((math.prod(map(int, re.findall(r"\d+", s))) for s in shapes), default=0)


def sent(axes, stage, metric=None):
    """Most scalars of an array that one update of one weight sends around."""
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], DEVICES)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["w"] = axes
    keras.utils.clear_session(free_memory=False)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    )
    shape = (4 * WIDTH, 8 * WIDTH)
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    variable = keras.Variable(values, name="w")
    if stage == 1:
        sampler = kbt.samplers.Collapsed(metric)
        optimizer = kbt.BayesTuneSGLD(
            1e-3, warmup_steps=1, burn_in_steps=1, thinning=1, sampler=sampler
        )
    else:
        mask = kbt.SparseMask.from_scores({"w": values}, fraction=0.01)
        optimizer = kbt.SparseOptimizer(keras.optimizers.Adam(1e-3), mask)
    optimizer.build([variable])
    state = [v.value for v in optimizer.variables]
    places = [value.sharding for value in state]
    weight = variable.value
    assert not weight.sharding.is_fully_replicated
    compiled = (
        jax.jit(
            lambda state, gradient, weight: optimizer.stateless_apply(
                state, [gradient], [weight]
            ),
            out_shardings=([weight.sharding], places),
        )
        .lower(state, weight, weight)
        .compile()
    )
    return {
        "axes": axes,
        "stage": stage,
        "metric": type(metric).__name__,
        "sent": largest_sent(compiled.as_text()),
        "scalars": math.prod(shape),
        "lines": max(shape),
        "selected": 0 if stage == 1 else mask.count,
        # Beyond what it is given and gives back: what it holds meanwhile.
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


runs = [train()]
for distribution in (
    keras.distribution.DataParallel(devices=DEVICES),
    model_parallel(),
):
    keras.utils.clear_session(free_memory=False)  # the distribution, too
    keras.distribution.set_distribution(distribution)
    runs.append(train())
programs = [
    sent(axes, stage)
    for stage in (1, 2)
    for axes in (("model", None), (None, "model"), ("batch", "model"))
]
programs.append(sent(("batch", "model"), 1, kbt.samplers.ScalarMetric()))
print(json.dumps([runs, programs]))
