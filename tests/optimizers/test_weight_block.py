"""Small weights are updated as one array, and as they would be alone."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import (
    Authors,
    BayesTuneSGLD,
    Collapsed,
    JointLangevin,
    LaplacePrior,
)
from keras_bayestune.noise import Noise
from keras_bayestune.optimizers import weight_block
from keras_bayestune.samplers import IdentityMetric, ScalarMetric, TensorMetric

SHAPES = [(2, 3), (), (4,)]


class LinearNoise(Noise):
    """A noise of somebody else's."""

    def __call__(self, keys, shape, start=0):
        size = int(np.prod(shape))
        place = ops.arange(start, start + size, dtype="float32")
        return ops.reshape(ops.sin(place), shape)


NAMES = ["kernel", "scale", "bias", "head"]


def run(noise_scale=0.7, missing=(), metric=None, decay=None, updates=4, **arguments):
    """Values and scales after a few updates; `missing` get no gradient in the last."""
    optimizer = BayesTuneSGLD(
        0.01,
        effective_size=300.0,
        prior=LaplacePrior(0.5, 20.0),
        noise_scale=noise_scale,
        warmup_steps=1,
        burn_in_steps=1,
        thinning=1,
        exclude=["head"],
        seed=0,
        second_moment=True,
        weight_decay=decay,
        **arguments,
    )
    rng = np.random.default_rng(1)
    weights = [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for name, shape in zip(NAMES, [*SHAPES, (5,)], strict=True)
    ]
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(weights)
    for update in range(updates):
        gradients = [
            (i, ops.convert_to_tensor(rng.normal(size=w.shape).astype("float32")))
            for i, w in enumerate(weights)
        ]
        if update == updates - 1:
            gradients = [g for g in gradients if NAMES[g[0]] not in missing]
        optimizer.apply([g for _, g in gradients], [weights[i] for i, _ in gradients])
    values = {w.path: ops.convert_to_numpy(w) for w in weights}
    scales = optimizer.posterior_scales()
    moments = optimizer.posterior_second_moments()
    assert list(scales) == list(moments) == list(optimizer.anchors()) == NAMES[:3]
    return values, scales, moments, optimizer


SAMPLERS = [Collapsed(), JointLangevin(), Authors(), Collapsed(ScalarMetric())]
BY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)


@BY_SAMPLER
@pytest.mark.parametrize("decay", [None, 0.1])
def test_small_weights_move_as_they_would_alone(monkeypatch, sampler, decay):
    """Noise apart, which is drawn for the whole array."""
    arguments = {"sampler": sampler, "noise_scale": 0.0, "decay": decay}
    *together, optimizer = run(**arguments)
    blocks = {block.place.indices for block in optimizer._blocks}
    assert blocks == ({(0, 1), (2,), (3,)} if decay else {(0, 1, 2), (3,)})
    monkeypatch.setattr(weight_block, "SMALL", 0)
    *alone, optimizer = run(**arguments)
    assert len(optimizer._blocks) == 4
    for one, other in zip(together, alone, strict=True):
        for path, value in one.items():
            np.testing.assert_allclose(value, other[path], rtol=1e-5, atol=1e-7)


@BY_SAMPLER
def test_a_weight_without_a_gradient_stays_and_the_others_do_not_notice(sampler):
    """Of the noise, which has a place for each scalar."""
    # Without clipping and with a step size that does not follow the gradient.
    metric = None if isinstance(sampler, Authors) else IdentityMetric()
    if metric:
        sampler = type(sampler)(metric=metric)
    arguments = {"sampler": sampler, "global_clipnorm": None}
    before, every, some = (
        run(updates=3, **arguments),
        run(**arguments),
        run(missing=["kernel", "bias"], **arguments),
    )
    for kind in range(3):
        for path, value in some[kind].items():
            expected = (before if path in ("kernel", "bias") else every)[kind][path]
            np.testing.assert_array_equal(value, expected)


def test_a_noise_of_somebody_elses():
    sampler = JointLangevin(metric=IdentityMetric(), noise=LinearNoise())
    quiet, loud = (
        run(noise_scale=scale, sampler=sampler, updates=2)[0] for scale in (0.0, 1.0)
    )
    moved = np.concatenate([(loud[n] - quiet[n]).ravel() for n in NAMES[:3]])
    expected = np.sqrt(2 * 0.01 / 300.0) * np.sin(np.arange(11.0))
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6)


def test_a_step_size_per_tensor_keeps_weights_apart():
    *_, optimizer = run(sampler=Collapsed(TensorMetric()))
    assert [block.place.indices for block in optimizer._blocks] == [
        (0,),
        (1,),
        (2,),
        (3,),
    ]
    assert tuple(optimizer._chain.mean_square.shape) == (3,)
