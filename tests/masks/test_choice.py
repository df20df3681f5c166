import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bayestune import budgets
from keras_bayestune.knee import find_knees
from keras_bayestune.masks import SparseMask


def as_lists(mask):
    return {path: found.tolist() for path, found in mask.indices.items()}


def example_scores():
    return {
        "a/kernel": np.array([[0.1, 0.9], [0.7, 0.2]], np.float32),
        "a/bias": np.array([0.3, 0.15], np.float32),
        "b/kernel": np.array([0.05, 0.8, 0.3, 0.4], np.float32),
    }


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a/k", "a/b", "b/k", "c"]),
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30),
        min_size=1,
    ),
    st.floats(0, 1, exclude_min=True),
)
def test_the_count_is_the_floor_and_the_choice_a_stable_sort(lists, fraction):
    scores = {path: np.array(row, np.float32) for path, row in lists.items()}
    size = sum(map(len, lists.values()))
    count = math.floor(fraction * size)
    values = {value for row in lists.values() for value in row}
    if not count or (len(values) == 1 and count < size):
        with pytest.raises(ValueError, match="too small|are equal"):
            SparseMask.from_scores(scores, fraction)
        return
    order = sorted((-v, p, i) for p, row in lists.items() for i, v in enumerate(row))
    mask = SparseMask.from_scores(scores, fraction)
    chosen = {(path, i) for path, found in mask.indices.items() for i in found.tolist()}
    assert chosen == {(path, i) for _, path, i in order[:count]}
    assert (mask.count, mask.size) == (count, size)
    assert mask.shapes == {path: (len(row),) for path, row in lists.items()}


def test_all_variables_compete():
    mask = SparseMask.from_scores(example_scores(), fraction=0.5)
    assert as_lists(mask) == {"a/kernel": [1, 2], "a/bias": [0], "b/kernel": [1, 3]}
    assert (mask.count, mask.size, mask.fraction) == (5, 10, 0.5)
    assert mask.shapes == {"a/kernel": (2, 2), "a/bias": (2,), "b/kernel": (4,)}
    assert mask.candidates == ()
    assert mask.always == ()
    assert mask.mean_scores == {
        "a/kernel": pytest.approx(0.475),
        "a/bias": pytest.approx(0.225),
        "b/kernel": pytest.approx(0.3875),
    }


def test_everything():
    mask = SparseMask.from_scores(example_scores(), fraction=1)
    assert mask.fraction == 1.0
    assert as_lists(mask)["b/kernel"] == [0, 1, 2, 3]


def test_exactly_one_scalar():
    mask = SparseMask.from_scores(example_scores(), fraction=0.1)
    assert as_lists(mask) == {"a/kernel": [1], "a/bias": [], "b/kernel": []}


def test_too_small_by_a_hair_names_a_fraction_that_works():
    scores = {"a": np.arange(49.0)}
    with pytest.raises(ValueError, match="too small to select one scalar: 49 compete"):
        SparseMask.from_scores(scores, fraction=1 / 49)  # floor(1 / 49 * 49) is 0
    with pytest.raises(ValueError, match="must be at least 0.0204") as error:
        SparseMask.from_scores(scores, fraction=1e-9)
    fraction = float(str(error.value).rsplit(" ", 1)[1].rstrip("."))
    assert as_lists(SparseMask.from_scores(scores, fraction)) == {"a": [48]}


@pytest.mark.parametrize(
    "fraction", [0, 0.0, -0.1, 1.0001, math.nan, math.inf, "knee", True, [0.1]]
)
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"`fraction` must be in \(0, 1\]"):
        SparseMask.from_scores(example_scores(), fraction=fraction)


def test_numpy_numbers_are_numbers():
    mask = SparseMask.from_scores(example_scores(), fraction=np.float32(0.5))
    assert mask.count == 5
    assert (
        SparseMask.from_scores(example_scores(), threshold=np.float64(0.7)).count == 2
    )


def test_threshold_is_strict():
    scores = example_scores()
    value = float(scores["a/kernel"][1, 0])  # the float32 0.7
    mask = SparseMask.from_scores(scores, threshold=value)
    assert as_lists(mask) == {"a/kernel": [1], "a/bias": [], "b/kernel": [1]}
    below = float(np.nextafter(np.float32(0.7), np.float32(0)))
    mask = SparseMask.from_scores(scores, threshold=below)
    assert as_lists(mask) == {"a/kernel": [1, 2], "a/bias": [], "b/kernel": [1]}


def test_threshold_above_all():
    largest = float(np.float32(0.9))
    with pytest.raises(ValueError, match="No score is above .* largest of 10 is 0.9"):
        SparseMask.from_scores(example_scores(), threshold=largest)


def test_threshold_may_take_equal_scores():
    assert SparseMask.from_scores({"a": np.ones(3)}, threshold=0.5).count == 3


@pytest.mark.parametrize("threshold", [math.nan, math.inf, "0.5", True])
def test_threshold_is_a_number(threshold):
    with pytest.raises(ValueError, match="`threshold` must be a finite number"):
        SparseMask.from_scores(example_scores(), threshold=threshold)


def test_one_rule_only():
    with pytest.raises(ValueError, match="either .* Received both: fraction=0.5"):
        SparseMask.from_scores(example_scores(), fraction=0.5, threshold=0.1)
    with pytest.raises(ValueError, match="Give `fraction` or `threshold`.*neither"):
        SparseMask.from_scores(example_scores())
    with pytest.raises(ValueError, match="Give `fraction` or `threshold`.*neither"):
        SparseMask.from_scores({})


