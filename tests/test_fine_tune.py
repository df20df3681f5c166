"""Both stages in one call."""

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, LaplacePrior, SparseMask, SparseMaskCallback
from keras_bayestune._fine_tune import fine_tune
from keras_bayestune.budgets import ByPattern
from keras_bayestune.optimizers import SparseOptimizer
from keras_bayestune.selectors import Magnitude, Movement, Random, ScaleSelector
from tests.selectors.network import Batches, chain, new_data, new_model

QUICK = {"selector": Magnitude(), "fraction": 0.2, "finetune_epochs": 1, "verbose": 0}


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v.value) for v in model.weights}


def batches():
    return Batches(*new_data(), 10)  # one batch: no order to shuffle


def test_only_the_selected_scalars_move_and_the_delta_holds_them():
    x, y = new_data()
    model = new_model(loss="mse", metrics=["mae"])
    before = values(model)
    result = fine_tune(
        model,
        (x, y),
        selector=Movement(keras.optimizers.SGD(0.1), epochs=1),
        fraction=0.3,
        finetune_optimizer=keras.optimizers.Adam(0.05, weight_decay=0.1),
        finetune_epochs=3,
        batch_size=5,
        validation_data=(x, y),
        verbose=0,
    )
    assert result.mask.count == int(0.3 * 23) == 6
    assert result.mask == SparseMask.from_scores(result.scores, fraction=0.3)
    for path, value in values(model).items():
        moved = np.flatnonzero(value != before[path])
        assert np.array_equal(moved, result.mask.indices[path])
    assert len(result.history.history["val_mae"]) == 3
    assert result.delta.metadata["selector"] == "Movement"
    assert result.delta.metadata["fraction"] == 0.3
    fresh = new_model()
    result.delta.apply(fresh)
    assert all(np.array_equal(v, values(model)[p]) for p, v in values(fresh).items())
    assert isinstance(model.optimizer, SparseOptimizer)
    model.fit(x, y, verbose=0)  # compiled for more of the same
    for path, value in values(model).items():
        moved = np.flatnonzero(value != before[path])
        assert np.array_equal(moved, result.mask.indices[path])


def test_stage_one_and_two_are_those_of_the_callback():
    arguments = {"warmup_steps": 1, "burn_in_steps": 2, "thinning": 1, "seed": 3}
    one = new_model(BayesTuneSGLD(1e-2, **arguments), loss="mse")
    callback = SparseMaskCallback(
        fraction=0.25,
        selection_epochs=5,
        finetune_optimizer=keras.optimizers.Adam(0.03),
    )
    one.fit(batches(), epochs=8, callbacks=[callback], verbose=0)
    keras.utils.clear_session(free_memory=False)
    other = new_model()
    result = fine_tune(
        other,
        batches(),
        selector=ScaleSelector(BayesTuneSGLD(1e-2, **arguments), epochs=5),
        fraction=0.25,
        finetune_optimizer=keras.optimizers.Adam(0.03),
        loss="mse",
        finetune_epochs=3,
        verbose=0,
    )
    assert result.mask == callback.mask
    for path, score in result.scores.items():
        assert np.array_equal(score, callback.scores[path])
    for path, value in values(one).items():
        np.testing.assert_allclose(value, values(other)[path], rtol=1e-6)


def test_the_default_selector_plans_by_quarters(monkeypatch):
    seen = {}
    scores = ScaleSelector.scores

    def spy(self, *args, **kwargs):
        seen.update(self.optimizer.get_config(), epochs=self.epochs)
        return scores(self, *args, **kwargs)

    monkeypatch.setattr(ScaleSelector, "scores", spy)
    x, y = new_data()
    model = new_model(loss="mse")
    result = fine_tune(
        model, (x, y), selection_epochs=6, finetune_epochs=1, batch_size=4, verbose=0,
        fraction=0.1, seed=4,
    )  # fmt: skip
    plan = "warmup_steps", "burn_in_steps", "thinning", "epochs", "seed"
    assert [seen[name] for name in plan] == [4, 9, 5, 6, 4]
    assert result.mask.count == 2
    again = new_model(loss="mse")
    same = fine_tune(
        again, (x, y), selection_epochs=6, finetune_epochs=1, batch_size=4, verbose=0,
        fraction=0.1, seed=4,
    )  # fmt: skip
    assert same.mask == result.mask
    for path, value in values(again).items():
        np.testing.assert_allclose(value, values(model)[path], rtol=1e-5)


