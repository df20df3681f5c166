import json

import numpy as np
import pytest
import safetensors.numpy

from keras_bayestune.uncertainty import DeltaPosterior

X = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")


@pytest.fixture
def posterior(make_tuned):
    tuned = make_tuned(count=2)
    noise = {
        path: np.full(len(stored.values), 0.2, "float32")
        for path, stored in tuned.deltas[0].variables.items()
    }
    return tuned.model, DeltaPosterior(
        tuned.deltas, [noise, {}], temperature=1.3, metadata={"task": "x"}
    )


def test_what_is_saved_comes_back(posterior, tmp_path):
    model, saved = posterior
    saved.save(tmp_path / "p.safetensors")
    loaded = DeltaPosterior.load(tmp_path / "p.safetensors")
    assert loaded.temperature == 1.3 and loaded.metadata == {"task": "x"}
    assert loaded.outputs == "logits" and loaded.noise_variance == 0.0
    assert saved.sample(4, seed=2) == loaded.sample(4, seed=2)
    np.testing.assert_array_equal(
        saved.predict(model, X, verbose=0).mean,
        loaded.predict(model, X, verbose=0).mean,
    )
    assert (tmp_path / "p.safetensors").stat().st_size == saved.nbytes
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_regression_and_a_point_come_back(make_tuned, tmp_path):
    tuned = make_tuned(count=1)
    point = DeltaPosterior(tuned.deltas, outputs="values", noise_variance=0.5)
    point.save(tmp_path / "p")
    loaded = DeltaPosterior.load(tmp_path / "p")
    assert (loaded.outputs, loaded.noise_variance) == ("values", 0.5)
    assert loaded.deltas == point.deltas and loaded.deviations == ({},)


def test_every_flipped_byte_is_found(posterior, tmp_path):
    data = bytearray(_bytes(posterior, tmp_path))
    places = {*range(0, len(data), 61), len(data) - 1, 8, 9}
    for place in places:
        data[place] ^= 1
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(ValueError, match="damaged|not a posterior|version"):
            DeltaPosterior.load(tmp_path / "p")
        data[place] ^= 1


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_damaged(posterior, tmp_path, kept):
    data = _bytes(posterior, tmp_path)
    (tmp_path / "p").write_bytes(data[:kept])
    with pytest.raises(ValueError, match="damaged"):
        DeltaPosterior.load(tmp_path / "p")


def test_other_files_are_refused(posterior, tmp_path):
    posterior[1].deltas[0].save(tmp_path / "delta")
    with pytest.raises(ValueError, match="not a posterior file"):
        DeltaPosterior.load(tmp_path / "delta")
    (tmp_path / "text").write_bytes(b"hello, this is a text")
    with pytest.raises(ValueError, match="damaged"):
        DeltaPosterior.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        DeltaPosterior.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2.*Update"),
        ({"format": "other"}, "not a posterior file"),
        ({"sha256": "0"}, "no digest"),
    ],
)
def test_headers_that_lie(tmp_path, change, message):
    document = {"format": "keras_bayestune.posterior", "version": 1, **change}
    data = safetensors.numpy.save(
        {"delta.0": np.zeros(3, "uint8")}, {"keras_bayestune": json.dumps(document)}
    )
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        DeltaPosterior.load(tmp_path / "p")


def test_metadata_must_be_json(make_tuned, tmp_path):
    posterior = DeltaPosterior(make_tuned().deltas, metadata={"x": object()})
    with pytest.raises(ValueError, match="must be JSON"):
        posterior.save(tmp_path / "p")


def _bytes(posterior, tmp_path):
    posterior[1].save(tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()
