"""Compact gradients inside `fit`: both stages, other callbacks, the argument."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import Adam

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback
from keras_bayestune.callbacks.compact_training import CompactTraining


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


def fitted(compact, *callbacks, **arguments):
    model = new_model()
    select = SparseMaskCallback(
        0.5,
        finetune_optimizer=Adam(1e-2),
        compact_gradients=compact,
        **(arguments or {"sampling_epochs": 1}),
    )
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, (40, 4)), rng.integers(0, 3, (40, 4))
    seen = Seen(select)
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[select, *callbacks, seen],
    )
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
        {"sampling_epochs": 1},
        pytest.param({"sampling_steps": 13}, marks=pytest.mark.long),
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


def test_weights_kept_in_stage_one_are_restored_after_stage_two():
    stopping = keras.callbacks.EarlyStopping(
        "samples", mode="min", patience=9, restore_best_weights=True
    )
    _, restored = fitted(True, stopping)
    assert len(restored) == len(new_model().weights)


def test_argument():
    with pytest.raises(ValueError, match=r"must be 'auto', True or False. Received: 3"):
        CompactTraining(3)