def test_equal_scores():
    with pytest.raises(ValueError, match=r"All 5 scores are equal \(0.3\)"):
        SparseMask.from_scores({"a": np.full(3, 0.3), "b": np.full(2, 0.3)}, 0.5)
    assert SparseMask.from_scores({"a": np.full(3, 0.3)}, 1.0).count == 3


@pytest.mark.parametrize("rule", [{"fraction": 0.5}, {"threshold": 0.1}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite(rule, value):
    scores = example_scores()
    scores["a/bias"][1] = value
    with pytest.raises(
        ValueError, match=r"NaN or infinite scores: 'a/bias' \(1 of 2\)"
    ):
        SparseMask.from_scores(scores, **rule)


def test_scores_that_are_not_floats():
    with pytest.raises(TypeError, match="Received int64 for 'a'"):
        SparseMask.from_scores({"a": np.arange(4, dtype=np.int64)}, 0.5)
    with pytest.raises(TypeError, match="must be a mapping .* Received: ndarray"):
        SparseMask.from_scores(np.arange(4.0), 0.5)


def test_scores_as_tensors():
    scores = {
        path: keras.ops.convert_to_tensor(array)
        for path, array in example_scores().items()
    }
    expected = SparseMask.from_scores(example_scores(), 0.5)
    assert SparseMask.from_scores(scores, 0.5) == expected


def test_always_stays_outside_the_budget():
    mask = SparseMask.from_scores(example_scores(), 0.25, always=["a/kernel"])
    assert as_lists(mask) == {"a/kernel": [0, 1, 2, 3], "a/bias": [], "b/kernel": [1]}
    assert mask.count == 4 + math.floor(0.25 * 6)
    assert mask.always == ("a/kernel",)
    assert set(mask.mean_scores) == {"a/bias", "b/kernel"}


def test_always_without_scores():
    head = {"head/kernel": (2, 3), "a/bias": (2,)}
    mask = SparseMask.from_scores(example_scores(), 0.5, always=head)
    assert as_lists(mask)["head/kernel"] == [0, 1, 2, 3, 4, 5]
    assert mask.shapes["head/kernel"] == (2, 3)
    assert mask.always == ("head/kernel", "a/bias")
    assert mask.count == 6 + 2 + 4


def test_only_always():
    mask = SparseMask.from_scores({}, always={"a/bias": (2,), "b/bias": ()})
    assert as_lists(mask) == {"a/bias": [0, 1], "b/bias": [0]}
    assert SparseMask.from_scores({"a": np.ones(2)}, always=["a"]).count == 2


def test_scores_of_always_may_be_anything():
    scores = example_scores() | {"head": np.full(3, np.nan)}
    assert SparseMask.from_scores(scores, 0.1, always=["head"]).count == 4


def test_bad_always():
    with pytest.raises(TypeError, match=r"one string: 'a/bias'; write \['a/bias'\]"):
        SparseMask.from_scores(example_scores(), 0.5, always="a/bias")
    with pytest.raises(ValueError, match=r"without scores: \['head'\].*{path: shape}"):
        SparseMask.from_scores(example_scores(), 0.5, always=["a/bias", "head"])
    with pytest.raises(ValueError, match=r"'a/bias' the shape \(3,\).* have \(2,\)"):
        SparseMask.from_scores(example_scores(), 0.5, always={"a/bias": (3,)})


@pytest.mark.parametrize("rule", [{"fraction": 0.5}, {"fraction": "auto"}])
def test_nothing_competes(rule):
    with pytest.raises(ValueError, match="No scalar competes .* 1 of them are in"):
        SparseMask.from_scores({"a": np.ones(2)}, always=["a"], **rule)
    with pytest.raises(ValueError, match="No scalar competes .* 0 variables"):
        SparseMask.from_scores({}, **rule)
    with pytest.raises(ValueError, match="No scalar competes"):
        SparseMask.from_scores({"a": np.ones((0, 3))}, **rule)


def test_auto_takes_the_best_knee_and_keeps_the_candidates():
    values = np.ones(10_000)
    values[:100] = 30 - 0.1 * np.arange(100)
    scores = {"a": values[:5000], "b": values[5000:], "head": np.ones(7)}
    mask = SparseMask.from_scores(scores, "auto", always=["head"])
    best, candidates = find_knees({path: scores[path] for path in "ab"})
    assert mask.candidates == candidates
    assert mask.count == math.floor(best * 10_000) + 7
    assert 100 <= mask.count - 7 < 120


def test_auto_is_the_common_knee_whatever_the_budget():
    values = np.ones((2, 5000))
    values[:, :50] = 30 - 0.1 * np.arange(50)
    scores = {"a/k": values[0], "b/k": values[1]}
    mask = SparseMask.from_scores(scores, "auto", budget=budgets.PerLayer())
    assert len(mask.indices["a/k"]) == len(mask.indices["b/k"]) >= 50
    assert mask.candidates == find_knees(scores)[1]


def test_a_budget_is_a_budget():
    with pytest.raises(TypeError, match="`budget` must be .*PerTensor.*Received: True"):
        SparseMask.from_scores(example_scores(), 0.5, budget=True)
