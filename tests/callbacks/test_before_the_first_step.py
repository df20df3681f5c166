"""What would fail when stage 1 ends fails before it begins, or does not fail."""

import keras
import numpy as np
import pytest
from keras.optimizers import Adam

from keras_bayestune import BayesTuneSGLD, SparseDelta, SparseMaskCallback
from keras_bayestune.budgets import ByPattern, PerLayer


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without `get_config`, as in many examples."""

    def __call__(self, step):
        return 1e-2 * keras.ops.ones(())


class Plain(Adam):
    """An optimizer without `get_config`."""

    def get_config(self):
        raise NotImplementedError("no config")


def new_model(rate=1e-2, **arguments):
    layers = [keras.layers.Dense(5, "tanh", name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    optimizer = BayesTuneSGLD(
        rate, warmup_steps=0, burn_in_steps=0, thinning=1, seed=3, **arguments
    )
    model.compile(optimizer, loss="mse")
    return model


def fit(model, callbacks, epochs=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    history = model.fit(
        x, y, batch_size=3, epochs=epochs, verbose=0, callbacks=callbacks, shuffle=False
    )
    return history.history


@pytest.mark.parametrize(
    "optimizer", [Adam(Constant()), Plain(1e-2)], ids=["rate", "all"]
)
def test_what_trains_under_adam_trains_here(optimizer, tmp_path):
    model = new_model(Constant())
    select = SparseMaskCallback(
        0.3,
        selection_epochs=1,
        finetune_optimizer=optimizer,
        backup_dir=tmp_path / "state",
    )
    assert fit(model, [select])["stage"] == [1, 2, 2]
    rate = select.metadata["optimizer"]["learning_rate"]
    assert rate == "Constant"
    # The same steps as with the number.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    same = new_model()
    expected = SparseMaskCallback(
        0.3, selection_epochs=1, finetune_optimizer=Adam(1e-2)
    )
    fit(same, [expected])
    assert expected.mask == select.mask
    for one, two in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    delta = SparseDelta.from_model(model, select)
    delta.save(tmp_path / "delta.safetensors")
    loaded = SparseDelta.load(tmp_path / "delta.safetensors")
    assert loaded.metadata["optimizer"]["learning_rate"] == "Constant"
    with pytest.raises(NotImplementedError):
        model.save(tmp_path / "model.keras")  # as with Adam alone


@pytest.mark.parametrize(
    ("arguments", "optimizer", "message"),
    [
        ({"fraction": 0.01}, {}, "too small to select one scalar"),
        ({"fraction": 0.3, "budget": ByPattern({"c/": 0.5})}, {}, "c/"),
        ({"fraction": "auto", "budget": ByPattern({"c/": 0.5})}, {}, "c/"),
        ({"fraction": 0.3}, {"exclude": "c/"}, "The pattern 'c/' in `exclude`"),
    ],
)
def test_arguments_that_do_not_fit_the_model(arguments, optimizer, message):
    model = new_model(**optimizer)
    select = SparseMaskCallback(
        selection_epochs=1, finetune_optimizer=Adam(), **arguments
    )
    before = [weight.tobytes() for weight in model.get_weights()]
    with pytest.raises(ValueError, match=message):
        fit(model, [select])
    assert [weight.tobytes() for weight in model.get_weights()] == before
    assert model.optimizer.num_updates == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": "auto"},
        {"threshold": 1e-4},
        {"fraction": 0.5, "budget": PerLayer()},
    ],
    ids=str,
)
def test_arguments_that_fit(arguments):
    select = SparseMaskCallback(**arguments)
    fit(new_model(), [select])
    assert select.mask.count > 0
