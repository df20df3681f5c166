"""Faults: each ends in a clear error or a counted skip, and the last state stays."""

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import (
    BayesTuneSGLD,
    SparseDelta,
    SparseMask,
    SparseMaskCallback,
    SparseOptimizer,
)
from keras_bayestune.callbacks.backup import Backup

ON_JAX = keras.backend.backend() == "jax"


def new_optimizer(**arguments):
    arguments = {"warmup_steps": 1, "burn_in_steps": 2, "thinning": 1, **arguments}
    return BayesTuneSGLD(1e-2, seed=0, **arguments)


def new_weights():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 6)).astype("float32")
    return [keras.Variable(v, name=n) for v, n in zip(values, "ab", strict=True)]


def new_model():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="a")])
    model.compile(new_optimizer(), loss="mse", jit_compile=False, run_eagerly=True)
    return model


def bits(variables):
    return [ops.convert_to_numpy(v).tobytes() for v in variables]


def apply(optimizer, weights, *scales):
    rng = np.random.default_rng(1)
    for scale in scales:
        gradients = [rng.normal(size=6).astype("float32") * scale for _ in weights]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], weights)


def test_gradients_that_are_all_zero():
    optimizer, weights = new_optimizer(noise_scale=0.0), new_weights()
    before = bits(weights)
    apply(optimizer, weights, 0.0, 0.0, 0.0, 0.0)
    assert bits(weights) == before
    assert (optimizer.num_updates, optimizer.skipped_steps) == (4, 0)
    with pytest.raises(ValueError, match=r"All \d+ .*scores are equal"):
        SparseMask.from_scores(optimizer.posterior_scales(), fraction=0.5)
    mask = SparseMask({"a": [1], "b": [2]}, {"a": (6,), "b": (6,)})
    sparse = SparseOptimizer(keras.optimizers.Adam(0.1), mask)
    apply(sparse, weights, 0.0)
    assert bits(weights) == before


def test_a_spike_of_the_loss_moves_no_further_than_any_update():
    moved = []
    for spike in (1.0, 1e30):
        optimizer, weights = new_optimizer(noise_scale=0.0), new_weights()
        apply(optimizer, weights, 1.0, 1.0, 1.0)
        before = [ops.convert_to_numpy(w) for w in weights]
        apply(optimizer, weights, spike)
        # Squares of 1e30 overflow: clipped in float32, such an update is skipped.
        after = [ops.convert_to_numpy(w) for w in weights]
        moved.append(np.abs(np.subtract(after, before)).max())
        assert np.isfinite(after).all()
        assert optimizer.num_updates + optimizer.skipped_steps == 4
    assert moved[1] <= moved[0] * 1.001
    assert optimizer.skipped_steps == 1


def test_a_spike_below_overflow_is_clipped():
    optimizer, weights = new_optimizer(noise_scale=0.0), new_weights()
    apply(optimizer, weights, 1.0, 1.0, 1.0, 1e9, 1.0)
    assert (optimizer.num_updates, optimizer.skipped_steps) == (5, 0)
    assert all(np.isfinite(ops.convert_to_numpy(w)).all() for w in weights)


def test_batches_of_one_and_a_data_set_of_none():
    model = new_model()
    select = SparseMaskCallback(fraction=0.2)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    model.fit(x, x @ np.ones((4, 6)), batch_size=1, verbose=0, callbacks=[select])
    assert select.metadata["samples"] == 3

    model = new_model()
    before = bits(model.trainable_variables)
    # On JAX Keras 3.15 reads a first batch before any callback is asked.
    kind = StopIteration if ON_JAX else ValueError
    message = None if ON_JAX else "for 0 updates|[Ee]mpty|num_samples=0"
    with pytest.raises(kind, match=message):
        model.fit(
            np.zeros((0, 4), "float32"),
            np.zeros((0, 6), "float32"),
            verbose=0,
            callbacks=[SparseMaskCallback(fraction=0.2)],
        )
    assert bits(model.trainable_variables) == before