def test_what_does_not_compete_trains_as_a_whole_and_keeps_what_it_learned():
    x, y = new_data()
    model = new_model(loss="mse")
    before = values(model)
    selector = Movement(keras.optimizers.SGD(0.5), epochs=2)
    result = fine_tune(
        model, (x, y), **{**QUICK, "selector": selector}, exclude=["head"],
        finetune_optimizer=keras.optimizers.SGD(0.0),
    )  # fmt: skip
    now = values(model)
    assert all(np.array_equal(now[p], before[p]) for p in now if "head" not in p)
    assert (now["head/kernel"] != before["head/kernel"]).all()
    assert set(result.mask.always) == {"head/kernel", "head/bias"}
    assert result.mask.count == 3 + 8  # a fifth of 15, and the head


def test_statistics_of_batch_normalisation_are_in_the_delta():
    def new():
        model = chain(
            keras.Input((4,)),
            keras.layers.Dense(3, name="body"),
            keras.layers.BatchNormalization(name="norm", momentum=0.5),
            keras.layers.Dense(2, name="head"),
        )
        model.set_weights([np.full(w.shape, 0.3) for w in model.weights])
        return model

    x, y = new_data()
    model = new()
    result = fine_tune(model, (x, y), loss="mse", **{**QUICK, "selector": Random(1)})
    assert not np.allclose(values(model)["norm/moving_mean"], 0.3)
    fresh = new()
    result.delta.apply(fresh)
    assert np.array_equal(fresh.predict(x, verbose=0), model.predict(x, verbose=0))


def test_loss_and_metrics():
    x, y = new_data()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"one": keras.layers.Dense(2, name="one")(inputs)})
    data = (x, {"one": y})
    model.compile(
        "sgd", {"one": "mse"}, loss_weights={"one": 0.5}, metrics={"one": "mae"}
    )
    logs = fine_tune(model, data, **QUICK).history.history
    assert set(logs) == {"loss", "mae"}
    logs = fine_tune(model, data, **QUICK, metrics={"one": ["mse"]}).history.history
    assert set(logs) == {"loss", "mse"}
    np.testing.assert_allclose(logs["loss"], 0.5 * np.array(logs["mse"]), rtol=1e-5)
    logs = fine_tune(model, data, **QUICK, loss={"one": "mse"}).history.history
    assert set(logs) == {"loss", "mse"}
    np.testing.assert_allclose(logs["loss"], logs["mse"], rtol=1e-5)


def test_mixed_precision_keeps_its_loss_scale():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = new_model(loss="mse")
    finally:
        keras.config.set_dtype_policy("float32")
    before = values(model)
    result = fine_tune(model, new_data(), **QUICK)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, SparseOptimizer)
    for path, value in values(model).items():
        moved = np.flatnonzero(value != before[path])
        assert set(moved) <= set(result.mask.indices[path])


def test_the_head_of_a_task_is_excluded_unless_told_otherwise():
    keras_hub = pytest.importorskip("keras_hub")

    class Backbone(keras_hub.models.Backbone):
        def __init__(self):
            inputs = keras.Input((4,))
            layer = keras.layers.Dense(3, name="body")
            super().__init__(inputs=inputs, outputs=layer(inputs))

    class Regressor(keras_hub.models.Task):
        def __init__(self, backbone):
            self.backbone = backbone
            self.preprocessor = None
            outputs = keras.layers.Dense(2, name="logits")(backbone.output)
            super().__init__(inputs=backbone.input, outputs=outputs, compile=False)

    data = new_data()
    model = Regressor(Backbone())
    result = fine_tune(model, data, loss="mse", **QUICK)
    assert set(result.mask.always) == {"logits/kernel", "logits/bias"}
    result = fine_tune(model, data, loss="mse", **QUICK, exclude=())
    assert result.mask.always == ()


def test_a_prior_that_is_marked_says_what_competes():
    model = chain(
        keras.Input((4,)),
        LaplacePrior().wrap(keras.layers.Dense(3, name="wrapped")),
        keras.layers.Dense(2, name="head"),
    )
    result = fine_tune(model, new_data(), loss="mse", **QUICK)
    assert set(result.mask.always) == {"head/kernel", "head/bias"}


