"""A run that goes on from a file is the run that was never interrupted."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback, SparseOptimizer

JIT = keras.backend.backend() == "jax"
BATCHES = 3


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def new_model(width=5, **arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    # Functional: a loaded Sequential model has other paths.
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(width, activation="tanh", name="a")(inputs)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))
    arguments = {"warmup_steps": 1, "burn_in_steps": 2, "thinning": 2, **arguments}
    optimizer = BayesTuneSGLD(1e-2, exclude="head", seed=3, **arguments)
    model.compile(optimizer, loss="mse", jit_compile=JIT)
    return model


def new_select(**arguments):
    arguments = {"selection_epochs": 3, **arguments}
    return SparseMaskCallback(
        fraction=0.3, finetune_optimizer=keras.optimizers.AdamW(0.01), **arguments
    )


def fit(model, callbacks, **arguments):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES * 4, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    arguments = {"epochs": 4, "batch_size": 4, "shuffle": False, **arguments}
    return model.fit(x, y, verbose=0, callbacks=callbacks, **arguments)


def bits(variables):
    return [ops.convert_to_numpy(v).tobytes() for v in variables]


def state(model):
    return bits([*model.variables, *model.optimizer.variables])


def test_from_a_checkpoint_of_the_whole_model(tmp_path):
    model, select = new_model(), new_select()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, [select, save])
    # In the middle of stage 1: the anchors, those of batch normalisation too, are
    # the pre-trained values.
    loaded, again = keras.saving.load_model(tmp_path / "2.keras"), new_select()
    assert loaded.optimizer.phase == "sampling"
    fit(loaded, [again], initial_epoch=2)
    assert state(loaded) == state(model)
    assert again.mask == select.mask
    assert again.anchors.keys() == select.anchors.keys()
    for path, anchor in select.anchors.items():
        assert again.anchors[path].tobytes() == anchor.tobytes(), path
    assert (again.anchors["norm/moving_mean"] == 0).all()
    # At the switch.
    loaded = keras.saving.load_model(tmp_path / "3.keras")
    assert isinstance(loaded.optimizer, SparseOptimizer)
    fit(loaded, [], initial_epoch=3)
    assert state(loaded) == state(model)


def test_keras_backups_across_the_switch(tmp_path):
    def callbacks():
        select = new_select(
            selection_epochs=None, selection_steps=7, backup_dir=tmp_path / "state"
        )
        return select, keras.callbacks.BackupAndRestore(tmp_path / "keras")

    model = new_model()
    expected = new_select(selection_epochs=None, selection_steps=7)
    fit(model, [expected])
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [*callbacks(), Interrupt(2)])
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [*callbacks(), Interrupt(3)])  # in stage 2
    again = new_model()
    select, backup = callbacks()
    history = fit(again, [select, backup])
    assert history.history["stage"] == [2]
    assert state(again) == state(model)
    assert select.mask == expected.mask
    assert select.metadata["samples"] == expected.metadata["samples"]
    assert list(tmp_path.iterdir()) == []  # both clear up


def test_a_backup_of_another_run_is_refused(tmp_path):
    folder = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [new_select(backup_dir=folder), Interrupt(1)])
    kept = (folder / "state.safetensors").read_bytes()
    for model, message in [
        (new_model(width=6), r"a/kernel is float32 \(4, 5\) there"),
        (new_model(second_moment=True), "14 variables instead of 15"),
    ]:
        before = bits(model.variables)
        with pytest.raises(ValueError, match=message):
            fit(model, [new_select(backup_dir=folder)])
        assert bits(model.variables) == before
    model = new_model()
    (folder / "state.safetensors").write_bytes(kept[:-1])
    with pytest.raises(ValueError, match="is not a usable state file"):
        fit(model, [new_select(backup_dir=folder)])


def test_names_that_are_numbered_anew_are_explained(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [new_select(backup_dir=tmp_path / "s"), Interrupt(1)])
    copy = new_model()
    copy.get_layer("a").kernel._path = "a_1/kernel"
    with pytest.raises(ValueError, match=r"keras.utils.clear_session\(\) before"):
        fit(copy, [new_select(backup_dir=tmp_path / "s")])


def test_a_backup_of_stage_one_needs_a_callback_in_stage_one(tmp_path):
    model, select = new_model(), new_select(backup_dir=tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        fit(model, [select, Interrupt(2)], epochs=4)
    stage_one = (tmp_path / "s" / "state.safetensors").read_bytes()
    fit(model, [select])
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "state.safetensors").write_bytes(stage_one)
    with pytest.raises(ValueError, match="does not belong to this SparseOptimizer"):
        fit(model, [select])
