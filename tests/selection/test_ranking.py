import math
import tracemalloc
from unittest import mock

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bayestune.selection import Ranking, fraction_of, index_dtype, top_k
from keras_bayestune.selection import ranking as ranking_module

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def brute_force(scores, k):
    """Positions of the k largest by a stable sort of everything."""
    order = sorted(
        (-float(score), path, index)
        for path, array in scores.items()
        for index, score in enumerate(np.asarray(array).ravel())
    )
    chosen = {path: [] for path in scores}
    for _, path, index in order[:k]:
        chosen[path].append(index)
    return {path: sorted(indices) for path, indices in chosen.items()}


def as_lists(indices):
    return {path: found.tolist() for path, found in indices.items()}


@st.composite
def tied_scores(draw):
    """A few variables with many ties, negative scores, zeros of both signs."""
    values = st.one_of(
        st.sampled_from([-2.0, -1e-30, -0.0, 0.0, 1e-45, 0.5, 1.0, 65504.0]),
        st.floats(-4, 4, width=16),
    )
    paths = draw(st.lists(st.text("ab/", min_size=1), min_size=1, unique=True))
    scores = {}
    for path in paths:
        row = draw(st.lists(values, max_size=40))
        scores[path] = np.array(row).astype(draw(st.sampled_from(DTYPES)))
    return scores


@settings(max_examples=150, deadline=None)
@given(tied_scores(), st.data())
def test_top_k_equals_a_stable_sort(scores, data):
    size = sum(array.size for array in scores.values())
    if not size:
        return
    k = data.draw(st.integers(1, size))
    with mock.patch.object(ranking_module, "_CHUNK", 7):
        indices = top_k(scores, k)
    assert as_lists(indices) == brute_force(scores, k)


@settings(max_examples=100, deadline=None)
@given(tied_scores(), st.data())
def test_values_at_equals_a_sort(scores, data):
    flat = np.concatenate([array.astype(np.float64) for array in scores.values()])
    if not flat.size:
        return
    ranks = data.draw(st.lists(st.integers(1, flat.size), min_size=1))
    with mock.patch.object(ranking_module, "_CHUNK", 7):
        values = Ranking(scores).values_at(ranks)
    expected = np.sort(flat)[::-1][np.array(ranks) - 1]
    assert np.array_equal(values.astype(np.float64), expected)


def test_ties_go_by_path_then_by_index():
    scores = {"b": np.ones(3), "a": np.ones(3), "c": np.array([2.0, 1.0])}
    assert as_lists(top_k(scores, 1)) == {"b": [], "a": [], "c": [0]}
    assert as_lists(top_k(scores, 3)) == {"b": [], "a": [0, 1], "c": [0]}
    assert as_lists(top_k(scores, 5)) == {"b": [0], "a": [0, 1, 2], "c": [0]}
    assert as_lists(top_k(scores, 8)) == {"b": [0, 1, 2], "a": [0, 1, 2], "c": [0, 1]}


def test_ties_across_chunks_and_pieces_are_counted_once():
    scores = {"b": np.zeros(20), "a": np.zeros(20)}
    scores["b"][19] = 1.0
    with mock.patch.object(ranking_module, "_CHUNK", 6):
        indices = top_k(scores, 24)
    assert as_lists(indices) == {"b": [0, 1, 2, 19], "a": list(range(20))}


def test_float64_is_not_rounded():
    scores = {"a": np.array([1.0, 1.0 + 2**-52]), "b": np.array([1.0 + 2**-51])}
    assert as_lists(top_k(scores, 1)) == {"a": [], "b": [0]}
    assert as_lists(top_k(scores, 2)) == {"a": [1], "b": [0]}


def test_float64_beyond_the_range_of_float32():
    scores = {"a": np.array([1e300, 1e301, 1e-300, 1e-310, -1e300])}
    assert as_lists(top_k(scores, 1)) == {"a": [1]}
    assert as_lists(top_k(scores, 4)) == {"a": [0, 1, 2, 3]}
    assert as_lists(Ranking(scores).above(1e300)) == {"a": [1]}


