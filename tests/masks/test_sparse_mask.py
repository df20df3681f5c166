import base64
import copy
import dataclasses
import json
import tracemalloc
import zlib

import keras
import numpy as np
import pytest

from keras_bayestune.masks import SparseMask


@pytest.fixture
def mask():
    rng = np.random.default_rng(0)
    scores = {"a/kernel": rng.normal(size=(40, 30)), "a/bias": rng.normal(size=30)}
    return SparseMask.from_scores(scores, 0.05, always={"head/bias": (3,)})


def test_fields():
    mask = SparseMask(
        {"a": [1, 5], "b": []},
        {"a": [2, 3], "b": (4,)},
        mean_scores={"a": 0.5},
        candidates=[0.1],
    )
    assert mask.indices["a"].tolist() == [1, 5]
    assert mask.indices["a"].dtype == mask.indices["b"].dtype == np.int32
    assert mask.shapes == {"a": (2, 3), "b": (4,)}
    assert (mask.count, mask.size, mask.fraction) == (2, 10, 0.2)
    assert (mask.always, mask.mean_scores, mask.candidates) == ((), {"a": 0.5}, (0.1,))


def test_indices_of_a_large_variable_are_int64():
    mask = SparseMask({"a": [2**31]}, {"a": (2**31 + 1,)})
    assert mask.indices["a"].dtype == np.int64
    assert mask.indices["a"].tolist() == [2**31]


def test_a_mask_of_empty_variables_has_fraction_zero():
    assert SparseMask({"a": []}, {"a": (0, 3)}).fraction == 0.0


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "uint64"])
def test_integers_of_any_width(dtype):
    mask = SparseMask({"a": np.array([1, 5], dtype)}, {"a": (6,)})
    assert mask.indices["a"].tolist() == [1, 5]


def test_a_mask_does_not_change(mask):
    with pytest.raises(ValueError, match="read-only"):
        mask.indices["a/kernel"][0] = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        mask.indices["a/kernel"] = np.zeros(1, np.int32)
    with pytest.raises(TypeError, match="does not support item assignment"):
        mask.shapes["a/kernel"] = (1,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask.always = ("a/kernel",)


def test_a_mask_copies_what_it_is_given():
    flat_indices, shapes = np.array([0, 1], np.int32), {"a": (4,)}
    mask = SparseMask({"a": flat_indices}, shapes)
    flat_indices[0] = 3
    shapes["b"] = (1,)
    assert mask.indices["a"].tolist() == [0, 1]
    assert set(mask.shapes) == {"a"}


@pytest.mark.parametrize(
    ("flat_indices", "error", "match"),
    [
        ([2, 1], ValueError, "must ascend.*'a' do not"),
        ([1, 1], ValueError, "must ascend"),
        ([-1, 2], ValueError, "from 0 to 5. Received -1 to 2"),
        ([0, 6], ValueError, "from 0 to 5. Received 0 to 6"),
        ([[0, 1]], ValueError, r"must be flat .* shape \(1, 2\)"),
        ([0.0, 1.0], TypeError, "must be integers. Received float64"),
        ([True] * 6, TypeError, "Received bool .* np.flatnonzero"),
        (np.array([2**64 - 1], np.uint64), ValueError, "Received 18446744073709551615"),
    ],
)
def test_bad_indices(flat_indices, error, match):
    with pytest.raises(error, match=match):
        SparseMask({"a": flat_indices}, {"a": (2, 3)})


@pytest.mark.parametrize("means", ["", "a", ["a"], 1.0])
def test_mean_scores_that_are_no_mapping(means):
    with pytest.raises(TypeError, match="`mean_scores` must be a mapping"):
        SparseMask({"a": []}, {"a": (2, 3)}, mean_scores=means)


def test_the_last_position_is_allowed():
    assert SparseMask({"a": [5]}, {"a": (2, 3)}).indices["a"].tolist() == [5]


@pytest.mark.parametrize("shape", [(-1,), (2.0,), (2**63,), (2**40, 2**40)])
def test_bad_shape(shape):
    with pytest.raises(ValueError, match="[Ss]hape"):
        SparseMask({"a": []}, {"a": shape})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"always": ["b"]}, r"`always` has paths that are not in `shapes`: \['b'\]"),
        ({"always": ["a"]}, "all of its 6 scalars must be selected. Received 2"),
        ({"mean_scores": {"b": 1.0}}, "`mean_scores` has paths"),
        ({"mean_scores": {"a": np.nan}}, "must be finite. Received nan for 'a'"),
        ({"mean_scores": {"a": "1"}}, "must be finite. Received '1'"),
        ({"candidates": [0.0]}, r"fractions in \(0, 1\]. Received: \(0.0,\)"),
        ({"candidates": [1.1]}, r"fractions in \(0, 1\]"),
        ({"candidates": ["a"]}, r"fractions in \(0, 1\]"),
    ],
)
def test_bad_fields(arguments, match):
    with pytest.raises(ValueError, match=match):
        SparseMask({"a": [0, 1]}, {"a": (2, 3)}, **arguments)


