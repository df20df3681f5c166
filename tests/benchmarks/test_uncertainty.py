"""The benchmark of uncertainty: what a block keeps, and the tables."""

import keras
import numpy as np
import pytest

from benchmarks.quality import photographs
from benchmarks.transfer.network import Network
from benchmarks.uncertainty import chains
from benchmarks.uncertainty.kept import Kept
from benchmarks.uncertainty.suites import Flowers
from keras_bayestune import SparseDelta

BLOCK = {"task": "trec", "seed": 0, "fraction": 0.005}


def delta():
    layers = [
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(2)
    ]
    return SparseDelta.from_checkpoints(*layers)


@pytest.mark.parametrize(
    ("kind", "arguments", "made"),
    [
        ("scores", (), {"body/kernel": np.arange(3.0)}),
        ("records", ("point",), [{"NLL": 0.25}]),
        ("delta", (7,), None),
    ],
)
def test_each_thing_is_made_once(tmp_path, kind, arguments, made):
    calls = []

    def make():
        calls.append(kind)
        return delta() if made is None else made

    def cut():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        getattr(Kept(tmp_path, BLOCK), kind)(*arguments, cut)
    found = [getattr(Kept(tmp_path, BLOCK), kind)(*arguments, make) for _ in range(2)]
    assert calls == [kind]
    if kind == "delta":
        assert found[0].fingerprint == found[1].fingerprint
    else:
        np.testing.assert_equal(found, [made, made])
    other = {**BLOCK, "seed": 1}
    getattr(Kept(tmp_path, other), kind)(*arguments, make)
    getattr(Kept(None, BLOCK), kind)(*arguments, make)
    assert len(calls) == 3


def test_choices_are_compared_block_by_block():
    records = [
        {
            "figures": {
                chains.ONE: [accuracy, 0.5],
                chains.MEAN: [accuracy + gain, 0.4],
                chains.LONG: [accuracy, 0.5],
            },
            "chains": {"R-hat, largest": 1.5},
        }
        for accuracy, gain in ((0.5, 0.01), (0.9, 0.03))
    ]
    lines = chains.markdown(records).splitlines()
    assert lines[0] == "2 blocks."
    # Two blocks of 1 and 3 points: mean 2, standard error 1.
    assert f"| {chains.MEAN} | 72.00 (+2 +- 1) | 0.4000 (-0.1 +- 0) |" in lines
    assert lines[-1] == "| R-hat, largest | 1.50 |"


def images(rows, size, rng):
    return rng.integers(0, 256, (rows, size, size, 3)).astype("uint8")


@pytest.fixture
def flowers(monkeypatch):
    """The suite with a network of one layer and few images."""
    rng = np.random.default_rng(0)
    parts = [(images(8, 6, rng), np.arange(8) % 3) for _ in range(3)]
    signs = images(8, 4, rng), np.zeros(8)

    class Small:
        def __init__(self, prepared, name, *rows):
            pixels = keras.Input((6, 6, 3), dtype="uint8")
            x = keras.layers.GlobalAveragePooling2D()(
                keras.layers.Rescaling(1 / 255)(pixels)
            )
            outputs = keras.layers.Dense(3, name="logits")(x)
            self.network = Network(keras.Model(pixels, outputs), "a loss")
            self.train, self.validation, self.test = parts
            if name == "gtsrb":
                self.test = signs

        metrics = None

        def start(self, seed):
            head = np.arange(12.0) + seed
            return [head[:9].reshape(3, 3), head[9:]]

    monkeypatch.setattr(photographs, "Task", Small)
    return Flowers(None)


def test_flowers_start_with_a_head_and_an_order_of_their_own(flowers):
    one, two = (flowers.problem("flowers", seed, "always") for seed in (0, 1))
    kernel, bias = two.weights[-2:]
    np.testing.assert_array_equal(kernel, 1 + np.arange(9.0).reshape(3, 3))
    np.testing.assert_array_equal(bias, [10, 11, 12])
    assert not np.array_equal(one.train[0], two.train[0])
    for x, y in (one.train, two.train):
        assert sorted(y) == sorted(np.arange(8) % 3)
        for image, label in zip(x, y, strict=True):
            known = flowers.task("flowers")[0].train[0]
            place = [np.array_equal(image, other) for other in known].index(True)
            assert label == place % 3


def test_flowers_under_shift_are_images_as_before(flowers):
    test = flowers.problem("flowers", 0, "always").test
    for x, y in flowers.shifts("flowers", test).values():
        assert x.dtype == np.uint8 and x.shape == test[0].shape
        np.testing.assert_array_equal(y, test[1])
        assert 0 < np.abs(x.astype(float) - test[0]).mean() < 100
    others = flowers.out_of_distribution("flowers", test)
    assert others.dtype == np.uint8 and others.shape == test[0].shape
