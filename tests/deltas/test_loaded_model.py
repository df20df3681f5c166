import keras
import pytest

from keras_bayestune.deltas import SparseDelta
from keras_bayestune.matching import match_paths


def test_model_from_a_keras_file(tuned, base, small, tmp_path):
    """Keras drops the name of a nested Sequential when it loads the model."""
    base.save(tmp_path / "base.keras")
    loaded = keras.saving.load_model(tmp_path / "base.keras")
    assert "sequential" in base.weights[6].path
    assert "sequential" not in loaded.weights[6].path
    before = small.bits(loaded)
    tuned.delta.apply(loaded)
    assert small.bits(loaded) == small.bits(tuned.model)
    tuned.delta.revert(loaded)
    assert small.bits(loaded) == before
    again = small.tune(loaded).delta
    assert again.fingerprint == tuned.delta.fingerprint
    (tuned.delta + again).apply(small.build())
    assert SparseDelta.from_checkpoints(base, tmp_path / "base.keras").count == 0


def test_the_values_of_the_base_are_still_checked(tuned, small, tmp_path):
    small.build(seed=9).save(tmp_path / "other.keras")
    loaded = keras.saving.load_model(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="is not the base"):
        tuned.delta.apply(loaded)


@pytest.mark.parametrize(
    "present",
    [
        {"dense/bias": (3,), "dense/kernel": (3, 3)},
        {"dense/kernel": (3, 4), "dense/bias": (3,)},
        {"conv/kernel": (3, 3), "conv/bias": (3,)},
        {"dense/kernel": (3, 3)},
        {"dense/kernel": (3, 3), "dense/bias": (3,), "dense/scale": (3,)},
    ],
    ids=["order", "shape", "layer", "fewer", "more"],
)
def test_not_in_order(present):
    saved = {"x/dense_4/kernel": (3, 3), "y/dense_4/bias": (3,)}
    match_paths(saved, {"dense/kernel": (3, 3), "dense/bias": (3,)})
    with pytest.raises(ValueError, match="do not match"):
        match_paths(saved, present)