def test_a_float64_variable_after_float32_ones():
    scores = {
        "a": np.array([0.5, 0.25], np.float32),
        "b": np.array([0.5 + 2**-50, 0.5 - 2**-50]),
    }
    assert as_lists(top_k(scores, 2)) == {"a": [0], "b": [0]}


def test_narrow_types_compete_exactly():
    step = ml_dtypes.bfloat16(2**-7)
    scores = {
        "a": np.array([1.0, 1.0 + step], ml_dtypes.bfloat16),
        "b": np.array([1 + 2**-7 + 2**-10], np.float16),
        "c": np.array([1 + 2**-7 + 2**-20], np.float32),
    }
    assert as_lists(top_k(scores, 1)) == {"a": [], "b": [0], "c": []}
    assert as_lists(top_k(scores, 2)) == {"a": [], "b": [0], "c": [0]}
    assert as_lists(top_k(scores, 3)) == {"a": [1], "b": [0], "c": [0]}


def test_positions_are_of_the_c_order_whatever_the_layout():
    array = np.arange(24.0).reshape(2, 3, 4)
    layouts = [array, np.asfortranarray(array), array.astype(">f8"), array.tolist()]
    strided = np.zeros((2, 3, 8))
    strided[..., ::2] = array
    for layout in [*layouts, strided[..., ::2]]:
        with mock.patch.object(ranking_module, "_CHUNK", 5):
            assert as_lists(top_k({"a": layout}, 3)) == {"a": [21, 22, 23]}


def test_scalars_and_empty_variables():
    scores = {"a": np.float32(3), "b": np.zeros((0, 4), np.float32), "c": np.ones(1)}
    assert as_lists(top_k(scores, 1)) == {"a": [0], "b": [], "c": []}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_and_variables_of_the_backend(dtype):
    values = np.array([[0.5, -1.0], [2.0, 0.25]])
    tensor = keras.ops.convert_to_tensor(values, dtype=dtype)
    variable = keras.Variable(values[::-1].copy(), dtype=dtype)
    indices = top_k({"a": tensor, "b": variable}, 3)
    assert as_lists(indices) == {"a": [0, 2], "b": [0]}


def test_pieces_of_a_stream_equal_the_whole():
    rng = np.random.default_rng(0)
    scores = {path: rng.integers(0, 50, 97).astype(np.float32) for path in "bac"}
    reads = []

    def pieces():
        reads.append(1)
        for begin in range(0, 97, 10):
            for path in "bac":
                yield path, scores[path][begin : begin + 10]

    for k in (1, 50, 200, 291):
        assert as_lists(top_k(pieces, k)) == brute_force(scores, k)
    assert len(reads) <= 4 * 5


def test_a_stream_that_cannot_be_read_again():
    once = iter([("a", np.arange(5.0)), ("b", np.arange(6.0))])
    with pytest.raises(ValueError, match="changed between two passes. A callable"):
        top_k(lambda: once, 3)


@pytest.mark.parametrize("changing_pass", [2, 3, 4])
@pytest.mark.parametrize(
    "values", [np.zeros(100), np.full(100, 51.0), np.arange(101.0)]
)
def test_scores_that_change(changing_pass, values):
    passes = []

    def scores():
        passes.append(1)
        changed = len(passes) == changing_pass
        return [("a", (values if changed else np.arange(100.0)).astype(np.float32))]

    with pytest.raises(ValueError, match="changed between two passes"):
        top_k(scores, 50)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_not_finite(dtype, value):
    scores = {
        "a": np.ones(9, dtype),
        "b": np.array([1, value, 3, value], dtype),
        "c": np.array([value], dtype),
    }
    with pytest.raises(
        ValueError, match=r"NaN or infinite scores: 'b' \(2 of 4\), 'c' "
    ):
        Ranking(scores)


def test_the_largest_finite_numbers_are_finite():
    for dtype in DTYPES:
        largest = ml_dtypes.finfo(dtype).max
        with np.errstate(over="ignore"):
            indices = top_k({"a": np.array([-largest, largest, 0], dtype)}, 2)
        assert as_lists(indices) == {"a": [1, 2]}


