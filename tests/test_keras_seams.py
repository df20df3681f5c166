"""What the package uses of Keras that Keras does not promise: all of it is listed here.

A new Keras that moves one of these fails this file with its name. A new use fails too,
until it stands in the list: prefer a public way, else add a line.
"""

import ast
import importlib

import keras
import numpy as np
import pytest

# Private attribute, and the Keras object that must have it: see `holders`.
ATTRIBUTES = {
    "_apply_weight_decay": "optimizer",
    "_backend_update_step": "optimizer",
    "_build_shapes_dict": "dense",
    "_check_variables_are_known": "optimizer",
    "_clip_gradients": "optimizer",
    "_compile_config": "model",
    "_compile_loss": "model",
    "_compute_loss": "model",
    "_embeddings": "embedding",
    "_exclude_from_weight_decay": "optimizer",
    "_exclude_from_weight_decay_pattern": "optimizer",
    "_flatten_layers": "model",
    "_get_variable_index": "optimizer",
    "_initial_epoch": "model",
    "_iterations": "optimizer",
    "_kernel": "dense",
    "_layout": "variable",
    "_learning_rate": "optimizer",
    "_losses_override": "model",
    "_path": "variable",
    "_post_quantize": "model",
    "_remat_mode": "dense",
    "_track_variable": "model",
    "_tracker": "model",
    "_trainable_variables": "optimizer",
    "_trainable_variables_indices": "optimizer",
    "_untrack_variable": "model",
    "_use_weight_decay": "optimizer",
    "_value": "variable",
    "_var_key": "optimizer",
    "_variables": "optimizer",
}
# The same, of one backend only.
ONLY_ON = {
    "jax": {
        "_get_jax_state": "model",
        "_jax_state": "model",
        "_jax_state_synced": "model",
    }
}
INTERNAL_IMPORTS = {
    "keras.src.backend.common.global_state.get_global_attribute",
    "keras.src.backend.common.stateless_scope.in_stateless_scope",
    "keras.src.backend.torch.core.get_device",  # only on torch
    "keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR",
    "keras.src.random.seed_generator.global_seed_generator",
}
# Names of our own, in classes that are not Keras's, which a Keras object has as well.
OWN = {"_dtype", "_layers", "_lock", "_model", "_name"}
# A `getattr` or `hasattr` with a private name hides that Keras has moved it. Keras sets
# this one at the first step only; do not add to it.
GUESSED = {"_jax_state"}


@pytest.fixture(scope="module")
def holders():
    """One object of each kind, built and used, so that it has all of its attributes."""
    embedding = keras.layers.Embedding(3, 2)
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((2,), dtype="int32"), embedding, dense])
    adam = keras.optimizers.Adam(weight_decay=0.1)
    adam.exclude_from_weight_decay(var_names=["bias"])
    model.compile(adam, loss="mse")
    model.fit(np.ones((2, 2)), np.ones((2, 2, 1)), verbose=0)
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    scaling.build(model.trainable_variables)
    return {
        "callback": keras.callbacks.Callback(),
        "dense": dense,
        "embedding": embedding,
        "loss scale": scaling,
        "metric": keras.metrics.Mean(),
        "model": model,
        "optimizer": adam,
        "seed generator": keras.random.SeedGenerator(0),
        "variable": dense.kernel,
    }


def private_names(tree):
    """Names with one leading underscore that a module reads, writes or defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.FunctionDef):
            name = node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value if node.value.isidentifier() else ""
        else:
            continue
        if name.startswith("_") and not name.startswith("__"):
            yield name


def internal_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_internal(node.module or ""):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from filter(_is_internal, names)


def _is_internal(module):
    return module == "keras.src" or module.startswith("keras.src.")


def guesses(tree):
    """Private names in a `getattr` with a default, or in a `hasattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_guess = (node.func.id, len(node.args)) in {
                ("getattr", 3),
                ("hasattr", 2),
            }
            name = getattr(node.args[1], "value", "") if is_guess else ""
            if str(name).startswith("_"):
                yield name


def _found(root, find):
    """What the files of the package hold, each with one file that holds it."""
    files = sorted((root / "keras_bayestune").rglob("*.py"))
    trees = {file.name: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    return {name: file for file, tree in trees.items() for name in find(tree)}


def _seams():
    here = ONLY_ON.get(keras.config.backend(), {})
    return {**ATTRIBUTES, **here}


def test_keras_has_every_attribute(holders):
    gone = {
        name: f"gone from {type(holders[holder]).__name__}"
        for name, holder in _seams().items()
        if name not in dir(holders[holder])
    }
    assert not gone


@pytest.mark.parametrize("path", sorted(INTERNAL_IMPORTS))
def test_keras_has_every_internal_name(path):
    module, _, name = path.rpartition(".")
    if ".torch." in module and keras.config.backend() != "torch":
        pytest.skip("imports torch's part of Keras")
    assert name in vars(importlib.import_module(module)), f"{path} is gone"


def test_every_attribute_in_use_is_listed(root, holders):
    of_keras = {name for holder in holders.values() for name in dir(holder)}
    used = _found(root, private_names)
    unlisted = of_keras - _seams().keys() - OWN
    assert not {name: file for name, file in used.items() if name in unlisted}
    everywhere = ATTRIBUTES.keys() | {n for part in ONLY_ON.values() for n in part}
    assert not (everywhere | OWN) - used.keys(), "no longer used: take it off the list"


def test_every_internal_import_is_listed(root):
    assert _found(root, internal_imports).keys() == INTERNAL_IMPORTS


def test_no_private_attribute_is_guessed(root):
    assert _found(root, guesses).keys() == GUESSED


SOURCE = """
from keras.src.backend import standardize_dtype
from keras.layers import Dense
import keras.src.tree as tree

class Mine(keras.optimizers.Adam):
    def _clip_gradients(self, grads):
        return getattr(self, "_x", None) or self._y.z, hasattr(grads, "_w"), self.__v
"""


def test_each_use_is_seen():
    tree = ast.parse(SOURCE)
    assert set(private_names(tree)) == {"_clip_gradients", "_x", "_y", "_w"}
    assert set(guesses(tree)) == {"_x", "_w"}
    names = {"keras.src.backend.standardize_dtype", "keras.src.tree"}
    assert set(internal_imports(tree)) == names
