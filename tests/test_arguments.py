"""An integer is what Python and NumPy take for one, for every argument alike."""

import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.arguments import check_integer
from keras_bayestune.deltas import SparseDelta, dare
from keras_bayestune.diagnostics import expected_calibration_error
from keras_bayestune.knee import find_knees
from keras_bayestune.plots.mask import mask_fractions
from keras_bayestune.selectors import (
    Fisher,
    GradientSum,
    Movement,
    Random,
    ScaleSelector,
)

MASK = kbt.SparseMask.from_scores({"a/w": np.arange(1.0, 9.0)}, fraction=0.5)


def sgld(**arguments):
    return kbt.BayesTuneSGLD(
        1e-3, **{"warmup_steps": 1, "burn_in_steps": 9, **arguments}
    )


def tuned(**arguments):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    delta = SparseDelta.from_checkpoints(model, model)
    return dare(delta, 0.5, **arguments)


USES = {
    "warmup_steps": sgld,
    "burn_in_steps": sgld,
    "thinning": sgld,
    "seed": sgld,
    "selection_epochs": kbt.SparseMaskCallback,
    "selection_steps": kbt.SparseMaskCallback,
    "trace_scalars": kbt.SparseMaskCallback,
    "epochs": lambda **a: Movement(keras.optimizers.SGD(0.1), **a),
    "steps": lambda **a: ScaleSelector(sgld(), **a),
    "steps of Fisher": Fisher,
    "steps of GradientSum": GradientSum,
    "seed of Random": Random,
    "seed of dare": tuned,
    "bins": lambda **a: expected_calibration_error([[0.75, 0.25]], [0], **a),
    "most_layers": lambda **a: mask_fractions(MASK, **a),
    "points": lambda **a: find_knees({"w": np.geomspace(1e-9, 1.0, 500)}, **a),
}


@pytest.mark.parametrize("use", USES)
def test_integers_of_python_and_numpy(use):
    name = use.split()[0]
    for value in (5, np.int64(5), np.uint8(5), np.array(5)):
        USES[use](**{name: value})
    for value in (5.0, np.float32(5.0), True, np.True_, "5", 5.5, [5], -1):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer >= "):
            USES[use](**{name: value})


def test_what_is_returned_is_pythons_own():
    assert type(check_integer("seed", np.int64(3), 0)) is int
    with pytest.raises(ValueError, match="integer >= 0 and < 2147483648. Received: se"):
        check_integer("seed", 2**31, 0)
    assert check_integer("seed", 2**31 - 1, 0) == 2**31 - 1


@pytest.mark.parametrize("name", ["finetune_epochs", "selection_epochs", "seed"])
def test_fine_tune(name):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    data = np.ones((4, 2)), np.ones((4, 1))
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= "):
        kbt.fine_tune(model, data, loss="mse", **{name: 5.0})
