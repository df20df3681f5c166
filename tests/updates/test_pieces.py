"""Elementwise functions of a large array, a piece at a time."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, Collapsed
from keras_bayestune.noise import Gaussian, Rademacher
from keras_bayestune.samplers import ScalarMetric
from keras_bayestune.updates import pieces
from keras_bayestune.updates.pieces import Elementwise

PIECE = 64
TORCH = keras.backend.backend() == "torch"


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize("shape", [(3,), (8, 8), (5, 13), (2, 64)])
def test_pieces_cover_every_scalar_once(monkeypatch, shape):
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    array = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    starts = []

    def function(arrays, factor, factors, start):
        assert factors is None
        (first, second), table = arrays
        starts.append(start)
        assert second is None
        size = int(np.prod(first.shape))
        place = ops.reshape(
            ops.arange(start, start + size, dtype="float32"), first.shape
        )
        return Pair(first + place, None), {"t": factor * table["t"]}

    x = ops.convert_to_tensor(array)
    (first, second), table = Elementwise(function)((Pair(x, None), {"t": x}), 2.0)
    assert second is None
    np.testing.assert_array_equal(ops.convert_to_numpy(first), 2 * array)
    np.testing.assert_array_equal(ops.convert_to_numpy(table["t"]), 2 * array)
    assert starts == (list(range(0, array.size, PIECE)) if TORCH else [0])


@pytest.mark.parametrize(
    "sampler",
    [
        Collapsed(metric=ScalarMetric(), noise=Rademacher()),
        Collapsed(metric=ScalarMetric(), noise=Gaussian()),
        Authors(),
    ],
    ids=["signs", "normal", "slots"],
)
def test_an_update_does_not_depend_on_the_pieces(monkeypatch, sampler):
    def run():
        optimizer = BayesTuneSGLD(
            0.01,
            effective_size=1000.0,
            sampler=sampler,
            warmup_steps=1,
            burn_in_steps=2,
            thinning=1,
            seed=3,
            second_moment=True,
        )
        rng = np.random.default_rng(0)
        shapes = [(150, 120), (40, 30), (70,)]  # the last two are updated as one
        weights = [
            keras.Variable(rng.normal(size=shape).astype("float32"), name=f"w{i}")
            for i, shape in enumerate(shapes)
        ]
        for _ in range(4):
            gradients = [rng.normal(size=shape).astype("float32") for shape in shapes]
            optimizer.apply([ops.convert_to_tensor(g) for g in gradients], weights)
        return [ops.convert_to_numpy(v) for v in (*weights, *optimizer.variables)]

    whole = run()
    monkeypatch.setattr(pieces, "PIECE", 1024)
    for one, other in zip(whole, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)