class Counting(Magnitude):
    """Says whether stage 1 has begun."""

    runs = 0

    def compute(self, variables, training):
        self.runs += 1
        return super().compute(variables, training)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fraction": 0.0}, ValueError, r"must be in \(0, 1\]"),
        ({"fraction": 1.1}, ValueError, r"must be in \(0, 1\]"),
        ({"fraction": 0.04}, ValueError, "too small to select one scalar: 23 compete"),
        ({"fraction": 0.1, "threshold": 0.1}, ValueError, "either `fraction` or"),
        ({"fraction": None, "threshold": np.nan}, ValueError, "a finite number"),
        ({"budget": ByPattern({"nothing": 0.5})}, ValueError, "'nothing' of ByPattern"),
        ({"exclude": ["nothing"]}, ValueError, "'nothing' in `exclude` matches none"),
        (
            {"finetune_epochs": 0},
            ValueError,
            "`finetune_epochs` must be an integer >= 1",
        ),
        ({"finetune_optimizer": "adam"}, TypeError, "must be a Keras optimizer"),
        ({"selector": "fisher"}, TypeError, "must be a keras_bayestune.selectors.Sel"),
        ({"selection_epochs": 3}, ValueError, "are for the default selector"),
        (
            {"selector": None, "selection_epochs": 0},
            ValueError,
            "`selection_epochs` must be an integer >= 1",
        ),
        (
            {"selector": None, "selection_epochs": 9},
            ValueError,
            "planned for 9 updates: selection_epochs=9 of 1 batches. It needs 10",
        ),
        ({"train": iter([])}, ValueError, "read in both stages"),
        ({"train": None}, ValueError, "Received no data"),
        ({"selection_steps": 3}, ValueError, "are for the default selector"),
        (
            {"selector": None, "selection_steps": 9},
            ValueError,
            "planned for 9 updates: selection_steps=9. It needs 10",
        ),
        (
            {"selector": None, "selection_steps": 9, "selection_epochs": 1},
            ValueError,
            "Give `selection_epochs` or `selection_steps`, not both",
        ),
        (
            {
                "finetune_optimizer": keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.Adam()
                )
            },
            ValueError,
            "`finetune_optimizer` must not be a LossScaleOptimizer",
        ),
        ({"stage_2_callbacks": None}, TypeError, "must be a list of Keras callbacks"),
        ({"stage_2_callbacks": ["x"]}, TypeError, "must hold Keras callbacks"),
        (
            {"stage_2_callbacks": [SparseMaskCallback()]},
            ValueError,
            "must not hold a SparseMaskCallback",
        ),
        (
            {"stage_2_callbacks": [keras.callbacks.SwapEMAWeights()]},
            ValueError,
            "SwapEMAWeights cannot swap the moving averages of stage 2",
        ),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"steps_per_epoch": 0}, ValueError, "`steps_per_epoch` must be an integer"),
        ({"loss": "nothing"}, ValueError, "interpret loss identifier: nothing"),
        ({"metrics": ["nothing"]}, ValueError, "interpret metric identifier: nothing"),
        (
            {"validation_data": (np.ones((2, 3)), np.ones((2, 2)))},
            ValueError,
            r"expected shape=\(None, 4\), found shape=\(2, 3\)",
        ),
        ({"validation_data": 5}, ValueError, "Expected a tuple of arrays"),
        ({"validation_data": [], "verbose": 0}, ValueError, "Received: \\[\\]"),
        ({"validation_split": 1.0}, ValueError, "must leave rows for training"),
        ({"validation_split": -0.1}, ValueError, "split=-0.1 of 10 rows"),
        (
            {"validation_split": 0.2, "validation_data": new_data()},
            ValueError,
            "Give `validation_data` or `validation_split`, not both",
        ),
        (
            {"validation_split": 0.2, "train": Batches(*new_data(), 5)},
            ValueError,
            "`validation_split` is for arrays.*with a Batches",
        ),
    ],
)
def test_arguments_are_checked_before_anything_changes(arguments, error, message):
    model = new_model(loss="mse")
    before, optimizer = values(model), model.optimizer
    counting = Counting()
    arguments = {"train": new_data(), **QUICK, "selector": counting, **arguments}
    with pytest.raises(error, match=message):
        fine_tune(model, arguments.pop("train"), **arguments)
    assert counting.runs == 0
    assert model.optimizer is optimizer
    assert all(np.array_equal(v, before[p]) for p, v in values(model).items())


def test_an_error_of_the_first_batch_names_the_data():
    for name, arguments in {
        "training": {"train": (np.ones((4, 3)), np.ones((4, 2)))},
        "validation": {"validation_data": (np.ones((4, 3)), np.ones((4, 2)))},
    }.items():
        with pytest.raises(ValueError) as caught:
            fine_tune(
                new_model(loss="mse"), **{"train": new_data(), **QUICK, **arguments}
            )
        expected = f"evaluating the first batch of the {name} data"
        assert any(expected in note for note in caught.value.__notes__)