def test_many_not_finite_variables_are_listed_in_part():
    scores = {f"v{i}": np.array([np.nan]) for i in range(9)}
    with pytest.raises(ValueError, match=r"'v4' \(1 of 1\) and 4 more"):
        Ranking(scores)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool", "complex64"])
def test_not_a_float_type(dtype):
    with pytest.raises(TypeError, match=f"Received {dtype} for 'a'; convert them"):
        Ranking({"a": np.ones(3, dtype)})


def test_neither_mapping_nor_callable():
    with pytest.raises(TypeError, match="must be a mapping .* Received: list"):
        Ranking([("a", np.ones(3))])


@pytest.mark.parametrize("scores", [{}, {"a": np.zeros((0, 3))}])
def test_no_scores(scores):
    with pytest.raises(ValueError, match="no scores to rank"):
        Ranking(scores)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"from 1 to .* 4. Received: {k}"):
        top_k({"a": np.ones(4)}, k)


@pytest.mark.parametrize("ranks", [[0], [5], [1, 9], []])
def test_ranks_out_of_range(ranks):
    with pytest.raises(ValueError, match="Ranks go from 1 to 4"):
        Ranking({"a": np.ones(4)}).values_at(ranks)


def test_more_ranks_than_counters():
    values = np.random.default_rng(0).permutation(200_000).astype(np.float32)
    ranks = np.arange(1, 200_001)
    assert np.array_equal(Ranking({"a": values}).values_at(ranks), 200_000.0 - ranks)


def test_above_is_strict():
    scores = {"a": np.array([0.5, 0.25, 1.0], np.float32), "b": np.zeros(2, np.float32)}
    assert as_lists(Ranking(scores).above(0.25)) == {"a": [0, 2], "b": []}
    assert as_lists(Ranking(scores).above(0.5)) == {"a": [2], "b": []}
    assert as_lists(Ranking(scores).above(1e300)) == {"a": [], "b": []}
    assert as_lists(Ranking(scores).above(-1)) == {"a": [0, 1, 2], "b": [0, 1]}


def test_all_equal():
    assert Ranking({"a": np.ones(4), "b": np.ones(2, np.float32)}).all_equal
    assert Ranking({"a": np.array([0.0, -0.0])}).all_equal
    assert Ranking({"a": np.array([1.0, 1.0 + 2**-52])}).all_equal  # rounding
    assert Ranking({"a": np.array([-1.0, -1.0 - 2**-50])}).all_equal
    assert not Ranking({"a": np.array([1.0, 1.0 + 2**-49])}).all_equal
    nearly = np.array([1.0, 1.0 - 2**-22, 1.0 + 2**-22], np.float32)
    assert Ranking({"a": nearly}).all_equal
    assert not Ranking({"a": np.append(nearly, np.float32(1 + 2**-20))}).all_equal
    assert not Ranking({"a": np.array([1.0, 2.0])}).all_equal


def test_means():
    scores = {"a": np.array([[0.5, 1.5]], np.float32), "b": np.array([-2.0])}
    assert Ranking(scores).means == {"a": 1.0, "b": -2.0}


def test_index_dtype_at_the_limit():
    assert index_dtype(2**31 - 1) == np.int32
    assert index_dtype(2**31) == np.int64
    assert top_k({"a": np.ones(2)}, 1)["a"].dtype == np.int32


def test_memory_is_a_few_chunks_and_the_result():
    rng = np.random.default_rng(0)
    scores = {str(i): rng.random(2_000_000, np.float32) for i in range(4)}
    top_k(scores, 10)
    tracemalloc.start()
    try:
        top_k(scores, 40_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # the scores take 32e6


@pytest.mark.parametrize("size", [1, 2, 3, 49, 98, 103, 1000, 10**6, 10**9 + 7])
def test_fraction_of_gives_the_count(size):
    for count in {1, 2, size // 3, size - 1, size} - {0}:
        if count <= size:
            assert math.floor(fraction_of(count, size) * size) == count
            assert fraction_of(count, size) <= 1
