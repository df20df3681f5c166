"""Both stages under torch's DistributedDataParallel: `ddp_run.py RANK WORLD FILE`."""

import hashlib
import json
import sys

import keras
import numpy as np
import torch

import keras_bayestune as kbt

rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{file}", rank=rank, world_size=world
)
keras.utils.set_random_seed(1)
rng = np.random.default_rng(0)
x = rng.normal(size=(12, 8, 4)).astype("float32")
y = (x[..., :2] * x[..., 2:]).astype("float32")
x[2, 5, 0] = np.nan  # on the second process only
model = keras.Sequential(
    [
        keras.Input((4,)),
        keras.layers.Dense(6, activation="tanh", name="a"),
        keras.layers.Dense(2, name="head"),
    ]
)
parallel = torch.nn.parallel.DistributedDataParallel(model)
variables = model.trainable_variables
half = 8 // world


def train(optimizer, batches):
    for inputs, labels in batches:
        mine = slice(rank * half, (rank + 1) * half)
        model.zero_grad()
        outputs = parallel(torch.from_numpy(inputs[mine]))
        ((outputs - torch.from_numpy(labels[mine])) ** 2).mean().backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in variables], variables)


stage_1 = kbt.BayesTuneSGLD(
    1e-2, warmup_steps=2, burn_in_steps=3, thinning=1, exclude="head", seed=3
)
stage_1.build(variables)
train(stage_1, zip(x[:8], y[:8], strict=True))
scores = stage_1.posterior_scales()
always = {v.path: v.shape for v in variables if v.path in stage_1.excluded_paths()}
mask = kbt.SparseMask.from_scores(scores, fraction=0.4, always=always)
for variable in variables:
    if variable.path in stage_1.anchors():
        variable.assign(stage_1.anchors()[variable.path])
stage_2 = kbt.SparseOptimizer(keras.optimizers.AdamW(0.01), mask)
stage_2.build(variables)
train(stage_2, zip(x[8:], y[8:], strict=True))

arrays = [keras.ops.convert_to_numpy(v) for v in [*variables, *stage_2.variables]]
arrays += [keras.ops.convert_to_numpy(v) for v in stage_1.variables]
digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()
print(
    json.dumps(
        {
            "digest": digest,
            "weights": [a.tolist() for a in arrays[: len(variables)]],
            "scores": [score.tolist() for score in scores.values()],
            "mask": [found.tolist() for found in mask.indices.values()],
            "skipped": stage_1.skipped_steps,
            "samples": stage_1.num_samples,
        }
    )
)
torch.distributed.destroy_process_group()
