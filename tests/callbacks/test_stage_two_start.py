"""Stage 2 starts at the anchors, or with the last values of the selected scalars."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD

from keras_bayestune import BayesTuneSGLD, SparseDelta, SparseMaskCallback, fine_tune
from keras_bayestune.selectors import Magnitude, Movement, ScaleSelector

JIT = keras.backend.backend() == "jax"
BATCHES = 4


def new_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES * 4, 4)).astype("float32")
    return x, (x[:, :2] * x[:, 2:]).astype("float32")


def sampler(**arguments):
    steps = {"warmup_steps": 1, "burn_in_steps": 2, "thinning": 1}
    return BayesTuneSGLD(1e-2, seed=3, **steps, **arguments)


def new_model(policy="float32", **arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), dtype="float32")
    x = keras.layers.Dense(5, activation="tanh", name="a", dtype=policy)(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    model.compile(sampler(exclude="head", **arguments), "mse", jit_compile=JIT)
    return model


def arrays(model):
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in model.weights}


class Spy(keras.callbacks.Callback):
    """What the weights were after batch `batch`, before other callbacks saw it."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.seen = batch, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.batch:
            self.values = arrays(self.model)


def check_start(found, mask, base, last):
    for path, value in found.items():
        selected = np.zeros(value.size, bool)
        selected[mask.indices.get(path, [])] = True
        value, start, end = (a.reshape(-1) for a in (value, base[path], last[path]))
        np.testing.assert_array_equal(value[selected], end[selected], path)
        np.testing.assert_array_equal(value[~selected], start[~selected], path)
    kernel = mask.indices["a/kernel"]
    assert len(kernel)
    assert (last["a/kernel"].reshape(-1) != base["a/kernel"].reshape(-1))[kernel].all()


@pytest.mark.parametrize(
    ("policy", "plan", "steps"),
    [
        ("float32", {"selection_epochs": 1}, BATCHES),
        ("bfloat16", {"selection_steps": BATCHES + 1}, BATCHES + 1),  # amid an epoch
    ],
)
def test_the_selected_scalars_keep_their_last_values(policy, plan, steps):
    model = new_model(policy)
    base, spy = arrays(model), Spy(steps)
    select = SparseMaskCallback(
        0.3, finetune_optimizer=SGD(0.0), stage_2_start="last values", **plan
    )
    x, y = new_data()
    model.fit(
        x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=[spy, select]
    )
    found = arrays(model)
    moving = {path for path in found if "moving" in path}
    assert all((found[path] != base[path]).any() for path in moving)  # in stage 2
    check_start(
        {p: a for p, a in found.items() if p not in moving},
        select.mask,
        base,
        spy.values,
    )
    delta = SparseDelta.from_model(model, select)
    kernel = delta.variables["a/kernel"]
    assert len(kernel.values) == len(select.mask.indices["a/kernel"])


class Interrupt(keras.callbacks.Callback):
    """Ends `fit` as a kill would, once the callbacks before it have been told."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [1, 2])  # the first two of stage 2
def test_a_resumed_run_is_the_run(tmp_path, epoch):
    x, y = new_data()

    def run(*others, **arguments):
        model = new_model()
        select = SparseMaskCallback(
            0.3,
            selection_epochs=1,
            finetune_optimizer=keras.optimizers.Adam(1e-2),
            stage_2_start="last values",
            **arguments,
        )
        callbacks = [select, *others]
        model.fit(
            x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=callbacks
        )
        return arrays(model)

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(epoch), backup_dir=tmp_path)
    found = run(backup_dir=tmp_path)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, path)


def test_without_a_second_stage():
    model = new_model(use_ema=True, ema_momentum=0.5)
    base, spy = arrays(model), Spy(BATCHES)
    select = SparseMaskCallback(0.3, stage_2_start="last values")
    x, y = new_data()
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[spy, select])
    found = arrays(model)
    averages = {
        v.path: np.array(ops.convert_to_numpy(average))
        for v, average in zip(
            model.trainable_variables,
            model.optimizer._model_variables_moving_average,
            strict=True,
        )
    }
    check_start(found, select.mask, base, base | averages)


@pytest.mark.parametrize(
    "selector",
    [
        ScaleSelector(sampler(), steps=BATCHES),
        Movement(SGD(0.1), epochs=1),
        Magnitude(),
    ],
    ids=lambda selector: type(selector).__name__,
)
@pytest.mark.parametrize("start", ["anchors", "last values"])
def test_fine_tune_with_any_selector(selector, start):
    model = new_model()
    base = arrays(model)
    result = fine_tune(
        model,
        new_data(),
        selector=selector,
        fraction=0.3,
        exclude=["head"],
        finetune_optimizer=SGD(0.0),
        finetune_epochs=1,
        stage_2_start=start,
        batch_size=BATCHES,
        verbose=0,
        seed=2,
    )
    found = arrays(model)
    head = found["head/kernel"], base["head/kernel"]
    kernel = found["a/kernel"].reshape(-1), base["a/kernel"].reshape(-1)
    selected = result.mask.indices["a/kernel"]
    moved = np.flatnonzero(kernel[0] != kernel[1])
    trains = not isinstance(selector, Magnitude)
    keeps = trains and start == "last values"
    np.testing.assert_array_equal(moved, selected if keeps else [])
    assert (head[0] != head[1]).all() == trains


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda start: SparseMaskCallback(stage_2_start=start), "'last state'"),
        (
            lambda start: fine_tune(
                new_model(), new_data(), batch_size=4, stage_2_start=start
            ),
            "'last values'",
        ),
    ],
)
@pytest.mark.parametrize("start", [True, "posterior mean", ["anchors"], None])
def test_what_there_is_to_start_from(make, allowed, start):
    with pytest.raises(
        ValueError, match=f"`stage_2_start` must be one of 'anchors', .*{allowed}"
    ):
        make(start)