def test_a_data_set_of_unknown_length_needs_a_plan():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(new_data()).batch(5).repeat()
    with pytest.raises(ValueError, match="does not say how many batches"):
        fine_tune(new_model(loss="mse"), data, verbose=0)
    model = new_model(loss="mse")
    result = fine_tune(
        model, data, fraction=0.1, steps_per_epoch=4, finetune_epochs=2, verbose=0
    )
    updates = int(model.optimizer.iterations.numpy())
    assert (len(result.selection_history.epoch), updates) == (3, 2 * 4)


def test_models_and_optimizers_that_cannot_be_used():
    x, y = new_data()
    with pytest.raises(TypeError, match="`model` must be a keras.Model"):
        fine_tune(keras.layers.Dense(2), (x, y), **QUICK)
    with pytest.raises(ValueError, match="is not compiled, so there is no loss"):
        fine_tune(new_model(), (x, y), **QUICK)
    optimizer = keras.optimizers.Adam(1e-3)
    model = new_model(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="is built on other variables already"):
        fine_tune(model, (x, y), **QUICK, finetune_optimizer=optimizer)


def test_the_smallest_plan_works():
    model = new_model(loss="mse")
    result = fine_tune(
        model,
        new_data(),
        fraction=1 / 23,
        selection_epochs=10,
        finetune_epochs=1,
        verbose=0,
    )
    assert result.mask.count == 1


def test_both_stages_see_the_same_rows_and_classes():
    x = new_data()[0]
    y = np.array([0, 1, 1, 0, 1, 0, 1, 1, 0, 0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    arguments = {"fraction": 1.0, "finetune_epochs": 1, "batch_size": 8, "verbose": 0}
    weights = np.array([0.5, 3.0])[y]
    models = []
    for data, options in (
        ((x, y), {"validation_split": 0.2, "class_weight": {0: 0.5, 1: 3.0}}),
        ((x[:8], y[:8], weights[:8]), {"validation_data": (x[8:], y[8:])}),
    ):
        model = new_model(loss=loss)
        result = fine_tune(
            model,
            data,
            selector=Movement(keras.optimizers.SGD(0.1), epochs=2),
            finetune_optimizer=keras.optimizers.SGD(0.1),
            **arguments,
            **options,
        )
        models.append((model, result))
    (one, first), (two, second) = models
    for path, score in first.scores.items():
        np.testing.assert_allclose(score, second.scores[path], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(
            values(one)[path], values(two)[path], rtol=1e-4, atol=1e-7
        )
    for history in (first.history, second.history):
        expected = two.evaluate(x[8:], y[8:], verbose=0)
        np.testing.assert_allclose(history.history["val_loss"], [expected], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_validation_data_that_can_be_read_once():
    x, y = new_data()
    rows = (batch for batch in [(x[:5], y[:5])])
    result = fine_tune(new_model(loss="mse"), (x, y), validation_data=rows, **QUICK)
    assert len(result.history.history["val_loss"]) == 1


def test_a_result_says_what_it_is():
    model = new_model(loss="mse")
    result = fine_tune(model, new_data(), **QUICK)
    assert result.selection_history.history == {}
    (loss,) = result.history.history["loss"]
    assert repr(result) == (
        "FineTuneResult(SparseMask(17.4 % of 23 scalars (4)), delta of "
        f"{result.delta.nbytes:,} bytes, loss of stage 2 {loss:.4g} to {loss:.4g})"
    )
    selector = Movement(keras.optimizers.SGD(0.1), epochs=3)
    result = fine_tune(model, new_data(), **{**QUICK, "selector": selector})
    losses = result.selection_history.history["loss"]
    assert len(losses) == 3
    assert f"loss of stage 1 {losses[0]:.4g} to {losses[2]:.4g}" in repr(result)
    assert f"{selector} {Random(3)} {Random()}" == (
        "Movement(optimizer=SGD(...), epochs=3) Random(seed=3) Random()"
    )


def test_a_train_step_of_ones_own_is_left_to_the_selector():
    class Own(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    inputs = keras.Input((4,))
    model = Own(inputs, keras.layers.Dense(2)(inputs))
    result = fine_tune(model, new_data(), loss="mse", **QUICK)
    assert result.mask.count == 2
