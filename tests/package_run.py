"""What a built sdist and wheel must hold: `python tests/package_run.py DIST`."""

import pathlib
import sys
import tarfile
import zipfile

SDIST = {
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs/index.md",
    "examples/README.md",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/fixtures/authors/stage1_noise.npz",
    "tox.ini",
    "toxfile.py",
}
WHEEL = {"keras_bayestune/__init__.py", "keras_bayestune/py.typed"}


def check(folder: pathlib.Path) -> None:
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert not SDIST - names, f"{sdist.name} lacks {sorted(SDIST - names)}"
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert not WHEEL - names, f"{wheel.name} lacks {sorted(WHEEL - names)}"
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    others = {name.split("/")[0] for name in names}
    assert len(others) == 2, f"{wheel.name} installs {sorted(others)}"


if __name__ == "__main__":
    check(pathlib.Path(sys.argv[1]))
