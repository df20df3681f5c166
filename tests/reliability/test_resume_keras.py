"""Resuming through Keras's own files: the run is the one that was never interrupted.

After 3 batches the chain is in warm-up, after 6 in burn-in, after 12 between two
samples, after 15 at the switch, after 18 in stage 2.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback, SparseOptimizer
from keras_bayestune.optimizers import unscaled

JIT = keras.backend.backend() == "jax"
EPOCHS = 7
MOMENTS = {1: "warm-up", 2: "burn-in", 4: "between samples", 5: "switch", 6: "stage 2"}


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        raise KeyboardInterrupt


def new_model(dtype=None):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="tanh", name="a", dtype=dtype)(inputs)
    hidden = keras.layers.BatchNormalization(name="norm", dtype=dtype)(hidden)
    hidden = keras.layers.Dropout(0.3, dtype=dtype)(hidden)
    hidden = keras.layers.GaussianDropout(0.1, seed=4, dtype=dtype)(hidden)
    outputs = keras.layers.Dense(2, name="head", dtype=dtype)(hidden)
    model = keras.Model(inputs, outputs)
    optimizer = BayesTuneSGLD(
        keras.optimizers.schedules.CosineDecay(1e-2, 30),
        warmup_steps=4,
        burn_in_steps=7,
        thinning=3,
        exclude="head",
        seed=3,
    )
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=64.0, dynamic_growth_steps=4
        )
    model.compile(optimizer, loss="mse", jit_compile=JIT)
    return model


def new_select(**arguments):
    arguments = {"selection_epochs": 5, "trace_scalars": 3, **arguments}
    return SparseMaskCallback(
        fraction=0.3,
        finetune_optimizer=keras.optimizers.AdamW(0.01, use_ema=True),
        **arguments,
    )


def fit(model, callbacks, **arguments):
    # Other processes do not have the generators where this one has left them.
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    arguments = {"epochs": EPOCHS, "batch_size": 4, "shuffle": False, **arguments}
    return model.fit(x, y, verbose=0, callbacks=callbacks, **arguments)


def bits(arrays):
    return [ops.convert_to_numpy(array).tobytes() for array in arrays]


def outcome(model, select):
    """Everything that two equal runs have in common, by name."""
    return {
        "variables": bits([*model.variables, *model.optimizer.variables]),
        "scores": dict(zip(select.scores, bits(select.scores.values()), strict=True)),
        "anchors": dict(
            zip(select.anchors, bits(select.anchors.values()), strict=True)
        ),
        "mask": select.mask,
        "trace": select.trace.tobytes(),
        "samples": select.metadata["samples"],
    }


def assert_equal(found, expected):
    for name, value in expected.items():
        assert found[name] == value, name


def left_alone(**arguments):
    model, select = new_model(), new_select(**arguments)
    fit(model, [select])
    return outcome(model, select)


def in_order(select, other, select_first):
    return [select, other] if select_first else [other, select]


def check_checkpoints(folder, epochs, select_first):
    """Every checkpoint of one run goes on to the end of that run."""
    model, select = new_model(), new_select()
    save = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
    fit(model, in_order(select, save, select_first))
    expected = outcome(model, select)
    for epoch in epochs:
        loaded = keras.saving.load_model(folder / f"{epoch}.keras")
        again = new_select()
        fit(loaded, [again], initial_epoch=epoch)
        assert_equal(outcome(loaded, again), expected)


def check_backups(folder, epochs, select_first):
    expected = left_alone()
    for epoch in epochs:

        def callbacks(select, epoch=epoch):
            backup = keras.callbacks.BackupAndRestore(folder / str(epoch))
            return in_order(select, backup, select_first)

        with pytest.raises(KeyboardInterrupt):
            fit(new_model(), [*callbacks(new_select()), Interrupt(epoch)])
        model, select = new_model(), new_select()
        history = fit(model, callbacks(select))
        assert len(history.epoch) == EPOCHS - epoch
        assert_equal(outcome(model, select), expected)


def test_a_checkpoint_from_the_switch(tmp_path):
    check_checkpoints(tmp_path, [5], select_first=False)


def test_a_backup_from_stage_two(tmp_path):
    check_backups(tmp_path, [6], select_first=True)


@pytest.mark.long
@pytest.mark.parametrize("select_first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("check", [check_checkpoints, check_backups])
def test_every_moment(tmp_path, check, select_first):
    check(tmp_path, MOMENTS, select_first)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="tf.data keeps its generator"
)
@pytest.mark.parametrize("how", ["backup_dir", "BackupAndRestore", "ModelCheckpoint"])
def test_the_order_of_shuffled_arrays_goes_on(tmp_path, how):
    model, expected = new_model(), new_select()
    fit(model, [expected], shuffle=True)
    other = new_select()
    fit(new_model(), [other], shuffle=False)
    assert any((other.scores[p] != s).any() for p, s in expected.scores.items())

    def callbacks():
        if how == "backup_dir":
            return [new_select(backup_dir=tmp_path / "state")]
        if how == "BackupAndRestore":
            return [new_select(), keras.callbacks.BackupAndRestore(tmp_path / "k")]
        path = tmp_path / "{epoch}.keras"
        return [new_select(), keras.callbacks.ModelCheckpoint(path)]

    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [*callbacks(), Interrupt(3)], shuffle=True)
    again, (select, *others) = new_model(), callbacks()
    if how == "ModelCheckpoint":
        again, others = keras.saving.load_model(tmp_path / "3.keras"), []
    first = 3 if how == "ModelCheckpoint" else 0
    fit(again, [select, *others], shuffle=True, initial_epoch=first)
    assert_equal(outcome(again, select), outcome(model, expected))


@pytest.mark.long
def test_saved_after_fit(tmp_path):
    """A `fit` that ended by itself in stage 2, and then a second one."""
    model, select = new_model(), new_select()
    fit(model, [select], epochs=6)
    model.save(tmp_path / "model.keras")
    loaded, again = keras.saving.load_model(tmp_path / "model.keras"), new_select()
    document, _ = loaded.optimizer.run.loaded
    assert document["result"]["scores"] is None  # twice the size of the model
    loaded.save(tmp_path / "again.keras")  # with what was loaded
    loaded = keras.saving.load_model(tmp_path / "again.keras")
    assert loaded.optimizer.run.loaded[0] == document
    states = []
    for each, callback in ((model, select), (loaded, again)):
        keras.utils.set_random_seed(5)
        fit(each, [callback], initial_epoch=6)
        states.append(bits([*each.variables, *each.optimizer.variables]))
    assert states[0] == states[1]
    assert again.mask == select.mask
    with pytest.raises(ValueError, match="not hold scores and anchors"):
        _ = again.scores


@pytest.mark.filterwarnings("ignore:The loss never fell")  # the schedule is over
def test_a_finished_chain_is_gone_on_with(tmp_path):
    """A `fit` of stage 1 alone that ended, saved, and a second one."""
    model = new_model()
    first = SparseMaskCallback(fraction=0.3, selection_steps=15)
    fit(model, [first], epochs=5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    second = SparseMaskCallback(fraction=0.3, selection_steps=15)
    fit(loaded, [second], epochs=5)
    assert (first.metadata["samples"], second.metadata["samples"]) == (2, 7)


@pytest.mark.long
def test_loss_scaling_goes_on(tmp_path):
    """The factor, the steps since it grew, and both stages in mixed precision."""

    def callbacks(select):
        return [select, keras.callbacks.BackupAndRestore(tmp_path)]

    model, expected = new_model("mixed_float16"), new_select()
    fit(model, [expected])
    with pytest.raises(KeyboardInterrupt):
        fit(new_model("mixed_float16"), [*callbacks(new_select()), Interrupt(6)])
    again, select = new_model("mixed_float16"), new_select()
    # The wrapper's own words about the stage 2 state; the callback then loads it.
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        fit(again, callbacks(select))
    assert float(ops.convert_to_numpy(again.optimizer.dynamic_scale)) > 64.0
    assert_equal(outcome(again, select), outcome(model, expected))


def test_a_state_of_stage_two_needs_the_callback(tmp_path):
    model, select = new_model(), new_select()
    fit(model, [select], epochs=6)
    model.save_weights(tmp_path / "stage-2.weights.h5")
    check_damaged_states(model, tmp_path / "stage-2.weights.h5")
    other = new_model()
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match="does not belong to this BayesTuneSGLD"):
        other.load_weights(tmp_path / "stage-2.weights.h5")
    only_mask = SparseMaskCallback(fraction=0.3)
    only_mask.set_model(other)
    with pytest.raises(ValueError, match="does not belong to this BayesTuneSGLD"):
        other.load_weights(tmp_path / "stage-2.weights.h5")


@pytest.mark.parametrize("steps", [4, 5])
def test_a_state_from_amid_an_epoch_is_reported(tmp_path, steps):
    """Keras begins the epoch anew, so some batches are seen twice."""
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=steps)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [new_select(), backup, save, Interrupt(2)])
    model = new_model()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b")
    expected = rf"after {steps - 3} batches of epoch 1 \(from 0\), .* of epoch 1:"
    with pytest.warns(UserWarning, match=expected), pytest.raises(KeyboardInterrupt):
        fit(model, [new_select(), backup, Stop()])
    # Or `initial_epoch` was forgotten.
    loaded = keras.saving.load_model(tmp_path / "2.keras")
    expected = "first batch of epoch 0: the run is not"
    with pytest.warns(UserWarning, match=expected), pytest.raises(KeyboardInterrupt):
        fit(loaded, [new_select(), Stop()])


def check_damaged_states(model, path):
    optimizer = unscaled(model.optimizer)
    assert isinstance(optimizer, SparseOptimizer)
    model.load_weights(path)
    document, arrays = optimizer.run.loaded
    broken = [
        ({**document, "batches": None}, arrays, "'batches' in its document is not of"),
        ({**document, "random": [1]}, arrays, "something else in the place of an"),
        ({**document, "generators": []}, arrays, "random generators of shapes"),
        (document, {}, "does not fit together"),
    ]
    for damaged, left, message in broken:
        optimizer.run.loaded = (damaged, left)
        with pytest.raises(ValueError, match=message):
            fit(model, [new_select()])


@pytest.mark.long
def test_moments_are_what_they_are_called():
    model, phases = new_model(), []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: phases.append(
            getattr(unscaled(model.optimizer), "phase", "stage 2")
        )
    )
    fit(model, [watch, new_select()])
    expected = ["warm-up", "burn-in", "sampling", "sampling", "sampling"]
    assert phases == [*expected, "stage 2", "stage 2"]
