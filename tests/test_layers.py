"""Imports go down only, and the other rules of the house that a parser can check."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

PACKAGE = "keras_bayestune"

# A new file or folder directly under the package needs a line here.
LAYERS = {
    "__main__": 4,
    "inspection": 4,
    "_fine_tune": 4,
    "chains": 4,
    "_sweep": 4,
    "_switch": 4,
    "sweep_result": 4,
    "rehearsal": 4,
    "default_selector": 4,
    "callbacks": 4,
    "optimizers": 3,
    "uncertainty": 3,
    "selectors": 2,
    "deltas": 2,
    "plots": 2,
    "diagnostics": 2,
    "updates": 1,
    "priors": 0,
    "samplers": 0,
    "noise": 0,
    "budgets": 0,
    "masks": 0,
    "selection": 0,
    "knee": 0,
    "arguments": 0,
    "matching": 0,
    "paths": 0,
    "tasks": 0,
    "files": 0,
    "document_file": 0,
    "_version": 0,
}
PUBLIC = 5  # the package itself, whose __init__ gathers the public names

BACKENDS = {"tensorflow", "jax", "jaxlib", "torch"}
# Files that write the backend's name down, as data; they never branch on it.
NOTE_THE_BACKEND = {f"{PACKAGE}/deltas/file.py"}
ASKS = "asks for the backend's name"
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "misc"}
MOST_LINES = 300
REASON = f"# Over {MOST_LINES} lines: "


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks a rule, for the text of every file by its path."""
    found = []
    units: dict[str, set[str]] = {}
    for path, source in sources.items():
        tree = ast.parse(source, path)
        imported = list(_imports(tree, path))
        found += _names_and_length(path, source)
        found += (f"{path}:{line}: {text}" for line, text in _layers(path, imported))
        found += (f"{path}:{line}: {text}" for line, text in _usage(tree, imported))
        found += (f"{path}:{line}: {text}" for line, text in _hidden(path, imported))
        if _unit(path) != "updates":
            found += (
                f"{path}:{line}: {text}, which only updates/ may do"
                for line, text in _backend(tree, imported)
                if not (text == ASKS and path in NOTE_THE_BACKEND)
            )
        inside = {_unit(name) for _, name in imported if _is_own(name)}
        units.setdefault(_unit(path), set()).update(inside - {_unit(path), PACKAGE})
    try:
        TopologicalSorter(units).prepare()
    except CycleError as error:
        found.append(f"{PACKAGE}: circular imports: {' <- '.join(error.args[1])}")
    return found


