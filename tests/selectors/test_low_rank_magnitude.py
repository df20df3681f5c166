"""The magnitude of the part of rank r, against float64."""

import keras
import numpy as np
import pytest

from keras_bayestune.selectors import LowRankMagnitude
from tests.selectors.network import assert_close, chain


def new_model():
    model = chain(
        keras.Input((5,)),
        keras.layers.EinsumDense("bi,iho->bho", (3, 4), bias_axes="ho", name="heads"),
    )
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape) for w in model.weights])
    return model


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_the_part_of_rank_r(rank):
    model = new_model()
    expected = {}
    for variable in model.weights:
        weight = variable.numpy().astype("float64")
        matrix = weight.reshape(-1, 4)
        # Projected on the leading eigenvectors of W^T W: no decomposition of W.
        vectors = np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1][:, :rank]
        part = matrix @ vectors @ vectors.T
        expected[variable.path] = np.abs(part).reshape(weight.shape)
    assert_close(LowRankMagnitude(rank).scores(model), expected)
    whole = np.abs(model.weights[0].numpy())
    assert np.allclose(expected["heads/kernel"], whole, rtol=1e-5) == (rank == 9)


def test_a_vector_is_its_own_approximation():
    model = chain(keras.Input((5,)), keras.layers.Dense(3, name="d"))
    model.set_weights([np.ones((5, 3)), np.array([0.5, -2.0, 1.0])])
    scores = LowRankMagnitude(1).scores(model)
    np.testing.assert_allclose(scores["d/bias"], [0.5, 2.0, 1.0])


def test_the_rank_is_checked():
    with pytest.raises(ValueError, match="`rank` must be an integer >= 1"):
        LowRankMagnitude(0)
