"""Atomic writes: a reader sees the old file or the new one, never a part."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    The bytes go to a new file in the same folder, reach the disk (`fsync`), and
    take the name `path` in one step (`os.replace`). If anything fails before that
    step, an existing file at `path` keeps its content and the new file is removed.
    A symbolic link is followed: its target is replaced, not the link.

    Args:
        path: Where to write. Its folder must exist.
        data: The whole content.

    Raises:
        TypeError: `data` is not bytes.
        FileNotFoundError: The folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.

    Examples:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_atomic(folder / "mask.bin", b"abc")
        >>> (folder / "mask.bin").read_bytes()
        b'abc'
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"`data` must be bytes. Received: {type(data).__name__}. "
            "Encode text first, e.g. `text.encode()`."
        )
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"`path` is a folder: {os.fspath(path)}. Give the name of a file in it."
        )
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], suffix: str = "") -> Iterator[pathlib.Path]:
    """Give a name to write at, and make it appear whole as `path` at the end.

    The block writes a file or a folder at `temporary`, in the folder of `path`. At its
    end that reaches the disk (`fsync`) and takes the name `path` in one step. If
    anything fails, it is removed and whatever was at `path` stays. A symbolic link is
    followed.

    Args:
        path: The final name. Its folder must exist; a folder at `path` must be empty.
        suffix: How `temporary` ends, for writers that look at the name.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        IsADirectoryError: `path` is a folder, and not an empty one.

    Examples:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with replacing(folder / "notes.txt", suffix=".txt") as temporary:
        ...     temporary.write_text("abc")
        3
        >>> [path.name for path in folder.iterdir()]
        ['notes.txt']
    """
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of `path` does not exist: {target.parent}. Create it first."
        )
    if target.is_dir() and any(target.iterdir()):
        raise IsADirectoryError(
            f"`path` is a folder that is not empty: {target}. Give a name that is free."
        )
    # Not from `tempfile`, whose files are private to the owner (mode 0600): the user's
    # umask decides, as for any other saved file.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{suffix}")
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
        os.replace(temporary, target)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
        raise