def _imports(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import, inside functions too."""
    here = path.removesuffix(".py").split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            base += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.Call) and node.args:
            name = node.args[0]
            if _dotted(node.func).endswith(("import_module", "__import__")):
                yield node.lineno, getattr(name, "value", "a computed name")


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; what it starts from may be any expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_own(name: str) -> bool:
    return name.split(".")[0] == PACKAGE


def _unit(name: str) -> str:
    """The file or folder directly under the package that a path or name lies in."""
    parts = name.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else PACKAGE


def _layer(name: str) -> int:
    return LAYERS.get(_unit(name), PUBLIC)


def _names_and_length(path: str, source: str) -> Iterator[str]:
    parts = path.removesuffix(".py").split("/")
    if parts[1] != "__init__" and parts[1] not in LAYERS:
        yield f"{path}: {parts[1]!r} is in no layer: add it to LAYERS in this test"
    if EMPTY_NAMES & {part.strip("_").lower() for part in parts}:
        yield f"{path}: a name that says nothing: name the file after what it holds"
    lines = len(source.splitlines())
    if lines > MOST_LINES and not source.startswith(REASON):
        yield f"{path}: {lines} lines: split it, or start it with {REASON + '...'!r}"


def _layers(path: str, imported: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for line, name in imported:
        if _is_own(name) and _layer(name) > _layer(path):
            yield line, f"upward: {_layer(path)} imports {name} of layer {_layer(name)}"


def _hidden(path: str, imported: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for line, name in imported:
        *_, own = parts = name.split(".")
        if path.endswith("__init__.py") and parts[-2:] == [own, own]:
            yield line, f"{own} hides the module of its name: call that _{own}.py"


def _usage(tree: ast.AST, imported: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for line, name in imported:
        if name.split(".")[0] in PICKLES:
            yield line, f"imports {name}: a file must never run code"
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield node.lineno, "allow_pickle: a file must never run code"
        if isinstance(node, ast.Name) and node.id == "hasattr":
            yield node.lineno, "hasattr: ask for a type, or pass an object"


def _backend(
    tree: ast.AST, imported: list[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    for line, name in imported:
        if name.split(".")[0] in BACKENDS:
            yield line, f"imports {name}"
        if name.endswith((".config.backend", ".backend.backend")):
            yield line, f"imports {name}, the backend's name"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if _dotted(node).endswith(("config.backend", "backend.backend")):
                yield node.lineno, ASKS
        elif isinstance(node, ast.Constant) and node.value == "KERAS_BACKEND":
            yield node.lineno, "reads KERAS_BACKEND"


def test_the_package_keeps_the_rules(root):
    paths = sorted((root / PACKAGE).rglob("*.py"))
    sources = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in paths
    }
    assert len(sources) > 10
    found = violations(sources)
    assert not found, "\n".join(found)


DOWNWARD = {
    "__init__.py": "from keras_bayestune._fine_tune import fine_tune",
    "_fine_tune.py": "from keras_bayestune.callbacks import x\nimport numpy, keras",
    "callbacks/__init__.py": "from .sparse_mask import x",
    "callbacks/sparse_mask.py": "from ..optimizers.sgld import y\nfrom .. import masks",
    "optimizers/sgld.py": "def f():\n  from keras_bayestune.updates import z",
    "updates/step.py": "import torch\nif keras.config.backend() == 'torch': pass",
    "deltas/file.py": "row = {'backend': keras.config.backend()}",
    "plots/mask.py": "from .axes import a\nimport keras_bayestune.masks as m",
    "plots/axes.py": "def f():\n  import matplotlib",
    "masks.py": "from keras_bayestune.paths import p\nx = keras.backend.floatx()",
    "paths.py": f"{REASON}one table.\n" + "x = 1\n" * 400,
}


def test_downward_imports_pass():
    sources = {f"{PACKAGE}/{path}": text for path, text in DOWNWARD.items()}
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("masks.py", "import keras_bayestune.deltas", "layer 2"),
        ("masks.py", "import keras_bayestune", "layer 5"),
        ("masks.py", "from keras_bayestune import SparseMask", "layer 5"),
        ("masks.py", "from . import SparseMask", "layer 5"),
        ("masks.py", "from .updates.step import x", "layer 1"),
        ("priors/laplace.py", "from ..updates import x", "layer 1"),
        ("priors/__init__.py", "from ..updates import x", "layer 1"),
        ("priors/laplace.py", "def f():\n  from .. import updates", "layer 1"),
        ("updates/step.py", "from keras_bayestune.optimizers import x", "layer 3"),
        ("plots/mask.py", "from keras_bayestune.optimizers import x", "layer 3"),
        ("optimizers/sgld.py", "import keras_bayestune.callbacks.x", "layer 4"),
        ("callbacks/x.py", "from keras_bayestune import __version__", "layer 5"),
        ("masks.py", "importlib.import_module('keras_bayestune.deltas')", "layer 2"),
        ("masks/__init__.py", "from ..paths import paths", "call that _paths.py"),
        ("masks.py", "import jax.numpy as jnp", "imports jax.numpy"),
        ("masks.py", "def f():\n  from torch import nn", "imports torch.nn"),
        ("plots/mask.py", "import_module('tensorflow')", "imports tensorflow"),
        ("deltas/file.py", "import torch", "imports torch"),
        ("masks.py", "a = keras.backend.backend()", "asks for the backend"),
        ("masks.py", "a = keras.config.backend() == 'jax'", "asks for the backend"),
        ("masks.py", "from keras import backend\nbackend.backend()", "asks for the"),
        ("masks.py", "from keras.config import backend as b", "imports keras.config"),
        ("masks.py", "os.environ['KERAS_BACKEND']", "reads KERAS_BACKEND"),
        ("surprise.py", "", "'surprise' is in no layer"),
        ("surprise/x.py", "", "'surprise' is in no layer"),
        ("plots/utils.py", "", "says nothing"),
        ("plots/_helpers.py", "", "says nothing"),
        ("plots/misc/axes.py", "", "says nothing"),
        ("files.py", "import pickle", "never run code"),
        ("files.py", "def f():\n  from pickle import loads", "never run code"),
        ("files.py", "numpy.load(path, allow_pickle=True)", "never run code"),
        ("files.py", "if hasattr(x, 'y'): pass", "hasattr"),
        ("files.py", "x = 1\n" * (MOST_LINES + 1), "301 lines"),
        ("files.py", "# A comment.\n" * (MOST_LINES + 1), "301 lines"),
    ],
)
def test_what_breaks_a_rule_is_found(path, source, message):
    found = violations({f"{PACKAGE}/{path}": source})
    assert len(found) == 1, found
    assert message in found[0]


def test_the_longest_file_passes():
    assert violations({f"{PACKAGE}/files.py": "x = 1\n" * MOST_LINES}) == []


def test_two_folders_of_one_layer_do_not_import_each_other():
    found = violations(
        {
            f"{PACKAGE}/plots/mask.py": "from keras_bayestune.deltas import x",
            f"{PACKAGE}/deltas/file.py": "from keras_bayestune.plots import y",
        }
    )
    assert len(found) == 1
    assert "circular imports" in found[0]
