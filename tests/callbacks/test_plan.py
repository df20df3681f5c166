"""Arguments of the callback, and plans that cannot work, before the first step."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import Adam, LossScaleOptimizer

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback
from keras_bayestune.budgets import PerTensor


def test_half_a_percent_unless_told():
    assert SparseMaskCallback().plan.fraction == 0.005
    assert SparseMaskCallback(threshold=0.1).plan.fraction is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"fraction": 0.0},
            r"`fraction` must be in \(0, 1\].*fraction=0.0 .* 'auto' the knee",
        ),
        ({"fraction": -0.1}, "fraction=-0.1"),
        ({"fraction": 1.01}, "fraction=1.01"),
        ({"fraction": float("nan")}, "fraction=nan"),
        ({"fraction": "knee"}, "fraction='knee'"),
        ({"threshold": -1e-9}, "`threshold` must be a finite number >= 0.*-1e-09"),
        ({"threshold": float("inf")}, "threshold=inf"),
        ({"threshold": "auto"}, "threshold='auto'"),
        ({"fraction": 0.1, "threshold": 0.1}, "`fraction` or `threshold`, not both"),
        (
            {"threshold": 0.1, "budget": PerTensor()},
            r"`threshold` selects .* no budget but Global.*Received: .*PerTensor\(\)",
        ),
        (
            {"selection_epochs": 1, "selection_steps": 9},
            "`selection_epochs` or `selection_steps`, not both",
        ),
        ({"selection_epochs": 0}, "`selection_epochs` must be an integer >= 1.*=0"),
        ({"selection_epochs": 1.5}, "selection_epochs=1.5"),
        ({"selection_steps": -3}, "`selection_steps` must be an integer >= 1.*=-3"),
        ({"selection_steps": "9"}, "selection_steps='9'"),
        ({"trace_scalars": -1}, "`trace_scalars` must be an integer.*=-1"),
        ({"trace_scalars": 1.5}, "trace_scalars=1.5"),
    ],
    ids=str,
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseMaskCallback(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": 1.0},
        {"fraction": 1},
        {"fraction": np.float32(1e-9)},
        {"fraction": "auto"},
        {"threshold": 0.0},
        {"selection_epochs": 1},
        {"selection_steps": np.int64(1)},
    ],
    ids=str,
)
def test_boundary_values(arguments):
    SparseMaskCallback(**arguments)


def test_bad_optimizers():
    with pytest.raises(
        TypeError, match="`finetune_optimizer` must be a Keras optimizer"
    ):
        SparseMaskCallback(finetune_optimizer="adam", selection_epochs=1)
    used = Adam()
    used.build([keras.Variable(np.ones(3))])
    with pytest.raises(ValueError, match="`finetune_optimizer`, 'adam', is built on"):
        SparseMaskCallback(finetune_optimizer=used, selection_epochs=1)
    with pytest.raises(ValueError, match="say when stage 1 ends: give `selection_ep"):
        SparseMaskCallback(finetune_optimizer=Adam())
    scaled = LossScaleOptimizer(Adam())
    with pytest.raises(ValueError, match="_optimizer` must not be a LossScaleOpt"):
        SparseMaskCallback(finetune_optimizer=scaled, selection_epochs=1)


def new_model(optimizer):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    model.compile(optimizer, loss="mse")
    return model


def fit(model, callback, **arguments):
    x, y = np.ones((12, 4)), np.ones((12, 3))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[callback], **arguments)


FINETUNE = {"finetune_optimizer": Adam()}


@pytest.mark.parametrize(
    ("arguments", "optimizer", "epochs", "message"),
    [
        (
            {"selection_epochs": 2, **FINETUNE},
            {},
            2,
            "selection_epochs=2 of epochs=2 leaves no epoch for stage 2. Raise ",
        ),
        (
            {"selection_steps": 12, **FINETUNE},
            {},
            2,
            "selection_steps=12 of 12 batches leaves none for stage 2",
        ),
        (
            {},
            {"burn_in_steps": 6},
            1,
            r"Stage 1 is planned for 6 updates, but the first posterior sample comes "
            r"after 7: burn_in_steps=6 plus thinning=1\. Plan more epochs",
        ),
        (
            {"selection_epochs": 1, **FINETUNE},
            {"burn_in_steps": 4, "thinning": 3},
            3,
            "planned for 6 updates.* after 7: burn_in_steps=4 plus thinning=3",
        ),
        (
            {"selection_steps": 5, **FINETUNE},
            {"burn_in_steps": 5},
            3,
            "planned for 5 updates",
        ),
        (
            {},
            {"burn_in_steps": 6, "gradient_accumulation_steps": 2},
            2,
            "planned for 6 updates",
        ),
    ],
)
def test_plans_that_cannot_work(arguments, optimizer, epochs, message):
    optimizer = {"warmup_steps": 2, "burn_in_steps": 4, "thinning": 1, **optimizer}
    model = new_model(BayesTuneSGLD(1e-3, **optimizer))
    before = [ops.convert_to_numpy(v).tobytes() for v in model.variables]
    with pytest.raises(ValueError, match=message):
        fit(model, SparseMaskCallback(**arguments), epochs=epochs)
    assert model.optimizer.num_updates == 0
    assert [ops.convert_to_numpy(v).tobytes() for v in model.variables] == before


def test_the_shortest_plan_that_works():
    optimizer = BayesTuneSGLD(
        1e-3, warmup_steps=2, burn_in_steps=3, thinning=2, seed=0, effective_size=1e6
    )
    select = SparseMaskCallback(fraction=0.2, selection_steps=5, **FINETUNE)
    fit(new_model(optimizer), select, epochs=1)
    assert select.metadata["samples"] == 1


def test_an_optimizer_of_another_kind():
    message = r"compiled with BayesTuneSGLD\. Received: Adam\. Use model\.compile"
    for optimizer in (Adam(), LossScaleOptimizer(Adam())):
        with pytest.raises(TypeError, match=message):
            fit(new_model(optimizer), SparseMaskCallback())


def test_nothing_to_read_before_stage_one_ends():
    select = SparseMaskCallback()
    for name in ("mask", "scores", "anchors", "metadata"):
        with pytest.raises(ValueError, match="Stage 1 has not ended yet"):
            getattr(select, name)
    with pytest.raises(ValueError, match=r"SparseMaskCallback\(trace_scalars=64\)"):
        select.trace  # noqa: B018
