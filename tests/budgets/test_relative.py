"""The typical score of a variable is what the hierarchical prior says it is."""

import numpy as np
import pytest

from keras_bayestune import SparseMask, budgets


@pytest.mark.parametrize(("alpha", "strength"), [(0.7, 3.0), (0.2, 40.0), (2.5, 0.4)])
def test_the_rate_is_the_mean_of_its_conditional(alpha, strength):
    """Integrated from the densities: Gamma hyper-prior, Gamma scales."""
    rng = np.random.default_rng(1)
    scales = {"a": rng.gamma(2.0, 0.03, 7), "b": rng.gamma(1.5, 0.4, 5)}
    common_rate = alpha / np.concatenate(list(scales.values())).mean()
    means = {path: s.mean() for path, s in scales.items()}
    sizes = {path: s.size for path, s in scales.items()}
    typical = budgets.Relative(strength).typical_scores(means, sizes)
    shape = strength * alpha
    for path, s in scales.items():
        rate = np.geomspace(1e-4, 1e5, 400_001) * common_rate
        log_density = (shape - 1) * np.log(rate) - shape / common_rate * rate
        log_density += s.size * alpha * np.log(rate) - rate * s.sum()
        weight = np.exp(log_density - log_density.max()) * rate  # even in log(rate)
        np.testing.assert_allclose(
            alpha / typical[path], (weight * rate).sum() / weight.sum(), 1e-6
        )


def test_between_the_whole_and_the_variable():
    means, sizes = {"a": 2.0, "b": 8.0}, {"a": 30, "b": 10}
    common = 3.5
    for strength, expected in [
        (0.0, means),
        (10.0, {"a": (10 * common + 60) / 40, "b": (10 * common + 80) / 20}),
        (1e15, {"a": common, "b": common}),
    ]:
        found = budgets.Relative(strength).typical_scores(means, sizes)
        assert found == pytest.approx(expected)


def test_the_limits_are_the_global_cut_and_the_cut_by_means():
    rng = np.random.default_rng(0)
    scores = {p: rng.gamma(0.5, size, 200) for p, size in {"a": 1.0, "b": 9.0}.items()}
    mask = SparseMask.from_scores(scores, 0.1)
    for budget in (budgets.Relative(1e12), budgets.Relative(0.0, exponent=0.0)):
        assert SparseMask.from_scores(scores, 0.1, budget=budget) == mask
    by_hand = {path: s / s.mean() for path, s in scores.items()}
    apart = SparseMask.from_scores(scores, 0.1, budget=budgets.Relative(0.0))
    assert apart == SparseMask.from_scores(by_hand, 0.1)
    assert apart != mask
    assert apart.mean_scores == pytest.approx(mask.mean_scores)  # in their own units


def test_a_variable_without_a_score_is_selected_last():
    scores = {"zero": np.zeros(4), "a": np.arange(1.0, 5.0)}
    mask = SparseMask.from_scores(scores, 0.5, budget=budgets.Relative(0.0))
    assert mask.indices["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"strength": -1}, "`strength` of Relative .* number >= 0. Received: .*=-1"),
        ({"strength": float("nan")}, "Received: strength=nan"),
        ({"strength": float("inf")}, "a finite number"),
        ({"strength": True}, "Received: strength=True"),
        ({"exponent": 1.1}, r"`exponent` of Relative .* in \[0, 1\]. Received: .*=1.1"),
        ({"exponent": "1/2"}, "Received: exponent='1/2'"),
    ],
)
def test_arguments_out_of_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        budgets.Relative(**arguments)


def test_scores_that_have_a_sign():
    scores = {"a": -np.arange(4.0), "b": np.arange(4.0)}
    with pytest.raises(ValueError, match="must not be negative.*-1.5 for 'a'"):
        SparseMask.from_scores(scores, 0.5, budget=budgets.Relative())
