import math

import numpy as np
import pytest

from keras_bayestune import SparseMask
from keras_bayestune.diagnostics import (
    overlap_matrix,
    selection_frequency,
    selection_probability,
)


def masks(*chosen):
    shapes = {"a": (2, 3), "b": (4,)}
    return [SparseMask({"a": a, "b": b}, shapes) for a, b in chosen]


def test_overlap_of_every_pair():
    found = overlap_matrix(masks(([0, 1], [0, 1]), ([1], [1]), ([5], [0, 1, 2])))
    np.testing.assert_allclose(found, [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]])


def test_how_often_each_scalar_is_chosen():
    found = selection_frequency(masks(([0, 4], [3]), ([4], [0, 3]), ([4], [])))
    np.testing.assert_allclose(found["a"], [[1 / 3, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(found["b"], [1 / 3, 0, 0, 2 / 3])
    assert found["a"].dtype == np.float32


def test_the_probability_is_that_of_repeated_chains():
    """Chains of independent normal draws: the closed form against simulation."""
    rng = np.random.default_rng(0)
    truth, spread, samples, chains = np.sort(rng.gamma(2, 1, 400)), 1.5, 9, 400
    draws = rng.normal(truth, spread, (chains, samples, 400))
    averages = draws.mean(1)
    chosen = [SparseMask.from_scores({"k": mean}, 0.1) for mean in averages]
    simulated = selection_frequency(chosen)["k"]
    exact = {"k": truth}
    moments = {"k": truth**2 + spread**2}
    found = selection_probability(exact, moments, samples, 0.1)["k"]
    # The cut of noisy means lies higher than that of the truth: compare the shape.
    shifted = np.quantile(averages, 0.9, axis=1).mean() - truth[-40]
    expected = [
        0.5 * (1 + math.erf((t - truth[-40] - shifted) * 3 / spread / 2**0.5))
        for t in truth
    ]
    np.testing.assert_allclose(simulated, expected, atol=0.09)
    lower = [
        0.5 * (1 + math.erf((t - truth[-40]) * 3 / spread / 2**0.5)) for t in truth
    ]
    np.testing.assert_allclose(found, lower, atol=1e-5)


def test_more_samples_are_surer():
    rng = np.random.default_rng(1)
    means = {"k": rng.gamma(2, 1, (20, 10))}
    moments = {"k": means["k"] ** 2 + 0.3}
    few, many = (selection_probability(means, moments, s, 0.2)["k"] for s in (4, 400))
    chosen = SparseMask.from_scores(means, 0.2).indices["k"]
    above = np.zeros(200, bool)
    above[chosen] = True
    above = above.reshape(20, 10)
    assert np.all((few >= 0.5) == above) and np.all((many >= 0.5) == above)
    assert np.all(np.abs(many - 0.5) >= np.abs(few - 0.5) - 1e-6)
    assert np.abs(many - 0.5).mean() > np.abs(few - 0.5).mean() + 0.03


def test_a_score_that_never_varied_is_certain():
    means = {"k": np.array([1.0, 2.0, 3.0], "float32")}
    moments = {"k": means["k"] ** 2 - 1e-9}  # rounding may leave less than 0
    found = selection_probability(means, moments, 5, 0.5)
    np.testing.assert_array_equal(found["k"], [0, 0, 1])


def test_wrong_arguments_are_errors():
    one, two = {"k": np.ones(3)}, {"k": np.ones(4)}
    with pytest.raises(ValueError, match="samples=0"):
        selection_probability(one, one, 0, 0.5)
    with pytest.raises(ValueError, match=r"of another shape: \['k'\]"):
        selection_probability(one, two, 3, 0.5)
    with pytest.raises(ValueError, match=r"Received 1 and 0 arrays.*\['k'\]"):
        selection_probability(one, {}, 3, 0.5)
    for function in (overlap_matrix, selection_frequency):
        with pytest.raises(ValueError, match="Received no mask"):
            function([])
    with pytest.raises(ValueError, match="Mask 1 has other variables than mask 0"):
        selection_frequency(
            [SparseMask({"k": [0]}, {"k": (n,)}) for n in (2, 3)],
        )
