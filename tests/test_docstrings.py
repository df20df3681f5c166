"""Every public name explains itself with an example, and every example runs."""

import doctest
import importlib
import pkgutil
import re
import types

import keras
import numpy as np
import pytest

import keras_bayestune

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["keras_bayestune"] + [
    module.name
    for module in pkgutil.walk_packages(keras_bayestune.__path__, "keras_bayestune.")
]
# Results that a user does not make; the examples of what makes them show them.
RESULTS = {
    "keras_bayestune.deltas.Conflicts",
    "keras_bayestune.uncertainty.Prediction",
}


def _public(module):
    """Dotted name and object of all that a package makes public."""
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            yield from _public(value)
        elif callable(value):
            yield f"{module.__name__}.{name}", value


def _examples(name, value, names):
    """The examples of a module and of all that it defines, or of one object.

    An example may use keras, np, the public names and what its own module defines; all
    else it has to import, so that a reader can paste it.
    """
    known = {"keras": keras, "np": np, **names}
    found = doctest.DocTestFinder().find(value, name, globs=known)
    return [test for test in found if test.examples]


def _examples_of_module(name):
    # `import_module`, because a function of the same name may hide the module.
    module = importlib.import_module(name)
    package = importlib.import_module(name.rpartition(".")[0] or name)
    names = {
        public: getattr(source, public)
        for source in (keras_bayestune, package)
        for public in getattr(source, "__all__", ())
    }
    own = {own: value for own, value in vars(module).items() if _defined(value, name)}
    return _examples(name, module, {**names, **own})


def _defined(value, module):
    is_definition = isinstance(value, (type, types.FunctionType))
    return is_definition and value.__module__ == module


TESTS = {test.name: test for name in MODULES for test in _examples_of_module(name)}
PUBLIC = dict(_public(keras_bayestune))


def _run(test):
    report = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    return runner.run(test, out=report.append).failed, "".join(report)


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - RESULTS))
def test_every_public_name_has_an_example(name):
    value = PUBLIC[name]
    assert value.__doc__, f"{name} has no docstring"
    where = f"{value.__module__}.{value.__qualname__}"
    assert where in TESTS, f"{name} has no example (a line that starts with >>>)"


@pytest.mark.parametrize("name", TESTS)
def test_every_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write a file
    failed, report = _run(TESTS[name])
    assert failed == 0, report


def test_no_example_escapes(root):
    files = (root / "keras_bayestune").rglob("*.py")
    written = sum(file.read_text(encoding="utf-8").count(">>> ") for file in files)
    assert sum(len(test.examples) for test in TESTS.values()) == written


def test_sections_have_the_headings_that_renderers_know(root):
    """As Google's guide names them, with every text indented under its heading."""
    wrong = re.compile(
        r"^ *Example:$|^( *)(?:Args|Returns|Raises|Examples):\n+\1\S", re.M
    )
    files = (root / "keras_bayestune").rglob("*.py")
    found = {file.name: wrong.search(file.read_text("utf-8")) for file in files}
    assert not {name: match[0] for name, match in found.items() if match}


def test_a_wrong_example_fails():
    def example():
        """Add.

        >>> 1 + 1
        3
        """

    (test,) = _examples("example", example, {})
    failed, report = _run(test)
    assert failed == 1
    assert "Expected:\n    3\nGot:\n    2" in report
