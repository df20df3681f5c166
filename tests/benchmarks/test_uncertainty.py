"""The benchmark of uncertainty: what a block keeps, and the tables."""

import keras
import numpy as np
import pytest

from benchmarks.uncertainty import chains
from benchmarks.uncertainty.kept import Kept
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
