"""Elementwise functions of a large array, a piece at a time."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, Collapsed
from keras_bayestune.noise import Gaussian, Rademacher
from keras_bayestune.samplers import ScalarMetric
from keras_bayestune.updates import elementwise as module
from keras_bayestune.updates.elementwise import elementwise

PIECE = 64
TORCH = keras.backend.backend() == "torch"


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize("shape", [(3,), (8, 8), (5, 13), (2, 64)])
def test_pieces_cover_every_scalar_once(monkeypatch, shape):
    monkeypatch.setattr(module, "PIECE", PIECE)
    array = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    starts = []

    def function(own, other, factors, start):
        assert factors == ()
        first, second = own["pair"]
        assert second is None
        starts.append(start)
        size = int(np.prod(first.shape))
        place = ops.reshape(
            ops.arange(start, start + size, dtype="float32"), first.shape
        )
        return {"pair": Pair(first + place, None), "t": 2.0 * other["t"] + own["t"]}

    x, y, z = (ops.convert_to_tensor(array.copy()) for _ in range(3))
    found = elementwise(function, {"pair": Pair(x, None), "t": z}, {"t": y})
    (first, second), t = found["pair"], found["t"]
    assert second is None
    np.testing.assert_array_equal(ops.convert_to_numpy(first), 2 * array)
    np.testing.assert_array_equal(ops.convert_to_numpy(t), 3 * array)
    np.testing.assert_array_equal(ops.convert_to_numpy(y), array)
    assert starts == (list(range(0, array.size, PIECE)) if TORCH else [0])


def test_factors_of_rows_and_columns(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 640)
    rng = np.random.default_rng(0)
    shape = (9, 11, 10)
    array, row, column = (
        rng.normal(size=s).astype("float32") for s in (shape, (9, 11, 1), (1, 1, 10))
    )
    starts = []

    def function(own, other, factors, start):
        starts.append(start)
        return own * factors[0] * factors[1] + other

    # As a layer's backward pass may leave it: not in one row.
    strange = np.ascontiguousarray(array.T).T
    found = elementwise(
        function,
        ops.convert_to_tensor(array.copy()),
        ops.convert_to_tensor(strange),
        (ops.convert_to_tensor(row), ops.convert_to_tensor(column)),
    )
    expected = array * row * column + array
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)
    assert starts == ([0, 640] if TORCH else [0])


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
    monkeypatch.setattr(module, "PIECE", 1024)
    for one, other in zip(whole, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)
