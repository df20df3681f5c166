"""Atomic writes: a reader sees the old file or the new one, never a part."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


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
