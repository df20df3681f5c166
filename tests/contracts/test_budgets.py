"""What holds for every budget; a new one is a row."""

import math
import weakref
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bayestune import SparseMask, SparseMaskCallback, budgets, fine_tune
from keras_bayestune.budgets.budget import Budget
from keras_bayestune.selectors import Random
from tests.contracts.tiny import concrete_subclasses, new_data, new_model


def flat(scores, keep=lambda path: True):
    return [(p, i) for p, s in scores.items() if keep(p) for i in range(s.size)]


def columns(scores):
    pools = {}
    for path, i in flat(scores):
        width = scores[path].shape[-1] if scores[path].ndim > 1 else 1
        pools.setdefault((path, i % width), []).append((path, i))
    return list(pools.values())


def by(name):
    def pools(scores):
        found = {}
        for path, i in flat(scores):
            found.setdefault(name(path), []).append((path, i))
        return list(found.values())

    return pools


def everything(scores):
    return [flat(scores)]


def relative(strength):
    """Scores over the pulled cut of their variable, at a fraction."""

    def values(scores, count):
        flat = {path: -np.sort(-s, axis=None) for path, s in scores.items()}
        together = -np.sort(-np.concatenate(list(flat.values())))
        whole, found = float(together[count - 1]), {}
        for path, s in scores.items():
            if s.size:
                own = float(flat[path][math.ceil(count * s.size / together.size) - 1])
                cut = (strength * whole + s.size * own) / (strength + s.size)
                s = s / s.dtype.type(cut) if cut > 0 else s
            found[path] = s
        return found

    return values


def as_it_is(scores, count):
    return scores


# Each budget, its pools (`None`: each has a fraction of its own) and what is ranked.
BUDGETS = {
    "ByPattern": (budgets.ByPattern({"bias$": 0.5}), None, as_it_is),
    "Global": (budgets.Global(), everything, as_it_is),
    "PerLayer": (
        budgets.PerLayer(),
        by(lambda path: path.rpartition("/")[0] or path),
        as_it_is,
    ),
    "PerNeuron": (budgets.PerNeuron(), columns, as_it_is),
    "PerTensor": (budgets.PerTensor(), by(lambda path: path), as_it_is),
    "Relative": (budgets.Relative(30.0), everything, relative(30.0)),
}
DIVIDING = [name for name, (_, pools, _) in BUDGETS.items() if pools]
FRACTIONS = [0.004, 0.05, 0.13, 1 / 3, 0.5, 0.97, 1.0]


def example_scores(kind="distinct"):
    rng = np.random.default_rng(4)
    shapes = {
        "b/kernel": (6, 5),
        "a/kernel": (3, 2, 4),
        "a/bias": (7,),
        "c/scale": (),
        "a/b/kernel": (31, 3),
        "empty": (0, 4),
    }
    scores = {p: np.abs(rng.normal(size=s)) for p, s in shapes.items()}
    scores = {p: np.asarray(s, "float32") for p, s in scores.items()}
    if kind == "tied":
        scores = {p: np.round(s).astype("float32") for p, s in scores.items()}
    if kind == "float64":
        scores = {p: 1 + 1e-12 * s.astype("float64") for p, s in scores.items()}
    return scores


def reference(scores, pools, count):
    """Each pool its exact share, rounded up where the next score is largest."""

    def order(member):
        return -scores[member[0]].reshape(-1)[member[1]], *member

    size = sum(map(len, pools))
    selected, following = [], []
    for pool in pools:
        pool, share = sorted(pool, key=order), Fraction(count * len(pool), size)
        selected += pool[: math.floor(share)]
        if share % 1:
            following.append(pool[math.floor(share)])
    following.sort(key=order)
    return set(selected + following[: count - len(selected)])


def members(mask):
    return {(p, i) for p, found in mask.indices.items() for i in found.tolist()}


def test_every_budget_has_a_row():
    assert BUDGETS.keys() == concrete_subclasses(budgets, Budget)