@pytest.mark.parametrize("stage", [1, 2])
def test_a_variable_added_after_build(stage):
    weights = new_weights()
    if stage == 1:
        optimizer = new_optimizer()
    else:
        mask = SparseMask({"a": [1], "b": [2]}, {"a": (6,), "b": (6,)})
        optimizer = SparseOptimizer(keras.optimizers.SGD(0.1), mask)
    apply(optimizer, weights, 1.0)
    before = bits(optimizer.variables + weights)
    added = [*weights, keras.Variable(np.ones(6, "float32"), name="c")]
    with pytest.raises(ValueError, match=r"Unknown variable|unknown variable"):
        apply(optimizer, added, 1.0)
    assert bits(optimizer.variables + weights) == before
    apply(optimizer, weights, 1.0)  # and goes on


def test_weights_changed_between_the_stages():
    weights = new_weights()
    mask = SparseMask({"a": [1], "b": [2, 3]}, {"a": (6,), "b": (6,)})
    optimizer = SparseOptimizer(keras.optimizers.SGD(0.5), mask)
    optimizer.build(weights)
    for weight in weights:
        weight.assign(np.full(6, 7.0))
    optimizer.apply([ops.ones(6), ops.ones(6)], weights)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(weights[0]), [7.0, 6.5, 7.0, 7.0, 7.0, 7.0]
    )
    # A mask of another model is refused, with the names.
    with pytest.raises(ValueError, match="The mask is for another model"):
        SparseOptimizer(keras.optimizers.SGD(), mask).build(weights[:1])


def savers(folder):
    mask = SparseMask({"a/kernel": [1]}, {"a/kernel": (4, 6)})
    base, tuned = new_model(), new_model()
    tuned.trainable_variables[0].assign_add(np.ones((4, 6)))
    delta = SparseDelta.from_checkpoints(base, tuned)
    base.optimizer.build(base.trainable_variables)
    backup = Backup(folder)
    return {
        "mask": lambda: mask.save(folder / "file"),
        "delta": lambda: delta.save(folder / "file"),
        "state": lambda: backup.save(base),
    }


@pytest.mark.parametrize("kind", ["mask", "delta", "state"])
def test_a_full_disk(kind, tmp_path, monkeypatch):
    save = savers(tmp_path)[kind]
    save()
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        save()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
@pytest.mark.parametrize("kind", ["mask", "delta", "state"])
def test_a_device_without_room(kind, tmp_path, monkeypatch):
    """The kernel says ENOSPC: the new file is a link to /dev/full."""
    save = savers(tmp_path)[kind]
    save()
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def opened(name, mode="r", *rest):
        return open("/dev/full" if "x" in mode else name, mode.replace("x", "w"), *rest)

    from keras_bayestune import document_file

    monkeypatch.setattr(document_file, "open", opened, raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        save()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.fixture
def read_only():
    """A function that makes a folder read-only, and root another user until the end."""
    folder = Path(tempfile.mkdtemp())  # root's `tmp_path` nobody else may enter

    def close():
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)

    user = os.geteuid()
    yield folder, close
    os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
@pytest.mark.parametrize("kind", ["mask", "delta", "state"])
def test_a_read_only_folder(kind, read_only):
    folder, close = read_only
    save = savers(folder)[kind]
    save()
    (path,) = folder.iterdir()
    path.chmod(0o444)
    before = path.read_bytes()
    close()
    with pytest.raises(PermissionError):
        save()
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_clock_that_goes_backwards(tmp_path, monkeypatch):
    digests = []
    for now in (1e9, 1.0):
        clock = iter(np.linspace(now, now - 1e9, 100_000))
        monkeypatch.setattr(time, "time", lambda clock=clock: float(next(clock)))
        save = savers(tmp_path)["state"]
        save()
        save()
        monkeypatch.undo()
        (path,) = tmp_path.iterdir()
        optimizer, weights = new_optimizer(), new_weights()
        apply(optimizer, weights, 1.0, 1.0, 1.0)
        digests.append((path.read_bytes(), bits(optimizer.variables + weights)))
    assert digests[0] == digests[1]
