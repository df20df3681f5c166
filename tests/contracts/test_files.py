"""What holds for every file that the package writes; a new format is a row."""

import keras
import numpy as np
import pytest

from keras_bayestune import SparseDelta, SparseMask
from keras_bayestune.uncertainty import DeltaPosterior
from tests.contracts.tiny import new_model


def new_mask():
    model = new_model()
    found = {v.path: keras.ops.convert_to_numpy(v) for v in model.trainable_variables}
    return SparseMask.from_scores(found, fraction=0.3)


def new_delta():
    base, tuned = new_model(), new_model()
    tuned.set_weights([weight + 1.0 for weight in base.get_weights()])
    return SparseDelta.from_checkpoints(base, tuned)


# What makes a value, what reads its file, and what must be equal afterwards.
FORMATS = {
    "mask": (new_mask, SparseMask.load, lambda mask: dict(mask.indices)),
    "delta": (
        new_delta,
        SparseDelta.load,
        lambda delta: [delta.count, delta.fingerprint, delta.metadata],
    ),
    "posterior": (
        lambda: DeltaPosterior([new_delta()]),
        DeltaPosterior.load,
        lambda posterior: [delta.fingerprint for delta in posterior.deltas],
    ),
}


@pytest.fixture(params=FORMATS)
def written(request, tmp_path):
    """A file, and its reader."""
    make, load, _ = FORMATS[request.param]
    path = tmp_path / "file.safetensors"
    make().save(path)
    return path, load


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_from_any_kind_of_path(name, tmp_path):
    make, load, content = FORMATS[name]
    value = make()
    for path in (str(tmp_path / "file.safetensors"), tmp_path / "other"):
        value.save(path)
        np.testing.assert_equal(content(load(path)), content(value))
    # Equal content, equal bytes: files can be compared by a digest.
    assert path.with_name("file.safetensors").read_bytes() == path.read_bytes()


def test_every_cut_and_flip_is_refused(written):
    path, load = written
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(whole), 20)
    cuts = [whole[:place] for place in places]
    flips = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    for damaged in [b"", *cuts, *flips, whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="Nothing was loaded"):
            load(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_another_kind_is_refused(name, tmp_path):
    others = [other for other in FORMATS if other != name]
    for other in others:
        FORMATS[other][0]().save(tmp_path / "other")
        with pytest.raises(
            ValueError, match=rf"{FORMATS[name][1].__self__.__name__}\.save"
        ):
            FORMATS[name][1](tmp_path / "other")
    assert others


def test_a_write_that_fails_leaves_the_old_file(written, monkeypatch):
    path, load = written
    before, value = path.read_bytes(), load(path)

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        value.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_no_file(written):
    path, load = written
    with pytest.raises(FileNotFoundError):
        load(path.with_name("gone"))
