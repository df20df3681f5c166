import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest

from keras_bayestune import SparseDelta, fine_tune, sweep
from keras_bayestune.selectors import Magnitude, Movement, Random
from tests.contracts.tiny import bits, new_data, new_model

QUICK = {
    "exclude": ["^head/"],
    "loss": "mse",
    "batch_size": 20,  # all rows, so that their order does not matter
    "finetune_epochs": 2,
    "verbose": 0,
}


def test_a_sweep(capsys):
    model = new_model("sgd")
    before, optimizer = bits(model.variables), model.optimizer
    x, y = new_data()
    train, validation = (x[:15], y[:15]), (x[15:], y[15:])
    result = sweep(
        model,
        train,
        selector=Magnitude(),
        fractions=[0.2, 1.0],
        learning_rates=[1e-2, 1e-1],
        full_learning_rates=[1e-2],
        validation_data=validation,
        metrics=["mae"],
        **{**QUICK, "verbose": 1},
    )
    assert bits(model.variables) == before
    assert model.optimizer is optimizer
    kinds = [(run.method, run.fraction, run.learning_rate) for run in result.runs]
    assert kinds == [
        *(("selected", p, rate) for p in (0.2, 1.0) for rate in (1e-2, 1e-1)),
        *(("head only", 12 / 37, rate) for rate in (1e-2, 1e-1)),
        ("full", 1.0, 1e-2),
    ]
    assert [run.scalars for run in result.runs] == [17, 17, 37, 37, 12, 12, 37]
    selected, full = result.runs[2], result.runs[-1]
    assert full.delta is None
    # All that competes is all that there is.
    assert selected.validation == pytest.approx(full.validation, rel=1e-4)
    assert result.best is min(result.runs[:4], key=lambda run: run.validation["loss"])

    # The deltas are what `fine_tune` learns, and bring the numbers of the table.
    for run in (result.best, result.runs[4]):
        with run.delta.applied(model):
            beside = keras.Model(model.inputs, model.outputs)
            beside.compile(loss="mse", metrics=["mae"])
            found = beside.evaluate(*validation, verbose=0, return_dict=True)
        assert found == pytest.approx(run.validation, rel=1e-4)
    assert isinstance(result.best.delta, SparseDelta)
    keras.utils.set_random_seed(0)
    arguments = {**QUICK, "fraction": result.best.fraction, "seed": 0}
    adam = keras.optimizers.Adam(result.best.learning_rate)
    again = fine_tune(
        model, train, selector=Magnitude(), finetune_optimizer=adam, **arguments
    )
    for one, two in zip(
        again.delta.variables.values(),
        result.best.delta.variables.values(),
        strict=True,
    ):
        np.testing.assert_allclose(one.values, two.values, atol=1e-6)

    rows = repr(result).splitlines()
    header = "method fraction learning rate scalars loss mae"
    assert " ".join(rows[0].split()) == header
    assert len(rows) == 8
    assert [row[0] for row in rows].count("*") == 1
    assert capsys.readouterr().out.count("\n") == 7

    assert list(result.errors) == ["selected", "head only", "full"]
    assert result.errors["full"] == {1.0: full.validation["loss"]}
    assert result.errors["selected"][0.2] == min(
        run.validation["loss"] for run in result.runs[:2]
    )
    axes = result.plot()
    assert axes.get_ylabel() == "Validation loss"
    assert [line.get_linestyle() for line in axes.lines].count("--") == 2
    plt.close(axes.figure)


@pytest.mark.parametrize("start", [{}, {"stage_2_start": "last values"}])
def test_runs_start_where_those_of_fine_tune_do(start):
    def movement():
        return Movement(keras.optimizers.SGD(0.3), epochs=2)

    model, (x, y) = new_model("sgd"), new_data()
    arguments = {**QUICK, **start, "selector": movement(), "seed": 0}
    result = sweep(
        model,
        (x[:15], y[:15]),
        fractions=[0.2, 0.5],
        learning_rates=[1e-2],
        full_learning_rates=(),
        validation_data=(x[15:], y[15:]),
        **arguments,
    )
    run = result.runs[1]
    assert run.fraction == 0.5
    arguments["selector"] = movement()
    again = fine_tune(
        model,
        (x[:15], y[:15]),
        fraction=0.5,
        finetune_optimizer=keras.optimizers.Adam(1e-2),
        **arguments,
    )
    assert again.delta.variables.keys() == run.delta.variables.keys()
    for path, one in again.delta.variables.items():
        two = run.delta.variables[path].values
        np.testing.assert_allclose(one.values, two, atol=1e-6)


def test_what_is_to_be_large():
    def plus(y, outputs):
        return keras.ops.mean(outputs) + 1.0

    result = sweep(
        new_model(),
        new_data(),
        selector=Random(),
        fractions=[0.5],
        learning_rates=[1e-3, 1e-1],
        full_learning_rates=(),
        validation_split=0.25,
        metrics=[plus],
        monitor="plus",
        mode="max",
        **QUICK,
    )
    selected = [run for run in result.runs if run.method == "selected"]
    assert result.best is max(selected, key=lambda run: run.validation["plus"])
    assert result.errors["selected"][0.5] == 1 - result.best.validation["plus"]
    assert "full" not in result.errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": []}, "`fractions` is empty"),
        ({"learning_rates": []}, "`learning_rates` is empty"),
        ({"learning_rates": [0.0]}, r"`learning_rates\[0\]` must be .*=0.0"),
        ({"full_learning_rates": [-1]}, r"`full_learning_rates\[0\]` must be .*=-1"),
        ({"mode": "auto"}, "`mode` must be 'min' or 'max'. Received: 'auto'"),
        ({"validation_split": 0.0}, "`sweep` compares runs on validation data"),
        ({"monitor": "mae"}, r"`monitor` must be one of \['loss'\]. Received: 'mae'"),
        ({"fractions": [2.0]}, r"must be in \(0, 1\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    quick = {"validation_split": 0.25, "selector": Random(), "learning_rates": [1e-3]}
    quick |= QUICK | {"fractions": [0.5], "finetune_epochs": 1}
    with pytest.raises(ValueError, match=message):
        sweep(new_model(), new_data(), **(quick | arguments))
