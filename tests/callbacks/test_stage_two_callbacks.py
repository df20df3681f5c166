"""Callbacks that hear of stage 2 only, and those that hear of both."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from keras.optimizers import SGD, Adam

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback, SparseOptimizer

BATCH, BATCHES = 4, 6
WARNING = "will see the metrics of stage 1"


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES * BATCH, 4)).astype("float32")
    return x, (x[:, :2] * x[:, 2:]).astype("float32")


def new_model():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="tanh", name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))
    optimizer = BayesTuneSGLD(
        1e-2, warmup_steps=2, burn_in_steps=3, thinning=1, exclude="head", seed=3
    )
    model.compile(optimizer, loss="mse")
    return model


def new_select(*callbacks, **arguments):
    arguments = {"selection_epochs": 2, **arguments}
    return SparseMaskCallback(
        fraction=0.3,
        finetune_optimizer=arguments.pop("finetune_optimizer", Adam(0.01)),
        stage_2_callbacks=callbacks,
        **arguments,
    )


def fit(model, callbacks, **arguments):
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(*data(), callbacks=callbacks, **arguments).history


def arrays(model):
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in model.variables}


def assert_sparse(model, pretrained, mask):
    """Nothing outside the mask has moved, and something inside has."""
    moved = False
    for path, indices in mask.indices.items():
        old, new = pretrained[path].reshape(-1), arrays(model)[path].reshape(-1)
        rest = np.delete(new, indices)
        assert rest.tobytes() == np.delete(old, indices).tobytes(), path
        moved |= path not in mask.always and (new != old).any()
    assert moved


class Log(keras.callbacks.Callback):
    """Every hook that is called, with the epoch or batch and the keys of the logs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def add(self, hook, *arguments):
        *place, logs = arguments
        self.calls.append((hook, *place, *sorted(logs or {})))


for _name in (
    f"on_{part}_{end}"
    for part in ("train", "epoch", "train_batch", "test", "test_batch")
    for end in ("begin", "end")
):

    def _hook(self, *arguments, _name=_name, **named):
        self.add(_name, *arguments, *named.values())

    setattr(Log, _name, _hook)


@pytest.mark.parametrize(
    "end", [{"selection_epochs": 2}, {"selection_steps": 9}], ids=["epochs", "steps"]
)
def test_they_hear_of_every_epoch_of_stage_two_and_of_nothing_before(end):
    log, everything = Log(), Log()
    select = new_select(log, **{"selection_epochs": None, **end})
    fit(new_model(), [select, everything], epochs=4, validation_data=data())
    begin = everything.calls.index(("on_epoch_begin", 2))
    assert log.calls == [("on_train_begin",), *everything.calls[begin:]]
    assert log.model is everything.model
    assert log.params == everything.params
    end = next(call for call in log.calls if call[0] == "on_epoch_end")
    assert set(end[2:]) >= {"loss", "val_loss", "stage", "samples"}


@pytest.mark.parametrize("restored", [True, False])
def test_early_stopping_counts_and_keeps_stage_two_only(restored):
    # Nothing is as good as `samples` of the first epoch, in which there are 3.
    stop = EarlyStopping(
        "samples", mode="min", patience=2, restore_best_weights=restored
    )
    model = new_model()
    pretrained, seen = arrays(model), {}
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.update({epoch: arrays(model)})
    )
    select = new_select(stop)
    history = fit(model, [select, keep], epochs=9)
    assert history["stage"] == [1, 1, 2, 2, 2]
    assert (stop.stopped_epoch, stop.best_epoch) == (4, 2)
    for path, value in arrays(model).items():
        expected = seen[2 if restored else 4][path]
        assert value.tobytes() == expected.tobytes()
    assert_sparse(model, pretrained, select.mask)


def test_checkpoints_and_the_rate_are_of_stage_two(tmp_path):
    save = ModelCheckpoint(
        tmp_path / "{epoch}.keras",
        "loss",
        save_best_only=True,
        initial_value_threshold=9,
    )
    slow = ReduceLROnPlateau("samples", mode="min", patience=2, min_delta=0, factor=0.5)
    model, select = new_model(), new_select(save, slow, finetune_optimizer=SGD(0.01))
    pretrained = arrays(model)
    history = fit(model, [select], epochs=6)
    assert history["stage"] == [1, 1, 2, 2, 2, 2]
    rates = history["learning_rate"]  # logged in stage 2 only
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.01, 0.005])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "3.keras"
    for name in names:
        loaded = keras.saving.load_model(tmp_path / name)
        assert isinstance(loaded.optimizer, SparseOptimizer)
        assert_sparse(loaded, pretrained, select.mask)


def test_they_begin_anew_with_another_fit_of_stage_two():
    log = Log()
    model, select = new_model(), new_select(log)
    fit(model, [select], epochs=3)
    del log.calls[:]
    fit(model, [select], epochs=1)
    hooks = [call[0] for call in log.calls if "batch" not in call[0]]
    assert hooks == ["on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end"]


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["backup_dir", "BackupAndRestore"])
def test_they_begin_anew_in_a_run_that_is_resumed(tmp_path, how):
    def callbacks(log):
        if how == "backup_dir":
            return [new_select(log, backup_dir=tmp_path / "state")]
        return [new_select(log), keras.callbacks.BackupAndRestore(tmp_path / "keras")]

    model, expected = new_model(), new_select()
    fit(model, [expected], epochs=5)
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [*callbacks(Log()), Interrupt()], epochs=5)
    again, log = new_model(), Log()
    assert fit(again, callbacks(log), epochs=5)["stage"] == [2, 2]
    calls = [call[:2] for call in log.calls if "batch" not in call[0]]
    assert calls[:2] == [("on_train_begin",), ("on_epoch_begin", 3)]
    assert calls[-2][:2] == ("on_epoch_end", 4)
    assert calls[-1][0] == "on_train_end"
    for path, value in arrays(model).items():
        assert arrays(again)[path].tobytes() == value.tobytes()