@pytest.mark.parametrize("kind", ["distinct", "tied", "float64"])
@pytest.mark.parametrize("name", DIVIDING)
def test_selects_what_the_reference_selects(name, kind):
    budget, pools, ranked = BUDGETS[name]
    scores = example_scores(kind)
    size = sum(s.size for s in scores.values())
    for fraction in [*FRACTIONS, 1 / size + 1e-9]:
        count = math.floor(fraction * size)
        if not count:
            with pytest.raises(ValueError, match=f"too small .* {size} compete"):
                SparseMask.from_scores(scores, fraction, budget=budget)
            continue
        mask = SparseMask.from_scores(scores, fraction, budget=budget)
        assert members(mask) == reference(
            ranked(scores, count), pools(scores), count
        ), fraction
        assert mask.count == count


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.floats(0.01, 1),
    st.integers(0, 99),
)
def test_the_total_is_the_floor(shapes, fraction, seed):
    rng = np.random.default_rng(seed)
    scores = {f"{i}/k": rng.integers(3, size=s) * 0.5 for i, s in enumerate(shapes)}
    size = sum(s.size for s in scores.values())
    for name in DIVIDING:
        budget, pools, ranked = BUDGETS[name]
        try:
            mask = SparseMask.from_scores(scores, fraction, budget=budget)
        except ValueError as error:
            assert "too small" in str(error) or "are equal" in str(error)
            continue
        count = math.floor(fraction * size)
        assert members(mask) == reference(ranked(scores, count), pools(scores), count)


def test_pools_larger_than_what_is_looked_at_together():
    rng = np.random.default_rng(0)
    kernel = rng.integers(9, size=(1 << 16, 5)).astype("float32")
    scores = {"k": kernel, "b": np.ones(3)}
    for name in ("PerNeuron", "PerTensor"):
        budget, pools, ranked = BUDGETS[name]
        mask = SparseMask.from_scores(scores, 1e-4, budget=budget)
        count = mask.count
        assert members(mask) == reference(ranked(scores, count), pools(scores), count)
        assert mask.count == math.floor(1e-4 * (5 * (1 << 16) + 3))


@pytest.mark.parametrize("name", BUDGETS)
def test_the_order_of_the_variables_does_not_count(name):
    budget, scores = BUDGETS[name][0], example_scores("tied")
    turned = dict(reversed(scores.items()))
    one = SparseMask.from_scores(scores, 0.3, budget=budget)
    two = SparseMask.from_scores(turned, 0.3, budget=budget)
    assert members(one) == members(two)
    assert set(one.indices) == set(scores)  # also those that nothing is selected of


@pytest.mark.parametrize("name", BUDGETS)
def test_always_stays_outside(name):
    budget, scores = BUDGETS[name][0], example_scores()
    rest = {p: s for p, s in scores.items() if p != "b/kernel"}
    mask = SparseMask.from_scores(scores, 0.3, budget=budget, always=["b/kernel"])
    alone = SparseMask.from_scores(rest, 0.3, budget=budget)
    assert members(mask) - members(alone) == set(flat(scores, "b/kernel".__eq__))


@pytest.mark.parametrize("name", BUDGETS)
def test_thresholds_are_for_one_pool(name):
    budget, scores = BUDGETS[name][0], example_scores()
    if name == "Global":
        mask = SparseMask.from_scores(scores, threshold=1.0, budget=budget)
        assert mask == SparseMask.from_scores(scores, threshold=1.0)
        return
    with pytest.raises(ValueError, match=rf"`threshold` .*instead.* with {name}\("):
        SparseMask.from_scores(scores, threshold=1.0, budget=budget)


@pytest.mark.parametrize("name", DIVIDING)
def test_a_fraction_is_needed(name):
    with pytest.raises(ValueError, match="`fraction`.*which says? how many"):
        SparseMask.from_scores(example_scores(), budget=BUDGETS[name][0])


@pytest.mark.parametrize("name", DIVIDING)
def test_equal_scores_select_nothing(name):
    scores = {"a/k": np.ones((2, 3)), "b/k": np.ones(4)}
    with pytest.raises(ValueError, match="All 10 scores are equal"):
        SparseMask.from_scores(scores, 0.5, budget=BUDGETS[name][0])


@pytest.mark.parametrize("name", BUDGETS)
def test_is_a_value(name):
    budget = BUDGETS[name][0]
    again = eval(repr(budget), vars(budgets))
    assert again == budget
    assert hash(again) == hash(budget)
    assert sum(budget == other for other, *_ in BUDGETS.values()) == 1


