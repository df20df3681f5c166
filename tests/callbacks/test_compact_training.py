"""Compact gradients inside `fit`: both stages, other callbacks, the argument."""

import copy

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD, Adam

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback, SparseOptimizer
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.optimizers.compact_gradients import CompactGradients


def new_model():
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    ids = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(20, 6, name="table")(ids)
    x = keras.layers.Dense(8, "tanh", name="body")(x)
    model = keras.Model(ids, keras.layers.Dense(3, name="head")(x))
    optimizer = BayesTuneSGLD(1e-3, warmup_steps=2, burn_in_steps=4, thinning=1, seed=0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    return model


def new_select(compact, **arguments):
    return SparseMaskCallback(
        0.5,
        finetune_optimizer=Adam(1e-2),
        compact_gradients=compact,
        **(arguments or {"selection_epochs": 1}),
    )


def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 20, (40, 4)), rng.integers(0, 3, (40, 4))


def fit(model, callbacks, epochs=3):
    model.fit(
        *data(),
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


def fitted(compact, *callbacks, **arguments):
    model, select = new_model(), new_select(compact, **arguments)
    seen = Seen(select)
    fit(model, [select, *callbacks, seen])
    assert not any("call" in vars(layer) for layer in model.layers)
    return seen.layers, [ops.convert_to_numpy(v) for v in model.weights]


class Seen(keras.callbacks.Callback):
    """Which weights had compact gradients in the last epoch."""

    def __init__(self, select):
        super().__init__()
        self.select = select
        self.layers = set()

    def on_epoch_end(self, epoch, logs=None):
        gradients = self.select._compact.gradients
        self.layers = set() if gradients is None else set(gradients.layers)


@pytest.mark.parametrize(
    "end",
    [
        {"selection_epochs": 1},
        pytest.param({"selection_steps": 13}, marks=pytest.mark.long),
    ],
)
def test_both_stages_end_where_they_end_without(end):
    layers, compact = fitted(True, **end)
    assert layers == {"table/embeddings", "body/kernel", "head/kernel"}
    none, dense = fitted(False, **end)
    assert none == set()
    for new, old in zip(compact, dense, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-6)


def test_small_weights_are_left_alone_by_themselves():
    layers, _ = fitted("auto")
    assert layers == set()


def test_weights_that_another_callback_puts_back_stay():
    kept = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kept.append(keep.model.get_weights())
    )
    stopping = keras.callbacks.EarlyStopping(
        "samples", mode="min", patience=9, restore_best_weights=True
    )
    _, restored = fitted(True, keep, selection_epochs=1, stage_2_callbacks=[stopping])
    # All epochs of stage 2 are equal to it, so it keeps the first.
    for weight, best in zip(restored, kept[1], strict=True):
        assert weight.tobytes() == best.tobytes()
    assert any((a != b).any() for a, b in zip(restored, kept[2], strict=True))


@pytest.mark.parametrize("where", ["in a step", "between steps"])
def test_an_interrupted_fit_leaves_the_plain_model(where, monkeypatch, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    between = keras.callbacks.Callback()
    callbacks = [new_select(True)]
    if where == "in a step":
        monkeypatch.setattr(SparseOptimizer, "_apply_to_selected", interrupt)
    else:
        between.on_epoch_end = lambda epoch, logs=None: epoch == 1 and interrupt()
        callbacks.append(between)
    model = new_model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks)
    monkeypatch.undo()
    gradients = callbacks[0]._compact.gradients
    assert gradients.layers and model.train_function is gradients._train_function

    assert "train_step" not in vars(model)
    assert not any("call" in vars(layer) for layer in model.layers)
    assert not any("probe" in v.path for v in model.variables)
    optimizer = model.optimizer
    assert not optimizer._probed
    assert len(optimizer._trainable_variables) == len(model.trainable_variables)
    x, _ = data()
    outputs = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    for other in (
        copy.deepcopy(model),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        np.testing.assert_array_equal(other.predict(x, verbose=0), outputs)

    # Neither a `fit` without the callback nor one with another optimizer uses them.
    monkeypatch.setattr(CompactGradients, "_showing_probes", interrupt)
    fit(model, [], epochs=1)
    assert model.train_function is not gradients._train_function
    model.compile(SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    fit(model, [], epochs=1)


def test_argument():
    with pytest.raises(ValueError, match=r"must be 'auto', True or False. Received: 3"):
        CompactTraining(3)
