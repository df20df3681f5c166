"""A file of weights that holds the state of some optimizer, into a compiled model."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD, Adam

from keras_bayestune import BayesTuneSGLD, SparseMask, SparseOptimizer

SELECTED = [[0, 5], [1]]  # of kernel and bias


def new_model(optimizer=None, built=True):
    keras.utils.clear_session(free_memory=False)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    if optimizer is not None:
        model.compile(optimizer, loss="mse")
        if built:
            model.optimizer.build(model.trainable_variables)
    return model


def sparse(indices=SELECTED, inner=SGD):
    paths = [v.path for v in new_model().trainable_variables]
    found = dict(zip(paths, indices, strict=True))
    mask = SparseMask(found, dict(zip(paths, [(4, 3), (3,)], strict=True)))
    return SparseOptimizer(inner(0.1), mask)


def fit(model):
    x, y = np.random.default_rng(0).normal(size=(2, 8, 4)).astype("float32")
    for i in range(0, 8, 2):
        model.train_on_batch(x[i : i + 2], y[i : i + 2, :3])


def arrays(variables):
    return [ops.convert_to_numpy(v).tobytes() for v in variables]


def file_of(optimizer, folder):
    """Weights that were trained with `optimizer`, and their values."""
    model = new_model(optimizer)
    fit(model)
    model.save_weights(folder / "pre.weights.h5")
    return folder / "pre.weights.h5", arrays(model.weights)


OURS = {
    "stage 1": lambda: BayesTuneSGLD(1e-3, warmup_steps=1, burn_in_steps=1, seed=0),
    "stage 2": sparse,
}


@pytest.mark.parametrize("other", [Adam, SGD])
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("name", OURS)
def test_weights_load_beside_the_state_of_another_kind(name, built, other, tmp_path):
    path, values = file_of(other(0.1), tmp_path)
    model = new_model(OURS[name](), built)
    fresh = arrays(model.optimizer.variables)
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        model.load_weights(path)
    assert arrays(model.weights) == values
    assert arrays(model.optimizer.variables) == fresh
    fit(model)
    assert arrays(model.weights) != values


def test_weights_load_beside_no_state(tmp_path):
    new_model().save_weights(tmp_path / "pre.weights.h5")
    model = new_model(sparse())
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        model.load_weights(tmp_path / "pre.weights.h5")


@pytest.mark.parametrize("built", [True, False])
def test_the_anchors_are_the_loaded_values(built, tmp_path):
    path, values = file_of(Adam(0.1), tmp_path)
    model = new_model(OURS["stage 1"](), built)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        model.load_weights(path)
    optimizer = model.optimizer
    if built:
        optimizer.reset_anchors()  # as the callback does when `fit` begins
    fit(model)
    found = [anchor.tobytes() for anchor in optimizer.anchors().values()]
    assert found == values


@pytest.mark.parametrize(
    ("saved", "model", "message"),
    [
        ("stage 1", "stage 2", r"it has \d+ variables instead of \d+\. It was saved"),
        ("stage 2", "stage 1", r"it has \d+ variables instead of \d+\. It was saved"),
        ("of another mask", "stage 2", r"it has the scalars of another mask\. It was"),
    ],
)
def test_a_state_of_ours_that_does_not_fit_is_an_error(saved, model, message, tmp_path):
    ours = {**OURS, "of another mask": lambda: sparse([[0, 6], [1]])}
    path, _ = file_of(ours[saved](), tmp_path)
    model = new_model(ours[model]())
    before = arrays(model.optimizer.variables)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)
    assert arrays(model.optimizer.variables) == before
