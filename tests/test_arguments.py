"""Integers and numbers are what Python and NumPy take for one, for every argument."""

import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.arguments import check_integer, check_number
from keras_bayestune.deltas import SparseDelta, dare, ties
from keras_bayestune.diagnostics import expected_calibration_error
from keras_bayestune.knee import find_knees
from keras_bayestune.plots.mask import mask_fractions
from keras_bayestune.priors import LaplacePrior
from keras_bayestune.samplers import Authors, JointLangevin, PartiallyAdaptiveMetric
from keras_bayestune.selectors import (
    Fisher,
    GradientSum,
    Movement,
    Random,
    ScaleSelector,
)
from keras_bayestune.uncertainty import DeltaPosterior

MASK = kbt.SparseMask.from_scores({"a/w": np.arange(1.0, 9.0)}, fraction=0.5)


def sgld(**arguments):
    return kbt.BayesTuneSGLD(
        1e-3, **{"warmup_steps": 1, "burn_in_steps": 9, **arguments}
    )


@pytest.fixture(scope="module")
def delta():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    return SparseDelta.from_checkpoints(model, model)


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


def test_the_seed_of_dare(delta):
    dare(delta, 0.5, seed=np.int64(5))
    with pytest.raises(ValueError, match="`seed` must be an integer >= "):
        dare(delta, 0.5, seed=5.0)


NUMBERS = {
    "alpha": lambda _, x: LaplacePrior(alpha=x),
    "beta": lambda _, x: LaplacePrior(beta=x),
    "scale_init": lambda _, x: LaplacePrior(scale_init=x),
    "exponent": lambda _, x: PartiallyAdaptiveMetric(exponent=x),
    "floor": lambda _, x: PartiallyAdaptiveMetric(floor=x),
    "scale_step_size": lambda _, x: JointLangevin(scale_step_size=x),
    "scale_learning_rate": lambda _, x: Authors(scale_learning_rate=x),
    "effective_size": lambda _, x: sgld(effective_size=x),
    "noise_scale": lambda _, x: sgld(noise_scale=x),
    "fraction": lambda _, x: kbt.SparseMaskCallback(fraction=x),
    "threshold": lambda _, x: kbt.SparseMaskCallback(threshold=x),
    "drop_rate": lambda delta, x: dare(delta, x, seed=0),
    "density": lambda delta, x: ties([delta], density=x),
    "factor": lambda delta, x: ties([delta], factor=x),
    "factor of a product": lambda delta, x: delta * x,
    "temperature": lambda delta, x: DeltaPosterior([delta], temperature=x),
    "noise_variance": lambda delta, x: DeltaPosterior([delta], noise_variance=x),
}


@pytest.mark.parametrize("use", NUMBERS)
def test_numbers_of_python_and_numpy(use, delta):
    name = use.split()[0]
    for value in (0.5, np.float32(0.5), np.array(0.5)):
        NUMBERS[use](delta, value)
    for value in ("a", "0.5", True, [0.5], 1j, np.nan, -np.inf, 10**400):
        with pytest.raises(ValueError, match=rf"`{name}`( of \w+)? must be (in|a fin)"):
            NUMBERS[use](delta, value)


def test_the_ends_of_an_interval():
    for value, interval in ((0, "[0, 1)"), (1, "(0, 1]"), (-3, "(-inf, inf)")):
        assert check_number("x", value, interval) == value
        assert type(check_number("x", value, interval)) is float
    for value, interval in ((0, "(0, 1]"), (1, "[0, 1)"), (np.inf, "[0, inf)")):
        with pytest.raises(ValueError, match=rf"Received: x={value} of type"):
            check_number("x", value, interval)
    with pytest.raises(ValueError, match=r"`x` of Y must be in \[0, 1\].* Why not\."):
        check_number("x", 2, "[0, 1]", "Y", "Why not.")


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
