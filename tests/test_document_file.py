"""The file that all formats share: what comes back, and what is refused."""

import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from keras_bayestune import document_file
from keras_bayestune.document_file import Format

FORMAT = Format("thing", 1, "Thing.save", {"epoch": int, "names": list})
DOCUMENT = {"epoch": 3, "names": ["ä", "0" * 64]}
ARRAYS = {
    "e": np.array([True, False]),
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.array(7, "int32"),
    "c": np.zeros((0, 4), "float16"),
    "d": np.array([0.1, -2.0], ml_dtypes.bfloat16),
    "f": np.arange(3.0)[::-1].astype(">f8"),
}
REFUSED = r"thing' is not a usable thing file\..*Nothing was loaded\. Copy it or save"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "thing"
    document_file.write(path, FORMAT, DOCUMENT, ARRAYS)
    return path


def read(path):
    return document_file.read(path, FORMAT, lambda document, arrays: (document, arrays))


def refused(path, data, message=REFUSED):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(path)


def with_header(header, body=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + body


def test_round_trip(path):
    document, arrays = read(path)
    assert document == DOCUMENT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(arrays[name], array)
    with pytest.raises(ValueError, match="It has no array 'x'"):
        arrays["x"]


def test_other_readers_of_safetensors_read_it(path):
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "keras_bayestune.thing"
        np.testing.assert_array_equal(file.get_tensor("a"), ARRAYS["a"])


def test_equal_content_gives_equal_bytes(path):
    again = path.with_name("again")
    document_file.write(again, FORMAT, DOCUMENT, ARRAYS)
    assert again.read_bytes() == path.read_bytes()
    size = sum(map(len, document_file.pieces(FORMAT, DOCUMENT, ARRAYS)))
    assert size == path.stat().st_size


def test_every_flipped_bit_and_every_cut_is_found(path):
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        refused(path, changed)
    for length in [*range(10), *rng.integers(0, len(data), 50), len(data) - 1]:
        refused(path, data[:length])
    refused(path, data + b"\0")


def edited(data, **changes):
    """The file with another entry `a`, its digest not yet right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"].update(changes)
    return with_header(header, data[8 + length :])


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
        ({}, "Its digest does not match"),  # blanks in the header
    ],
)
def test_sizes_are_bounded_before_anything_is_allocated(path, changes, message):
    refused(path, edited(path.read_bytes(), **changes), message)


OURS = {"format": "keras_bayestune.thing", "version": "1"}
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header is longer than the file"),
        (b"\x80\x04\x95", "header is longer than the file"),  # a pickle
        (b"PK\x03\x04" + bytes(50), "header is longer than the file"),
        ((2**63).to_bytes(8, "little") + b"{}", "header is longer than the file"),
        ((10**8 + 1).to_bytes(8, "little") + b"{}", "header is longer than the file"),
        (with_header(b"[]"), "header is not an object"),
        (with_header(b"\xff\xfe"), "not a usable thing file"),
        (with_header(DEEP.encode()), "RecursionError"),
        (with_header({}), "format is None, not keras_bayestune.thing, which Thing.sav"),
        (with_header({"__metadata__": 1}), "format is None"),
        (with_header({"__metadata__": {"format": "pt"}}), "format is pt, not"),
        (with_header({"__metadata__": OURS | {"version": "2"}}), "version is 2, and"),
        (with_header({"__metadata__": OURS | {"version": None}}), "version is None"),
        (with_header({"__metadata__": OURS}), "has no document"),
        (with_header({"__metadata__": OURS | {"document": DEEP}}), "RecursionError"),
        (with_header({"__metadata__": OURS | {"document": "\udc00"}}), "not a usable"),
        (with_header({"__metadata__": OURS | {"document": "[]"}}), "must have"),
        (
            with_header({"__metadata__": OURS | {"document": '{"epoch":1}'}}),
            "must have",
        ),
    ],
)
def test_other_files(tmp_path, data, message):
    refused(tmp_path / "thing", data, message)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (DOCUMENT | {"more": 1}, r"must have \['epoch', 'names'\], nothing else"),
        (DOCUMENT | {"names": "x"}, "'names' in its document is not of its type"),
    ],
)
def test_fields_that_are_not_of_the_format(path, document, message):
    document_file.write(path, FORMAT, document, {})
    with pytest.raises(ValueError, match=message):
        read(path)


def test_what_the_builder_finds(path):
    for error in (KeyError("x"), TypeError("x"), OverflowError("x"), ValueError("x")):

        def build(*_, error=error):
            raise error

        with pytest.raises(ValueError, match=REFUSED) as found:
            document_file.read(path, FORMAT, build)
        assert found.value.__cause__ is error


def test_a_folder_and_no_file(tmp_path):
    with pytest.raises(ValueError, match="It is a folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_what_a_file_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="which a file cannot hold"):
        document_file.write(
            tmp_path / "x", FORMAT, {}, {"a": np.zeros(2, ml_dtypes.float8_e4m3fn)}
        )
    with pytest.raises(ValueError, match="must be JSON"):
        document_file.write(tmp_path / "x", FORMAT, {"a": object()}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(path, monkeypatch, failing):
    before = path.read_bytes()

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(document_file.hashlib, "sha256", full)
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        document_file.write(path, FORMAT, DOCUMENT, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
