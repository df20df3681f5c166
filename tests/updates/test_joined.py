"""Several small tensors as one."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, Collapsed, JointLangevin, LaplacePrior
from keras_bayestune.noise import Gaussian, Noise, Rademacher
from keras_bayestune.optimizers import weight_group
from keras_bayestune.samplers import TensorMetric
from keras_bayestune.updates.joined import joined, separated
from keras_bayestune.updates.sampled import Moments

SHAPES = [(2, 3), (), (4,)]


def _arrays():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for shape in SHAPES]


def test_separated_undoes_joined():
    arrays = _arrays()
    trees = [Moments(ops.convert_to_tensor(a), None) for a in arrays]
    together = joined(trees)
    assert together.mean.shape == (11,)
    for array, tree in zip(arrays, separated(together, SHAPES), strict=True):
        assert tree.second_moment is None
        np.testing.assert_array_equal(ops.convert_to_numpy(tree.mean), array)


def test_one_tensor_keeps_its_shape():
    tree = Moments(ops.ones((2, 3)), None)
    assert joined([tree]) is tree
    assert separated(tree, [(2, 3)])[0] is tree


class LinearNoise(Noise):
    """A noise of somebody else's, which draws for one variable at a time."""

    def __call__(self, seed, step, stream, shape, start=0):
        size = int(np.prod(shape))
        return ops.reshape(
            ops.sin(ops.arange(start, start + size, dtype="float32") + stream), shape
        )


@pytest.mark.parametrize(
    "noise",
    [Rademacher(), Gaussian(), LinearNoise()],
    ids=["Rademacher", "Gaussian", "LinearNoise"],
)
@pytest.mark.parametrize(
    ("sampler", "weight_decay"), [(Collapsed, None), (JointLangevin, 0.1)]
)
def test_joined_weights_move_as_single_ones(monkeypatch, noise, sampler, weight_decay):
    """With a metric and a decay that differ between weights, and with their noise."""

    def run():
        optimizer = BayesTuneSGLD(
            0.01,
            effective_size=300.0,
            sampler=sampler(metric=TensorMetric(), noise=noise),
            prior=LaplacePrior(0.5, 20.0),
            noise_scale=0.7,
            warmup_steps=1,
            burn_in_steps=2,
            thinning=1,
            exclude=["head"],
            seed=0,
            second_moment=True,
            weight_decay=weight_decay,
        )
        rng = np.random.default_rng(1)
        names = ["kernel", "scale", "bias", "head"]
        weights = [
            keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
            for name, shape in zip(names, [*SHAPES, (5,)], strict=True)
        ]
        if weight_decay:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        for _ in range(4):
            gradients = [rng.normal(size=w.shape).astype("float32") for w in weights]
            optimizer.apply([ops.convert_to_tensor(g) for g in gradients], weights)
        values = [*weights, *optimizer.variables]
        return [ops.convert_to_numpy(v) for v in values]

    together = run()
    monkeypatch.setattr(weight_group, "SMALL", 0)
    for one, other in zip(together, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
