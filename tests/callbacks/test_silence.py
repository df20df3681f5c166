"""Runs that cannot have learned anything say so."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import Adam, LossScaleOptimizer

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback, SparseOptimizer
from keras_bayestune.callbacks.learning import Learning

BATCHES = 8


def new_model(rate=1e-2, scaled=False, **arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, "tanh", name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    arguments = {"warmup_steps": 2, "burn_in_steps": 3, "thinning": 1, **arguments}
    optimizer = BayesTuneSGLD(rate, seed=3, **arguments)
    model.compile(LossScaleOptimizer(optimizer) if scaled else optimizer, loss="mse")
    return model


def data(first_bad=None):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES * 3, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    if first_bad is not None:
        x[3 * first_bad :, 1] = np.nan
    return x, y


def fit(model, callbacks, first_bad=None, **arguments):
    arguments = {"batch_size": 3, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(*data(first_bad), callbacks=callbacks, **arguments)


class Count(keras.callbacks.Callback):
    batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1


def two_stages(**arguments):
    arguments = {"selection_epochs": 4, "finetune_optimizer": Adam(1e-2), **arguments}
    return SparseMaskCallback(0.3, **arguments)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "loss scaling"])
@pytest.mark.parametrize(("first_bad", "batches"), [(0, 5), (2, 15)])
def test_a_run_of_skipped_updates_stops(scaled, first_bad, batches):
    # With the first two of eight batches good, batches 11 to 15 are the first five.
    model, count = new_model(scaled=scaled), Count()
    pretrained = [weight.tobytes() for weight in model.get_weights()]
    message = (
        r"The last 5 updates were all skipped, because a gradient was not finite: "
        r"nothing is being trained. Look for NaN .*max_skipped_steps=5"
    )
    with pytest.raises(ValueError, match=message):
        select = two_stages(max_skipped_steps=5)
        fit(model, [select, count], first_bad, epochs=9)
    assert count.batches == batches
    assert [weight.tobytes() for weight in model.get_weights()] == pretrained


@pytest.mark.parametrize("most", [4, 8, 16])
def test_as_many_updates_in_stage_two_as_in_stage_one_are_not_none(most):
    fit(new_model(), [two_stages(selection_epochs=2, max_skipped_steps=most)], epochs=4)


def test_in_stage_two_as_well_and_by_updates():
    model = new_model(gradient_accumulation_steps=2)
    select = two_stages(
        selection_epochs=1,
        max_skipped_steps=3,
        finetune_optimizer=Adam(1e-2, gradient_accumulation_steps=2),
    )
    x, y = data()
    kept = []

    def spoil(epoch, logs):
        if epoch == 1:
            kept.extend(weight.tobytes() for weight in model.get_weights())
            x[:] = np.nan

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return BATCHES

        def __getitem__(self, index):
            return x[3 * index : 3 * index + 3].copy(), y[3 * index : 3 * index + 3]

    callbacks = [select, keras.callbacks.LambdaCallback(on_epoch_begin=spoil)]
    with pytest.raises(ValueError, match="The last [34] updates were all skipped"):
        model.fit(Data(), epochs=9, callbacks=callbacks, verbose=0, shuffle=False)
    assert isinstance(model.optimizer, SparseOptimizer)
    assert [weight.tobytes() for weight in model.get_weights()] == kept


def test_fewer_than_that_go_on():
    model = new_model()
    select = two_stages(max_skipped_steps=5, selection_epochs=2)
    with pytest.warns(UserWarning, match="12 updates were skipped"):
        fit(model, [select], first_bad=4, epochs=3)
    assert select.metadata["samples"] == 5


def test_no_sample_for_want_of_numbers_is_not_answered_by_more_steps():
    model = new_model()
    message = (
        r"No posterior sample was taken: 8 updates were skipped because a gradient was "
        r"not finite, 0 were done. Look for NaN"
    )
    with pytest.raises(ValueError, match=message):
        fit(model, [SparseMaskCallback(0.3)], first_bad=0)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_bad_number_of_skipped_steps(value):
    with pytest.raises(ValueError, match="`max_skipped_steps` must be an integer >= 1"):
        SparseMaskCallback(max_skipped_steps=value)


def test_a_forgotten_callback():
    model = new_model()
    message = "ended without SparseMaskCallback: there is no mask, and all weights"
    with pytest.warns(UserWarning, match=message) as found:
        fit(model, [])
        fit(model, [])
    assert len([w for w in found if "SparseMaskCallback" in str(w.message)]) == 1


def test_a_callback_forgotten_the_second_time():
    model = new_model()
    fit(model, [SparseMaskCallback(0.3)])
    with pytest.warns(UserWarning, match="ended without SparseMaskCallback"):
        fit(model, [])


def test_who_samples_with_a_mask_needs_no_callback():
    """As for the draws of a posterior; warnings are errors here."""
    model = new_model()
    select = SparseMaskCallback(0.3)
    fit(model, [select])
    sampler = BayesTuneSGLD(1e-2, warmup_steps=1, burn_in_steps=1, seed=0)
    model.compile(SparseOptimizer(sampler, select.mask), loss="mse")
    fit(model, [])


def test_steps_too_small_to_move_a_weight():
    model = new_model(1e-9)
    message = (
        r"[0-9]+% of the weights under the prior are what they were before stage 1, "
        r"bit for bit: .* Raise learning_rate \(now 1e-09;"
    )
    with pytest.warns(UserWarning, match=message):
        fit(model, [two_stages(selection_epochs=1)], epochs=2)


def test_weights_that_stand_still_for_a_reason_are_not_reported():
    """Without noise, rows of a table that no example asks for."""
    ids = keras.Input((2,), dtype="int32")
    features = keras.layers.Flatten()(keras.layers.Embedding(50, 4)(ids))
    model = keras.Model(ids, keras.layers.Dense(1)(features))
    optimizer = BayesTuneSGLD(
        1e-2, noise_scale=0.0, warmup_steps=2, burn_in_steps=3, thinning=1, seed=0
    )
    model.compile(optimizer, loss="mse")
    x = np.random.default_rng(0).integers(0, 5, (24, 2))
    select = SparseMaskCallback(0.1)
    model.fit(x, x[:, :1], batch_size=3, epochs=3, callbacks=[select], verbose=0)
    still = [path for path, anchor in select.anchors.items() if anchor.shape == (50, 4)]
    assert len(still) == 1


def test_a_loss_that_never_falls():
    def loss(y, predicted):
        """Whose gradient says one thing, and whose value does not follow."""
        product = ops.mean(y * predicted, axis=-1)
        return ops.mean(y**2, axis=-1) + (product - ops.stop_gradient(product))

    model = new_model(1e-3)
    model.compile(model.optimizer, loss=loss)
    with pytest.warns(UserWarning, match=r"The loss never fell in stage 1: 0\.\d+ in"):
        fit(model, [SparseMaskCallback(0.3)], epochs=3)


@pytest.mark.parametrize(
    ("losses", "warns"),
    [
        ([1.0, 1.1, 1.0], True),
        ([1.0, 0.99, 1.2], False),
        ([1.0], False),
        ([], False),
        ([float("nan"), 1.0, 0.5], False),
        ([float("nan"), 1.0, 1.0], True),
    ],
)
def test_when_a_loss_has_not_fallen(losses, warns, recwarn):
    model = new_model()
    model.optimizer.build(model.trainable_variables)
    for variable in model.trainable_variables:
        variable.assign(ops.add(variable, 1.0))
    learning = Learning()
    for loss in losses:
        learning.add_epoch({"loss": loss})
    if warns:
        with pytest.warns(UserWarning, match="The loss never fell in stage 1: 1 in"):
            learning.warn(model, model.optimizer)
    else:
        learning.warn(model, model.optimizer)
