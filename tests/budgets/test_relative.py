"""Scores are read against the cut of their variable, pulled to that of the whole."""

import math

import numpy as np
import pytest

from keras_bayestune import SparseMask, budgets


def by_hand(scores, fraction, strength):
    """`score / t_j` in float64, from sorted copies."""
    scores = {path: s.astype("float64") for path, s in scores.items()}
    together = np.sort(np.concatenate([s.ravel() for s in scores.values()]))[::-1]
    count = math.floor(fraction * together.size)
    found = {}
    for path, s in scores.items():
        rank = math.ceil(count * s.size / together.size)
        own = np.sort(s.ravel())[::-1][rank - 1]
        pulled = strength * together[count - 1] + s.size * own
        found[path] = s * (strength + s.size) / pulled
    return found


@pytest.mark.parametrize("strength", [0.3, 10.0, 40.0])
def test_selects_by_the_equation(strength):
    rng = np.random.default_rng(2)
    sizes = {"a": (0.02, 150), "b": (0.5, 40), "c": (3.0, 900)}
    scores = {p: rng.gamma(0.7, scale, n) for p, (scale, n) in sizes.items()}
    mask = SparseMask.from_scores(scores, 0.13, budget=budgets.Relative(strength))
    assert mask == SparseMask.from_scores(by_hand(scores, 0.13, strength), 0.13)
    for other in (budgets.PerTensor(), budgets.Global()):
        assert mask != SparseMask.from_scores(scores, 0.13, budget=other)


def test_the_limits_are_a_share_for_each_and_the_global_cut():
    rng = np.random.default_rng(0)
    sizes = {"a": (1.0, 200), "b": (9.0, 300), "small": (4.0, 3)}
    scores = {p: rng.gamma(0.5, scale, n) for p, (scale, n) in sizes.items()}
    whole = SparseMask.from_scores(scores, 0.1)
    assert SparseMask.from_scores(scores, 0.1, budget=budgets.Relative(1e12)) == whole
    each = SparseMask.from_scores(scores, 0.1, budget=budgets.Relative(0.0))
    shares = SparseMask.from_scores(scores, 0.1, budget=budgets.PerTensor())
    for path, found in each.indices.items():
        assert abs(len(found) - len(shares.indices[path])) <= 1
        # The largest of a variable, whatever their number.
        order = np.argsort(-scores[path])
        np.testing.assert_array_equal(np.sort(order[: len(found)]), found)
    assert each != whole


def test_an_embedding_few_of_whose_rows_learn_takes_no_more_than_its_share():
    """Divided by means, which the other rows make small, it would take nearly all."""
    rng = np.random.default_rng(1)
    table = rng.gamma(2.0, 1e-6, (2000, 10))
    table[rng.choice(2000, 100, replace=False)] *= 1e3
    scores = {"table": table, "kernel": rng.gamma(2.0, 1e-3, (100, 200))}
    means = {path: s / s.mean() for path, s in scores.items()}
    count = math.floor(0.01 * 40_000)
    assert len(SparseMask.from_scores(means, 0.01).indices["table"]) > 0.95 * count
    mask = SparseMask.from_scores(scores, 0.01, budget=budgets.Relative(100.0))
    assert abs(len(mask.indices["table"]) - count / 2) < 0.05 * count


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
        ({"strength": "1e5"}, "Received: strength='1e5'"),
    ],
)
def test_arguments_out_of_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        budgets.Relative(**arguments)


def test_scores_that_have_a_sign():
    scores = {"a": -np.arange(4.0), "b": np.arange(4.0)}
    with pytest.raises(ValueError, match="must not be negative.*-1 for 'a'"):
        SparseMask.from_scores(scores, 0.5, budget=budgets.Relative())