@pytest.mark.parametrize("name", BUDGETS)
def test_the_callback_and_fine_tune_take_it(name):
    budget, data = BUDGETS[name][0], new_data()
    result = fine_tune(
        new_model("sgd"), data, selector=Random(), fraction=0.4, budget=budget,
        finetune_epochs=1, batch_size=10, verbose=0, seed=1,
    )  # fmt: skip
    assert result.mask == SparseMask.from_scores(result.scores, 0.4, budget=budget)
    assert result.delta.metadata["budget"] == repr(budget)
    assert SparseMaskCallback(0.4, budget=budget).plan.budget == budget


class OnDemand(Mapping):
    """Scores that are made when they are asked for."""

    def __init__(self, scores):
        self.scores, self.made, self.most = scores, [], 0

    def __getitem__(self, path):
        array = self.scores[path].copy()
        self.made.append(weakref.ref(array))
        self.most = max(self.most, sum(made() is not None for made in self.made))
        return array

    def __iter__(self):
        return iter(self.scores)

    def __len__(self):
        return len(self.scores)


@pytest.mark.parametrize("name", BUDGETS)
def test_reads_one_array_after_the_other(name):
    budget, scores = BUDGETS[name][0], OnDemand(example_scores())
    mask = SparseMask.from_scores(scores, 0.3, budget=budget)
    assert mask == SparseMask.from_scores(scores.scores, 0.3, budget=budget)
    assert scores.most <= 3  # of six: a loop's last ones, while it asks for the next


def by_pattern(fractions, fraction=None, scores=None):
    budget = budgets.ByPattern(fractions)
    return SparseMask.from_scores(scores or example_scores(), fraction, budget=budget)


def test_patterns_have_fractions_of_their_own():
    mask = by_pattern({"bias$": 0.5, "^b/": 1.0}, 0.25)
    counts = {path: len(found) for path, found in mask.indices.items()}
    assert counts["a/bias"] == 3
    assert counts["b/kernel"] == 30
    apart = "a/bias", "b/kernel"
    rest = {p: s for p, s in example_scores().items() if p not in apart}
    alone = SparseMask.from_scores(rest, 0.25)
    for path, found in alone.indices.items():
        np.testing.assert_array_equal(mask.indices[path], found)


def test_the_first_pattern_that_matches_counts():
    mask = by_pattern({"a/kernel": 0.25, "a/": 1.0, ".": 0.5})
    assert len(mask.indices["a/kernel"]) == 6
    assert len(mask.indices["a/bias"]) == 7
    assert mask.count == 6 + 7 + 93 + 15


@pytest.mark.parametrize(
    ("fractions", "fraction", "error", "match"),
    [
        ({"gamma": 0.5}, 0.5, ValueError, "'gamma' of ByPattern matches none of the 5"),
        ({"a/": 0.5, "a/bias": 0.5}, 0.5, ValueError, "'a/bias' .* of the 2 variables"),
        ({"(": 0.5}, 0.5, ValueError, r"invalid regex '\('"),
        ({"a/": 0}, 0.5, ValueError, r"for 'a/' must be in \(0, 1\]"),
        ({"a/": 1.1}, 0.5, ValueError, "Received: fraction=1.1"),
        ({"a/": "auto"}, 0.5, ValueError, "Received: fraction='auto'"),
        (
            {"bias": 0.1},
            0.5,
            ValueError,
            "0.1 is too small .* 7 compete where the",
        ),
        (
            {"a/": 0.5},
            0.01,
            ValueError,
            "0.01 is too small .* 31 compete where no",
        ),
        ({"a/": 0.5}, None, ValueError, "leaves 2 variables without a budget"),
        ({}, 0.5, ValueError, "must hold a pattern. Received none"),
        ("a/", 0.5, TypeError, "must be a mapping {regex: fraction}. Received: 'a/'"),
    ],
)
def test_bad_patterns(fractions, fraction, error, match):
    with pytest.raises(error, match=match):
        by_pattern(fractions, fraction)


def test_equal_scores_in_a_pool_of_its_own():
    scores = example_scores() | {"a/bias": np.full(7, 0.3)}
    with pytest.raises(ValueError, match="All 7 scores where the path matches 'bias'"):
        by_pattern({"bias": 0.5}, 0.5, scores)
    assert len(by_pattern({"bias": 1}, 0.5, scores).indices["a/bias"]) == 7
