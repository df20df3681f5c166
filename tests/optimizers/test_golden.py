"""The authors' mode against trajectories recorded from the published code."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, LaplacePrior
from keras_bayestune.noise import Noise
from keras_bayestune.updates import chain

FILES = ("stage1_no_noise", "stage1_noise", "stage1_warmup_paper_n")


class RecordedNoise(Noise):
    """Draws read from an array of streams, updates, scalars."""

    def __init__(self, streams):
        self.streams = ops.convert_to_tensor(streams)

    def __call__(self, keys, shape, start=0):
        stream, step = keys[0], keys[1]
        return ops.reshape(self.streams[stream, step - 1], shape)


def plain_keys(seed, step, streams):
    """In place of `stream_keys`: stream and update as they are."""
    return ops.stack([streams, ops.zeros_like(streams) + step], axis=-1)


@pytest.mark.parametrize("name", FILES)
def test_authors_mode_reproduces_the_recorded_trajectory(name, root, monkeypatch):
    monkeypatch.setattr(chain, "stream_keys", plain_keys)
    with np.load(root / "tests/fixtures/authors" / f"{name}.npz") as file:
        recorded = dict(file)
    config = json.loads(str(recorded["config"]))
    count = sum(key.startswith("theta0_") for key in recorded)
    streams = [
        np.concatenate(
            [
                recorded[f"noise_{of}_{i}"].reshape(config["steps"], -1)
                for i in range(count)
            ],
            1,
        )
        for of in ("theta", "scale")
    ]
    noise = RecordedNoise(np.stack(streams))  # small weights are one array
    optimizer = BayesTuneSGLD(
        learning_rate=config["lr"],
        effective_size=10.0 ** config["Nexp"],
        prior=LaplacePrior(config["alp"], config["bet"], config["lamb_init"]),
        sampler=Authors(config["lr_others"], noise=noise),
        noise_scale=config["nd"],
        warmup_steps=config["warmup"],
        burn_in_steps=config["warmup"],
        thinning=1,
        global_clipnorm=config["max_grad_norm"],
    )
    variables = [
        keras.Variable(recorded[f"theta0_{i}"], name=f"v{i}") for i in range(count)
    ]
    means = [np.zeros_like(recorded[f"theta0_{i}"]) for i in range(count)]
    for t in range(config["steps"]):
        gradients = [recorded[f"grad_{i}"][t] for i in range(count)]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
        for i, variable in enumerate(variables):
            expected = recorded[f"theta_{i}"][t]
            assert np.abs(ops.convert_to_numpy(variable) - expected).max() <= 1e-6
            if t >= config["warmup"]:
                means[i] = means[i] + recorded[f"scale_{i}"][t]
    assert optimizer.num_samples == config["steps"] - config["warmup"]
    for i, mean in enumerate(optimizer.posterior_scales().values()):
        expected = means[i] / optimizer.num_samples
        assert np.abs(mean - expected).max() <= 5e-6
