"""Stage 1 on two JAX processes of two devices: `jax_hosts_run.py RANK WORLD PORT`."""

import hashlib
import json
import sys

import jax
import jax.experimental.multihost_utils
import numpy as np

rank, world, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", world, rank)

import keras  # noqa: E402  (JAX must be told of the other processes first)

import keras_bayestune as kbt  # noqa: E402

keras.utils.set_random_seed(1)
devices = keras.distribution.list_devices()
mesh = keras.distribution.DeviceMesh((world, 2), ["batch", "model"], devices)
layouts = keras.distribution.LayoutMap(mesh)
layouts[".*a/kernel"] = (None, "model")
distribution = keras.distribution.ModelParallel(
    layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
)
keras.distribution.set_distribution(distribution)

rng = np.random.default_rng(0)
x = rng.normal(size=(8, 8, 4)).astype("float32")
y = (x[..., :2] * x[..., 2:]).astype("float32")
model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2)]
)
optimizer = kbt.BayesTuneSGLD(1e-2, warmup_steps=2, burn_in_steps=3, thinning=1, seed=3)
optimizer.build(model.trainable_variables)


def loss(trainable, frozen, inputs, labels):
    outputs, _ = model.stateless_call(trainable, frozen, inputs)
    return ((outputs - labels) ** 2).mean()


@jax.jit
def step(trainable, frozen, state, inputs, labels):
    gradients = jax.grad(loss)(trainable, frozen, inputs, labels)
    return optimizer.stateless_apply(state, gradients, trainable)


names = np.array(jax.devices()).reshape(world, 2)
rows = jax.sharding.NamedSharding(
    jax.sharding.Mesh(names, ("batch", "model")), jax.sharding.PartitionSpec("batch")
)


def spread(batch):
    return jax.make_array_from_callback(batch.shape, rows, lambda index: batch[index])


trainable = [v.value for v in model.trainable_variables]
frozen = [v.value for v in model.non_trainable_variables]
state = [v.value for v in optimizer.variables]
for inputs, labels in zip(x, y, strict=True):
    trainable, state = step(trainable, frozen, state, spread(inputs), spread(labels))
paths = [v.path for v in optimizer.variables]
means = [s for s, p in zip(state, paths, strict=True) if p.endswith("scale_mean")]
arrays = [
    np.asarray(jax.experimental.multihost_utils.process_allgather(a, tiled=True))
    for a in [*trainable, *means]
]
print(
    json.dumps(
        {
            "digest": hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest(),
            "processes": jax.process_count(),
            "devices": len(jax.devices()),
            "sharded": not means[0].sharding.is_fully_replicated,
            "arrays": [a.tolist() for a in arrays],
        }
    )
)