@pytest.mark.parametrize("select_first", [True, False])
@pytest.mark.parametrize(
    "end", [{"selection_epochs": 2}, {"selection_steps": 9}], ids=["epochs", "steps"]
)
def test_early_stopping_beside_it_ends_with_weights_of_stage_two(end, select_first):
    # The metric of the first epoch is never reached again.
    grow = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(grown=epoch)
    )
    stop = EarlyStopping("grown", mode="min", patience=9, restore_best_weights=True)
    model, select = new_model(), new_select(**{"selection_epochs": None, **end})
    pretrained = arrays(model)
    callbacks = [select, stop] if select_first else [stop, select]
    with pytest.warns(UserWarning, match=f"EarlyStopping {WARNING}"):
        fit(model, [grow, *callbacks], epochs=4)
    assert stop.best_epoch == 2
    assert_sparse(model, pretrained, select.mask)


@pytest.mark.parametrize("select_first", [True, False])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_fit_that_is_stopped_in_stage_one_ends_with_pretrained_weights(
    select_first, epoch
):
    """In the last epoch of stage 1, too."""
    stop = EarlyStopping(
        "loss", min_delta=9.0, patience=epoch, restore_best_weights=True
    )
    model, select = new_model(), new_select(selection_epochs=3)
    pretrained = arrays(model)
    callbacks = [select, stop] if select_first else [stop, select]
    message = (
        rf"`fit` ended in epoch {epoch + 1}, because a callback stopped it, and stage "
        rf"2 never began \(planned: selection_epochs=3\). The mask comes from "
        rf"{6 * (epoch + 1) - 3} samples, the weights are the pre-trained ones. "
        r".*stage_2_callbacks"
    )
    with (
        pytest.warns(UserWarning, match=WARNING),
        pytest.warns(UserWarning, match=message),
    ):
        history = fit(model, callbacks, epochs=9)
    assert history["stage"] == [1] * (epoch + 1)
    for path, anchor in select.anchors.items():
        assert arrays(model)[path].tobytes() == anchor.tobytes()
        assert anchor.tobytes() == pretrained[path].tobytes()
    # Its own advice.
    assert fit(model, [select], epochs=1)["stage"] == [2]
    assert_sparse(model, pretrained, select.mask)


def test_stage_one_alone_that_is_stopped_says_so():
    model, select = new_model(), SparseMaskCallback(fraction=0.3)
    stop = EarlyStopping("loss", min_delta=9.0, patience=1, restore_best_weights=True)
    pretrained = arrays(model)
    message = r"stage 1 was cut \(planned: all epochs\). The mask comes from 9 samples"
    with pytest.warns(UserWarning, match=message):
        fit(model, [select, stop], epochs=5)
    for path in select.anchors:
        assert arrays(model)[path].tobytes() == pretrained[path].tobytes()


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping("loss", patience=9),
        ModelCheckpoint("x.keras", save_best_only=True),
        ReduceLROnPlateau("loss", patience=9),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_that_compare_epochs_are_named_at_the_beginning(callback):
    def stop(epoch, logs):
        raise KeyboardInterrupt

    message = rf"^{type(callback).__name__} {WARNING}.*stage_2_callbacks=\[\.\.\.\]"
    with pytest.warns(UserWarning, match=message), pytest.raises(KeyboardInterrupt):
        interrupt = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
        fit(new_model(), [callback, new_select(), interrupt], epochs=4)


def test_others_are_not_named(tmp_path):
    """Nor those of a `fit` without the other stage: warnings are errors here."""
    save = ModelCheckpoint(tmp_path / "{epoch}.keras")
    model, select = new_model(), new_select()
    fit(model, [save, select], epochs=3)
    fit(model, [select, EarlyStopping("loss", patience=9)], epochs=1)
    only = SparseMaskCallback(fraction=0.3)
    fit(new_model(), [only, EarlyStopping("loss", patience=9)], epochs=2)


def test_arguments():
    with pytest.raises(TypeError, match="must hold Keras callbacks .*Received: 3"):
        new_select(3)
    backup = keras.callbacks.BackupAndRestore("x")
    with pytest.raises(ValueError, match="BackupAndRestore saves both stages"):
        new_select(backup)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(ValueError, match="SwapEMAWeights cannot swap the moving ave"):
        new_select(swap)
    model, before = new_model(), new_model().get_weights()
    averaging = new_select(finetune_optimizer=Adam(0.01, use_ema=True))
    for callbacks in ([averaging, swap], [swap, averaging]):
        with pytest.raises(ValueError, match="SwapEMAWeights cannot swap the moving"):
            fit(model, callbacks, epochs=5)
    assert all(map(np.array_equal, model.get_weights(), before))
    with pytest.raises(ValueError, match="`stage_2_callbacks` need a stage 2: give a"):
        SparseMaskCallback(stage_2_callbacks=[Log()])
