"""The state file: what is refused, and that a failed write leaves the old one."""

import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest

from keras_bayestune.callbacks import state_file
from keras_bayestune.callbacks.state_file import StateFile

ARRAYS = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.array(7, "int32"),
    "c": np.zeros((0, 4), "float16"),
    "d": np.array([0.1, -2.0], ml_dtypes.bfloat16),
    "e": np.array([True, False]),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.safetensors"
    state_file.write(path, {"epoch": 3, "names": ["ä", "0" * 64]}, ARRAYS.items())
    return path


def test_round_trip(path):
    file = StateFile(path)
    assert file.document == {"epoch": 3, "names": ["ä", "0" * 64]}
    assert list(file.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        found = file.read(name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_other_readers_of_safetensors_read_it(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "keras_bayestune.state"
        np.testing.assert_array_equal(file.get_tensor("a"), ARRAYS["a"])


def test_every_flipped_bit_and_every_cut_is_found(path):
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*range(16), *rng.integers(0, len(data), 300)]:
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is no usable state file"):
            StateFile(path)
    for length in [*range(10), *rng.integers(0, len(data), 50), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="is no usable state file"):
            StateFile(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="is no usable state file"):
        StateFile(path)


def edited(data, **changes):
    """The file with another entry `a`, its checksum not yet right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"].update(changes)
    header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [1 << 62, 1 << 62]}, "does not fit the file"),
        ({"shape": [-1]}, "does not fit the file"),
        ({"shape": [True]}, "does not fit the file"),
        ({"shape": [2] * 33}, "are unknown"),
        ({"shape": "x"}, "are unknown"),
        ({"dtype": "F128"}, "are unknown"),
        ({"dtype": 1}, "is not one of an array"),
        ({"shape": [3, 3]}, "does not lie where it should"),
        ({"data_offsets": [0, 1 << 60]}, "does not lie where it should"),
    ],
)
def test_sizes_are_bounded_before_anything_is_allocated(path, changes, message):
    path.write_bytes(edited(path.read_bytes(), **changes))
    with pytest.raises(ValueError, match=message):
        StateFile(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not an object"),
        (b"{}", "no metadata"),
        (b'{"__metadata__": {"format": "pt"}}', "Its format is not"),
        (
            b'{"__metadata__": {"format": "keras_bayestune.state", "version": "2"}}',
            "Its version is 2",
        ),
        (b"[" * 100_000, "no usable state file"),
        (b"\xff\xfe", "no usable state file"),
    ],
)
def test_other_files(tmp_path, header, message):
    path = tmp_path / "x"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=message):
        StateFile(path)


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which a state file cannot hold"):
        state_file.write(
            tmp_path / "x", {}, [("a", np.zeros(2, ml_dtypes.float8_e4m3fn))]
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_state(path, monkeypatch, failing):
    before = path.read_bytes()

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(state_file.hashlib, "sha256", full)
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        state_file.write(path, {}, ARRAYS.items())
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert StateFile(path).document["epoch"] == 3
