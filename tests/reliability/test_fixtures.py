"""Files that earlier versions wrote load; `tests/fixtures/make.py` wrote them."""

import importlib.util
import shutil

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import SparseDelta, SparseMask, SparseOptimizer


@pytest.fixture(params=["0.1"])
def folder(request, root):
    return root / "tests" / "fixtures" / request.param


@pytest.fixture(scope="module")
def make(root):
    path = root / "tests" / "fixtures" / "make.py"
    spec = importlib.util.spec_from_file_location("make_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mask_and_delta(folder, make):
    mask = SparseMask.load(folder / "mask.safetensors")
    assert mask.always == ("head/kernel", "head/bias")
    assert mask.count == int(0.3 * 35) + 12
    delta = SparseDelta.load(folder / "delta.safetensors")
    model = make.new_model()
    before = [ops.convert_to_numpy(v).tobytes() for v in model.variables]
    delta.apply(model)
    assert [ops.convert_to_numpy(v).tobytes() for v in model.variables] != before
    delta.revert(model)
    assert [ops.convert_to_numpy(v).tobytes() for v in model.variables] == before


def test_optimizer_states(folder, make):
    model = make.new_model()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "stage-1.weights.h5")
    assert (model.optimizer.num_updates, model.optimizer.num_samples) == (8, 2)
    assert len(model.optimizer.non_trainable_anchors) == 2
    scales = model.optimizer.posterior_scales().values()
    assert all(np.isfinite(scale).all() for scale in scales)

    mask = SparseMask.load(folder / "mask.safetensors")
    model = make.new_model()
    model.compile(SparseOptimizer(keras.optimizers.Adam(0.01), mask), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "stage-2.weights.h5")
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 8


def test_the_state_of_a_run(folder, make, tmp_path):
    shutil.copy(folder / "state.safetensors", tmp_path)
    model, select = make.new_model(), make.new_select(tmp_path)
    history = make.fit(model, [select])
    assert history.history["stage"] == [2]
    assert select.mask == SparseMask.load(folder / "mask.safetensors")


def test_the_state_that_an_optimizer_carries(folder, make):
    """As BackupAndRestore loads it: a stage-2 state into a model of stage 1."""
    model, select = make.new_model(), make.new_select()
    model.optimizer.build(model.trainable_variables)
    select.set_model(model)
    model.load_weights(folder / "run.weights.h5")
    history = make.fit(model, [select], initial_epoch=3)
    assert history.history["stage"] == [2]
    # Chosen with later noise than the file beside it.
    assert select.mask.count == SparseMask.load(folder / "mask.safetensors").count
    assert select.mask.always == ("head/kernel", "head/bias")
    assert select.scores.keys() == {"a/kernel", "a/bias", "norm/gamma", "norm/beta"}
