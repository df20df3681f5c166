"""A callback or a model used again, and a `fit` that does not begin with epoch 0."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import Adam

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback, SparseOptimizer

BATCHES = 4


def sampler(**arguments):
    arguments = {"warmup_steps": 0, "burn_in_steps": 0, "thinning": 1, **arguments}
    return BayesTuneSGLD(1e-2, seed=3, **arguments)


def new_model(optimizer=None):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, "tanh", name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(sampler() if optimizer is None else optimizer, loss="mse")
    return model


def fit(model, callbacks, **arguments):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES * 3, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    arguments = {"batch_size": 3, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(x, y, callbacks=callbacks, **arguments).history


def two_stages(**arguments):
    return SparseMaskCallback(0.3, finetune_optimizer=Adam(1e-2), **arguments)


def arrays(model):
    return [np.array(ops.convert_to_numpy(v)) for v in model.variables]


@pytest.mark.parametrize("finetune", [True, False])
def test_a_callback_of_another_model_is_refused(finetune):
    """As in cross-validation with one list of callbacks."""
    select = two_stages(selection_epochs=1) if finetune else SparseMaskCallback(0.3)
    first = new_model()
    fit(first, [select], epochs=2)
    mask, second = select.mask, new_model()
    before = arrays(second)
    message = "holds the mask of another model, 'sequential'. Make a new callback"
    with pytest.raises(ValueError, match=message):
        fit(second, [select], epochs=2)
    for value, old in zip(arrays(second), before, strict=True):
        assert value.tobytes() == old.tobytes()
    assert select.mask is mask


def test_a_callback_that_did_not_end_stage_one_serves_another_model():
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    select = two_stages(selection_epochs=2, trace_scalars=3)
    with pytest.raises(KeyboardInterrupt):
        fit(new_model(), [select, Stop()], epochs=3)
    model, expected = new_model(), two_stages(selection_epochs=2, trace_scalars=3)
    fit(model, [expected], epochs=3)
    again = new_model()
    assert fit(again, [select], epochs=3)["stage"] == [1, 1, 2]
    assert select.trace.tobytes() == expected.trace.tobytes()
    for value, wanted in zip(arrays(again), arrays(model), strict=True):
        assert value.tobytes() == wanted.tobytes()


def test_sampling_for_longer_makes_a_new_mask():
    model, select = new_model(), SparseMaskCallback(0.3, stage_2_start="last state")
    fit(model, [select])
    mask = select.mask
    assert select.metadata["samples"] == 4
    history = fit(model, [select], epochs=6)
    assert len(history["samples"]) == 6
    assert select.metadata["samples"] == model.optimizer.num_samples == 28
    # Without restored anchors the chain is that of one `fit`.
    whole, expected = new_model(), SparseMaskCallback(0.3)
    fit(whole, [expected], epochs=7)
    assert select.mask == expected.mask != mask
    for path, score in expected.scores.items():
        assert select.scores[path].tobytes() == score.tobytes()


def test_a_new_chain_on_the_same_model_makes_a_new_mask():
    model, select = new_model(), SparseMaskCallback(0.3, selection_epochs=2)
    fit(model, [select], epochs=3)
    model.compile(sampler(), loss="mse")
    assert fit(model, [select], epochs=3)["samples"] == [4, 8]
    assert select.metadata["samples"] == 8


def test_a_used_optimizer_of_stage_two_is_refused_before_the_first_step():
    model, select = new_model(), two_stages(selection_epochs=1)
    fit(model, [select], epochs=2)
    model.compile(sampler(), loss="mse")
    with pytest.raises(ValueError, match="'adam', is built on other variables alr"):
        fit(model, [select], epochs=2)
    assert model.optimizer.num_updates == 0


def test_a_stage_two_model_in_a_cell_that_is_run_again():
    model = new_model()
    fit(model, [two_stages(selection_epochs=1)], epochs=2)
    message = "is in stage 2 already.*build the model anew, with its pre-trained weigh"
    with pytest.raises(TypeError, match=message):
        fit(model, [two_stages(selection_epochs=1)], epochs=2)


@pytest.mark.parametrize(
    ("plan", "stages"),
    [
        ({"selection_epochs": 3}, [1, 1, 1, 2, 2, 2]),
        ({"selection_steps": 10}, [1, 1, 2, 2, 2, 2]),
    ],
    ids=["epochs", "steps"],
)
def test_stage_one_is_counted_from_where_fit_begins(plan, stages):
    select, expected = two_stages(**plan), two_stages(**plan)
    model = new_model()
    assert fit(model, [expected], epochs=6)["stage"] == stages
    later = new_model()
    history = fit(later, [select], initial_epoch=5, epochs=11)
    assert history["stage"] == stages
    samples = 12 if "selection_epochs" in plan else 10
    assert select.metadata["samples"] == samples
    for value, wanted in zip(arrays(later), arrays(model), strict=True):
        assert value.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("plan", "optimizer", "message"),
    [
        (
            {"selection_epochs": 2},
            {},
            "selection_epochs=2 of epochs=7 from initial_epoch=5 on leaves no epoch",
        ),
        ({"selection_steps": 8}, {}, "selection_steps=8 of 8 batches leaves none"),
        (
            {"selection_epochs": 1},
            {"burn_in_steps": 4},
            "Stage 1 is planned for 4 updates, but the first posterior sample comes "
            "after 5",
        ),
    ],
)
def test_the_plan_is_checked_from_where_fit_begins(plan, optimizer, message):
    model = new_model(sampler(**optimizer))
    with pytest.raises(ValueError, match=message):
        fit(model, [two_stages(**plan)], initial_epoch=5, epochs=7)
    assert model.optimizer.num_updates == 0


def test_a_backup_does_not_move_the_next_fit(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select = two_stages(selection_epochs=1, backup_dir=tmp_path)
        fit(new_model(), [select, Stop()], epochs=3)
    model, select = new_model(), two_stages(selection_epochs=1, backup_dir=tmp_path)
    assert fit(model, [select], epochs=3)["stage"] == [2]
    assert fit(model, [select], epochs=1)["stage"] == [2]  # from epoch 0


def test_a_layer_unfrozen_after_stage_one_is_an_error():
    model = new_model()
    model.layers[1].trainable = False
    model.compile(sampler(), loss="mse")
    select = SparseMaskCallback(0.5)
    fit(model, [select])
    model.layers[1].trainable = True
    model.compile(SparseOptimizer(Adam(1e-2), select.mask), loss="mse")
    message = (
        r"does not know 2 of 4 trainable variables, so they would not train: "
        r"\['sequential/b/kernel', 'sequential/b/bias'\]. .*freeze them now"
    )
    with pytest.raises(ValueError, match=message):
        fit(model, [])