def test_paths_must_agree():
    with pytest.raises(ValueError, match=r"Only in one of them: \['a', 'b'\]"):
        SparseMask({"a": []}, {"b": (2,)})
    with pytest.raises(ValueError, match="at least one variable"):
        SparseMask({}, {})


def test_copies_are_equal(mask):
    for copied in (copy.copy(mask), copy.deepcopy(mask), dataclasses.replace(mask)):
        assert copied == mask
        assert copied.mean_scores == mask.mean_scores


def test_equality(mask):
    shapes = {"a": (4,)}
    one = SparseMask({"a": [0, 1]}, shapes)
    assert one == SparseMask({"a": np.array([0, 1])}, shapes, candidates=[0.5])
    assert one != SparseMask({"a": [0, 2]}, shapes)
    assert one != SparseMask({"a": [0]}, shapes)
    assert one != SparseMask({"a": [0, 1]}, {"a": (2, 2)})
    assert one != SparseMask({"b": [0, 1]}, {"b": (4,)})
    whole = SparseMask({"a": [0, 1, 2, 3]}, shapes)
    assert whole != SparseMask({"a": [0, 1, 2, 3]}, shapes, always=["a"])
    assert one != "a"
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_repr(mask):
    assert repr(mask) == "SparseMask(4.96 % of 1,230 scalars (61) + all 3 of head)"


# match


def model(*names):
    layers = [keras.layers.Dense(3, name=name) for name in names]
    return keras.Sequential([keras.Input((3,)), *layers])


def mask_of(variables):
    rng = np.random.default_rng(0)
    scores = {v.path: rng.random(tuple(v.shape)) for v in variables}
    return SparseMask.from_scores(scores, 0.5)


def test_match_by_path():
    variables = model("one", "two").trainable_variables
    mask = mask_of(variables)
    matched = mask.match(reversed(variables))
    assert set(matched) == {v.path for v in variables}
    for path, flat_indices in matched.items():
        assert flat_indices is mask.indices[path]


def test_match_by_new_numbers():
    first, second = model(None, None), model(None, None)
    mask = mask_of(first.trainable_variables)
    matched = mask.match(second.trainable_variables)
    assert set(mask.indices).isdisjoint(matched)
    for mine, theirs in zip(
        first.trainable_variables, second.trainable_variables, strict=True
    ):
        assert matched[theirs.path] is mask.indices[mine.path]


def test_match_leaves_out_what_the_mask_does_not_know():
    variables = model("one", "two").trainable_variables
    mask = mask_of(variables[:2])
    assert set(mask.match(variables)) == {v.path for v in variables[:2]}


def test_match_of_another_model():
    mask = mask_of(model("one", "two").trainable_variables)
    with pytest.raises(ValueError, match="The mask is for another model.*Missing"):
        mask.match(model("one").trainable_variables)
    wide = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one")])
    mask = mask_of(model("one").trainable_variables)
    with pytest.raises(ValueError, match="The mask is for another model.*other shape"):
        mask.match(wide.trainable_variables)


def test_match_of_repeated_paths():
    mask = mask_of(model("one").trainable_variables)
    variables = model("one").trainable_variables
    with pytest.raises(ValueError, match="2 saved, 4 in this model"):
        mask.match([*variables, *variables])


