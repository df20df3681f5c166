import os
import stat

import pytest

from keras_bayestune import files


def write(path, data):
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "mask.bin"
    write(path, b"first")
    write(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["mask.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "mask.bin"
    write(path, b"first")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["mask.bin"]


def test_synced_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))
    )
    write(tmp_path / "mask.bin", b"x")
    assert calls == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes and links")
def test_mode_follows_the_umask_and_links_are_followed(tmp_path):
    old = os.umask(0o022)
    try:
        write(tmp_path / "real.bin", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "real.bin").stat().st_mode) == 0o644
    link = tmp_path / "link.bin"
    link.symlink_to("real.bin")
    write(link, b"y")
    assert link.is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"y"


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder of `path` does not exist"):
        write(tmp_path / "no" / "a", b"")
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "preset"
    path.mkdir()  # an empty one may be there
    with files.replacing(path) as temporary:
        (temporary / "assets").mkdir(parents=True)
        (temporary / "assets" / "vocabulary.txt").write_text("a")
        assert os.listdir(path) == []
    assert (path / "assets" / "vocabulary.txt").read_text() == "a"
    assert os.listdir(tmp_path) == ["preset"]
    with (
        pytest.raises(IsADirectoryError, match="not empty"),
        files.replacing(path) as temporary,
    ):
        temporary.mkdir()
    assert os.listdir(tmp_path) == ["preset"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError, match="stop"),
        files.replacing(tmp_path / "preset") as temporary,
    ):
        (temporary / "assets").mkdir(parents=True)
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == []


def test_suffix(tmp_path):
    with files.replacing(tmp_path / "m.weights.h5", ".weights.h5") as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path) == ["m.weights.h5"]
