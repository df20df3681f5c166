import doctest
import importlib
import pkgutil

import pytest

import keras_bayestune.deltas as deltas

MODULES = [
    *(f"deltas.{module.name}" for module in pkgutil.iter_modules(deltas.__path__)),
    "files",
    "matching",
    "paths",
    "selection.gaps",
    "updates.scatter",
]


def run(name):
    # `import_module`, because a function of the same name may hide the module.
    module = importlib.import_module(f"keras_bayestune.{name}")
    return doctest.testmod(module, optionflags=doctest.ELLIPSIS)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write a file
    assert run(name).failed == 0


@pytest.mark.parametrize("name", deltas.__all__)
def test_public_names_have_examples(name):
    if name == "Conflicts":
        return  # made by `conflicts` only
    found = doctest.DocTestFinder(recurse=False).find(getattr(deltas, name))
    assert found[0].examples