# overlap


def test_overlap():
    shapes = {"a": (10,), "b": (10,), "head": (2,)}
    one = SparseMask(
        {"a": [0, 1, 2], "b": [0], "head": [0, 1]}, shapes, always=["head"]
    )
    two = SparseMask({"a": [1, 2, 3, 4, 5], "b": [1], "head": []}, shapes)
    assert one.overlap(two) == two.overlap(one) == 2 / 4
    assert one.overlap(one) == 1.0


def test_overlap_of_two_copies_of_a_model():
    first, second = model(None, None), model(None, None)
    one, two = (mask_of(m.trainable_variables) for m in (first, second))
    assert one.overlap(two) == 1.0


def test_overlap_of_random_masks_is_the_fraction():
    rng = np.random.default_rng(0)
    masks = [
        SparseMask.from_scores({"a": rng.random(100_000)}, share)
        for share in (0.1, 0.3)
    ]
    assert masks[0].overlap(masks[1]) == pytest.approx(0.3, abs=0.02)


def test_bad_overlap():
    one = SparseMask({"a": [0]}, {"a": (4,)})
    with pytest.raises(ValueError, match="different models: 1 and 2 variables"):
        one.overlap(SparseMask({"a": [0], "b": []}, {"a": (4,), "b": (4,)}))
    with pytest.raises(ValueError, match="different models.*Of another shape"):
        one.overlap(SparseMask({"a": [0]}, {"a": (2, 2)}))
    with pytest.raises(ValueError, match="one chose 1, the other 0"):
        one.overlap(SparseMask({"a": []}, {"a": (4,)}))
    with pytest.raises(TypeError, match="must be a SparseMask. Received: {"):
        one.overlap({"a": [0]})


# config


def test_config_through_keras_and_json(mask):
    config = keras.saving.serialize_keras_object(mask)
    text = json.dumps(config)
    assert config["registered_name"] == "keras_bayestune>SparseMask"
    loaded = keras.saving.deserialize_keras_object(json.loads(text))
    assert loaded == mask
    assert loaded.mean_scores == mask.mean_scores
    assert loaded.always == mask.always


def test_config_keeps_candidates():
    mask = SparseMask({"a": [3]}, {"a": (4,)}, candidates=[0.25, 0.5])
    assert SparseMask.from_config(mask.get_config()).candidates == (0.25, 0.5)


def test_config_is_small():
    rng = np.random.default_rng(0)
    mask = SparseMask.from_scores({"a": rng.random(1_000_000)}, 0.005)
    assert len(json.dumps(mask.get_config())) < 2 * mask.count + 500


@pytest.mark.parametrize(
    "flat_indices", [[], [0], [2**40], [0, 2**40], [5, 6, 300, 70_000, 2**33], range(9)]
)
def test_config_of_any_gaps(flat_indices):
    mask = SparseMask({"a": list(flat_indices)}, {"a": (2**41,)})
    assert SparseMask.from_config(mask.get_config()) == mask


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data": "!!!!"}, "'a' are damaged"),
        ({"data": "AAAA"}, "'a' are damaged"),
        ({"bytes": 3}, "damaged: 2 bytes, expected 3"),
        ({"bytes": 1}, "damaged: 2 bytes, expected 1"),
        ({"bytes": 2**60}, "damaged: 2 bytes"),
        ({"bytes": 2**70}, "'a' are damaged"),
        ({"width": 3}, "1, 2 or 4, not 3"),
        ({"width": 4}, "not a whole number of 4-byte gaps"),
        ({"width": 2}, "from 0 to 5"),
    ],
)
def test_damaged_config(change, match):
    config = SparseMask({"a": [0, 5]}, {"a": (6,)}).get_config()
    config["indices"]["a"].update(change)
    with pytest.raises(ValueError, match=match):
        SparseMask.from_config(config)


def test_a_config_that_inflates_stops_early():
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000))).decode()
    config = SparseMask({"a": [0, 5]}, {"a": (6,)}).get_config()
    config["indices"]["a"]["data"] = bomb
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="damaged"):
            SparseMask.from_config(config)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
