import builtins
import os

import keras
import numpy as np
import pytest

from keras_bayestune.deltas import save_merged


def test_keras_file_and_weights(tuned, base, small, tmp_path):
    before = small.bits(base)
    save_merged(base, tuned.delta, tmp_path / "m.keras")
    save_merged(base, tuned.delta, str(tmp_path / "m.weights.h5"))
    assert small.bits(base) == before
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "m.weights.h5"]
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    # Equal weights in a rebuilt graph: outputs may differ by the order of sums only.
    assert small.bits(loaded) == small.bits(tuned.model)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), tuned.model.predict(x, verbose=0), rtol=1e-6
    )
    base.load_weights(tmp_path / "m.weights.h5")
    assert small.bits(base) == small.bits(tuned.model)


def test_a_failure_restores_the_base_and_leaves_no_file(
    tuned, base, small, tmp_path, monkeypatch
):
    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(base, "save", fail)
    before = small.bits(base)
    with pytest.raises(OSError, match="disk full"):
        save_merged(base, tuned.delta, tmp_path / "m.keras")
    assert small.bits(base) == before
    assert os.listdir(tmp_path) == []


def test_preset_folder(small, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")

    def build(seed):
        keras.utils.set_random_seed(seed)
        return keras_hub.models.BertBackbone(
            vocabulary_size=20,
            num_layers=1,
            num_heads=2,
            hidden_dim=4,
            intermediate_dim=8,
            max_sequence_length=8,
        )

    tuned = small.tune(build(0))
    base = build(0)
    before = small.bits(base)
    save_merged(base, tuned.delta, tmp_path / "preset")
    assert small.bits(base) == before
    loaded = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
    assert small.bits(loaded) == small.bits(tuned.model)
    assert os.listdir(tmp_path) == ["preset"]
    with pytest.raises(IsADirectoryError, match="not empty"):
        save_merged(base, tuned.delta, tmp_path / "preset")
    assert small.bits(base) == before


def test_no_preset_for_other_models(tuned, base, tmp_path):
    pytest.importorskip("keras_hub")
    with pytest.raises(TypeError, match="Only KerasHub.*Received: Functional.*folder"):
        save_merged(base, tuned.delta, tmp_path / "folder")


def test_keras_hub_missing(tuned, base, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_hub(name, *args, **kwargs):
        if name == "keras_hub":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    with pytest.raises(ImportError, match=r"pip install keras-hub"):
        save_merged(base, tuned.delta, tmp_path / "folder")
