"""Laws of the algebra, and each rule against a dense loop over every scalar."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bayestune.deltas import (
    SparseDelta,
    conflicts,
    dare,
    ties,
    weighted_mean,
    weighted_sum,
)
from keras_bayestune.deltas.file import from_document, to_document
from keras_bayestune.deltas.variable import VariableDelta

SHAPES = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 2)}
# Eighths: sums and products of a few are exact in float32, so laws hold bit for bit.
BASE = {
    path: (np.arange(np.prod(shape)).reshape(shape) - 5).astype("float32") / 8
    for path, shape in SHAPES.items()
}
eighths = st.integers(-80, 80).map(lambda n: n / 8)
floats = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


def deltas_of(values):
    """Random deltas of one base: any indices, values from a strategy."""

    def of_variable(path):
        entries = st.dictionaries(st.integers(0, BASE[path].size - 1), values)
        return entries.map(lambda entries: sparse(BASE[path], entries))

    return st.fixed_dictionaries({path: of_variable(path) for path in SHAPES}).map(
        SparseDelta
    )


def sparse(base, entries):
    flat_indices = sorted(entries)
    values = np.array([entries[position] for position in flat_indices], base.dtype)
    return VariableDelta.sparse(base, np.array(flat_indices, "int64"), values)


def dense(delta, path):
    """Displacement of every scalar, float64."""
    stored = delta.variables[path]
    moved = np.zeros(BASE[path].size)
    base = BASE[path].reshape(-1).astype("float64")
    moved[stored.flat_indices] = stored.new_values - base[stored.flat_indices]
    return moved


def same(one, other):
    """Equal values and base, wherever either selects."""
    for path in SHAPES:
        first, second = one.variables[path], other.variables[path]
        assert (first.checksum, first.dtype) == (second.checksum, second.dtype)
        assert dense(one, path).tolist() == dense(other, path).tolist()


exact = deltas_of(eighths)


@given(exact, exact, exact)
def test_addition_commutes_and_associates(a, b, c):
    same(a + b, b + a)
    same((a + b) + c, a + (b + c))


@given(exact, exact)
def test_subtraction_undoes_addition(a, b):
    same((a + b) - b, a)
    same(a - b, a + (-b))
    assert not any(dense(a - a, path).any() for path in SHAPES)


@given(exact, exact, st.sampled_from([-2.0, -0.5, 0.25, 1.0, 4.0]))
def test_scaling_distributes(a, b, factor):
    same((a + b) * factor, a * factor + b * factor)
    same(factor * a, a * factor)
    same(a * factor * 0.5, a * (factor * 0.5))


@given(deltas_of(floats))
def test_scale_one_and_zero_are_exact(a):
    for path, stored in (a * 1.0).variables.items():
        np.testing.assert_array_equal(stored.values, a.variables[path].values)
    for path, stored in (a * 0.0).variables.items():
        base = BASE[path].reshape(-1)[stored.flat_indices]
        assert stored.values.tobytes() == base.tobytes()


@given(st.lists(exact, min_size=1, max_size=4))
def test_positions_are_the_union(deltas):
    total = weighted_sum(deltas, [1.0] * len(deltas))
    for path, stored in total.variables.items():
        union = set().union(*(delta.variables[path].indices for delta in deltas))
        assert stored.indices.tolist() == sorted(union)
        assert stored.indices.dtype == "int32"
        assert stored.base.tolist() == BASE[path].reshape(-1)[sorted(union)].tolist()


weighted = st.lists(
    st.tuples(deltas_of(floats), st.floats(-3, 3)), min_size=1, max_size=4
)


@given(weighted)
def test_weighted_sum_is_the_dense_one(pairs):
    deltas, weights = zip(*pairs, strict=True)
    total = weighted_sum(deltas, weights)
    for path, stored in total.variables.items():
        moved = sum(w * dense(d, path) for d, w in zip(deltas, weights, strict=True))
        expected = BASE[path].reshape(-1).astype("float64") + moved
        # One rounding to float32; float64 sums may differ in their last bit.
        np.testing.assert_allclose(
            stored.values, expected[stored.flat_indices], rtol=2**-23, atol=1e-12
        )


@given(exact, exact)
def test_weighted_mean(a, b):
    same(weighted_mean([a, b]), (a + b) * 0.5)
    same(weighted_mean([a, b], [3, 1]), a * 0.75 + b * 0.25)
    same(weighted_mean([a, a, a, a]), a)


def dense_ties(deltas, density, factor):
    """The definition, scalar by scalar."""
    moved = {path: np.stack([dense(d, path) for d in deltas]) for path in SHAPES}
    for row, delta in enumerate(deltas):
        sizes = sorted(
            abs(moved[path][row, position])
            for path in SHAPES
            for position in delta.variables[path].flat_indices
        )
        kept = max(1, int(density * len(sizes)))
        smallest = sizes[-kept] if kept < len(sizes) else 0.0
        for path in SHAPES:
            moved[path][row, np.abs(moved[path][row]) < smallest] = 0.0
    merged = {}
    for path in SHAPES:
        merged[path] = np.zeros(moved[path].shape[1])
        for position, column in enumerate(moved[path].T):
            agreeing = [d for d in column if d * column.sum() > 0]
            if agreeing:
                merged[path][position] = factor * sum(agreeing) / len(agreeing)
    return merged


@given(
    st.lists(exact, min_size=1, max_size=4),
    st.sampled_from([0.01, 0.2, 0.5, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_ties_is_the_dense_one(deltas, density, factor):
    merged = ties(deltas, density, factor)
    expected = dense_ties(deltas, density, factor)
    for path, stored in merged.variables.items():
        new = BASE[path].reshape(-1) + expected[path]
        assert stored.values.tolist() == new.astype("float32")[stored.indices].tolist()


@given(st.lists(exact, min_size=1, max_size=3))
def test_conflicts_are_the_dense_ones(deltas):
    report = conflicts({str(row): delta for row, delta in enumerate(deltas)})
    for i, one in enumerate(deltas):
        for j, other in enumerate(deltas):
            shared = opposed = 0
            for path in SHAPES:
                both = np.intersect1d(
                    one.variables[path].indices, other.variables[path].indices
                )
                shared += len(both)
                product = dense(one, path) * dense(other, path)
                opposed += (product[both] < 0).sum()
            assert report.shared[i, j] == shared
            assert report.opposed[i, j] == opposed
        assert report.counts[i] == one.count


@given(exact, st.floats(0, 0.95), st.integers(0, 2**31 - 1))
def test_dare_keeps_or_drops_each_position(a, drop_rate, seed):
    dropped = dare(a, drop_rate, seed)
    same(dropped, dare(a, drop_rate, seed))
    for path, stored in dropped.variables.items():
        original = a.variables[path]
        where = np.searchsorted(original.indices, stored.indices)
        np.testing.assert_array_equal(original.indices[where], stored.indices)
        base = BASE[path].reshape(-1)[stored.indices].astype("float64")
        moved = original.values[where] - base
        expected = (base + moved / (1 - drop_rate)).astype("float32")
        np.testing.assert_array_equal(stored.values, expected)


@settings(max_examples=50)
@given(deltas_of(st.floats(width=32)))
def test_any_delta_survives_its_file(a):
    variables, metadata = from_document(*to_document(a.variables, {}))
    assert SparseDelta(variables, metadata) == a


def large(seed, count=20_000):
    rng = np.random.default_rng(seed)
    base = np.ones((200, 200), "float32")
    flat_indices = np.sort(rng.choice(base.size, count, replace=False))
    stored = VariableDelta.sparse(base, flat_indices, rng.normal(1.0, 1.0, count))
    return SparseDelta({"kernel": stored}).astype("float32")


def test_dare_drops_the_asked_share_and_keeps_the_mean():
    a = large(0)
    dropped = dare(a, 0.9, seed=1)
    assert dropped.count == pytest.approx(2_000, rel=0.1)
    assert dropped.nbytes < 0.2 * a.nbytes
    total = (a.variables["kernel"].values - 1.0).astype("float64")
    kept = (dropped.variables["kernel"].values - 1.0).astype("float64")
    # Each kept displacement counts ten times: the sums agree within the noise.
    assert abs(kept.sum() - total.sum()) < 4 * np.sqrt(9 * np.square(total).sum())
    other = dare(a, 0.9, seed=2)
    assert not np.array_equal(
        dropped.variables["kernel"].indices, other.variables["kernel"].indices
    )


def test_dare_zero_changes_nothing():
    a = large(0)
    np.testing.assert_array_equal(
        dare(a, 0.0, seed=1).variables["kernel"].values, a.variables["kernel"].values
    )


# Models, heads and names.


def test_merged_delta_on_a_model(small, tmp_path):
    one, two = (small.tune(small.build(), seed) for seed in (1, 2))
    base = small.build()
    merged = weighted_mean([one.delta, two.delta], whole_from=two.delta)
    merged.save(tmp_path / "d.safetensors")
    merged = SparseDelta.load(tmp_path / "d.safetensors")
    before = small.bits(base)
    merged.apply(base)
    for start, a, b, now in zip(
        small.build().weights,
        one.model.weights,
        two.model.weights,
        base.weights,
        strict=True,
    ):
        if "seed" in now.path:
            continue
        start, a, b, now_array = map(small.array, (start, a, b, now))
        mean = start + ((a - start).astype("float64") + (b - start)) / 2
        expected = b if "logits" in now.path or "moving" in now.path else mean
        np.testing.assert_allclose(now_array, expected, rtol=1e-6)
    merged.revert(base)
    assert small.bits(base) == before


def test_loaded_deltas_need_their_base(tuned, base, small, tmp_path):
    tuned.delta.save(tmp_path / "d.safetensors")
    loaded = SparseDelta.load(tmp_path / "d.safetensors")
    for operation in (
        lambda: loaded * 2.0,
        lambda: loaded + loaded,
        lambda: ties([loaded]),
        lambda: dare(loaded, 0.5, seed=0),
        lambda: conflicts({"a": loaded}),
    ):
        with pytest.raises(ValueError, match=r"delta = delta.bind\(model\)"):
            operation()
    bound = loaded.bind(base)
    assert bound * 2.0 == SparseDelta(
        (tuned.delta * 2.0).variables, (bound * 2.0).metadata
    )
    loaded.apply(base)
    assert loaded.bind(base) * 2.0 == bound * 2.0  # from the values it replaced
    with pytest.raises(ValueError, match="is not the base"):
        loaded.bind(small.build(seed=9))


def test_heads_that_differ(small):
    one, two = (small.tune(small.build(), seed).delta for seed in (1, 2))
    with pytest.raises(ValueError, match="stored whole and differs between the deltas"):
        one + two
    merged = weighted_sum([one, two], [1, 1], whole_from=two)
    head = [path for path in one.variables if "logits" in path]
    for mine, his in zip(
        merged.variables.values(), two.variables.values(), strict=True
    ):
        assert not mine.is_whole or mine is his
    with pytest.raises(ValueError, match="moving_mean is stored whole and differs"):
        one + two.without(head)
    loose = [path for path, stored in two.variables.items() if stored.is_whole]
    for path, stored in (one + two.without(loose)).variables.items():
        assert not stored.is_whole or stored is one.variables[path]


def test_heads_of_different_shapes_and_names(small):
    one = small.tune(small.build(classes=3), seed=1).delta
    two = small.tune(small.build(classes=5), seed=2).delta
    assert one.variables.keys() != two.variables.keys()
    merged = ties([one, two], whole_from=one)
    assert merged.variables.keys() == one.variables.keys()
    merged.apply(small.build(classes=3))
    report = conflicts({"one": one, "two": two})
    assert report.counts.tolist() == [
        sum(len(v.values) for v in d.variables.values() if not v.is_whole)
        for d in (one, two)
    ]


def test_without(tuned, base, small):
    kernel = next(iter(tuned.delta.variables))
    head = [path for path in tuned.delta.variables if "logits" in path]
    delta = tuned.delta.without([kernel, *head])
    base.get_layer("logits").kernel.assign(np.full((6, 3), 7.0))
    delta.apply(base)
    start = small.build()
    for here, untouched, moved in zip(
        base.weights, start.weights, tuned.model.weights, strict=True
    ):
        if "logits/kernel" in here.path:
            assert (small.array(here) == 7.0).all()
        elif here is base.weights[0] or "logits" in here.path:
            np.testing.assert_array_equal(small.array(here), small.array(untouched))
        elif "seed" not in here.path:
            np.testing.assert_array_equal(small.array(here), small.array(moved))
    with pytest.raises(ValueError, match="no variable .'other'"):
        tuned.delta.without(["other"])


def test_different_bases_and_models(small):
    one = small.tune(small.build()).delta
    other = small.tune(small.build(seed=9)).delta
    with pytest.raises(ValueError, match="different bases: 10 and 10 .* 6 hold other"):
        one + other
    with pytest.raises(ValueError, match="deltas are of different models"):
        one + small.tune(small.build(width=5)).delta


def test_metadata_tell_where_it_came_from(small):
    one, two = (
        small.tune(small.build(), seed, task=str(seed)).delta for seed in (1, 2)
    )
    merged = ties([one, two], density=0.5, whole_from=one)
    assert merged.metadata == {
        "rule": "ties",
        "density": 0.5,
        "factor": 1.0,
        "deltas": [{"task": "1"}, {"task": "2"}],
    }


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            lambda a: a * np.inf,
            "`factor` must be a finite number. Received: factor=inf",
        ),
        (lambda a: weighted_sum([], []), "at least one delta, and one weight for each"),
        (lambda a: weighted_sum([a], [1, 2]), "1 deltas, 2 weights"),
        (lambda a: weighted_sum([a], [np.nan]), "`weights` must be finite"),
        (lambda a: weighted_mean([a], [-1.0]), "must be >= 0, and not all 0"),
        (lambda a: weighted_mean([a, a], [0.0, 0.0]), "must be >= 0, and not all 0"),
        (lambda a: ties([a], density=0.0), r"`density` must be in \(0, 1\]"),
        (lambda a: ties([a], density=1.01), r"in \(0, 1\]. Received: density=1.01"),
        (lambda a: ties([a], factor=np.nan), "`factor` must be a finite number"),
        (lambda a: ties([]), "at least one delta"),
        (lambda a: conflicts({}), "at least one delta"),
        (lambda a: dare(a, 1.0, seed=0), r"`drop_rate` must be in \[0, 1\)"),
        (lambda a: dare(a, -0.1, seed=0), "Received: drop_rate=-0.1"),
    ],
)
def test_bad_arguments(operation, message):
    a = large(0, count=3)
    with pytest.raises(ValueError, match=message):
        operation(a)
    with pytest.raises(TypeError):
        a + 1.0
    with pytest.raises(TypeError):
        a - None


def test_overflow_becomes_infinite():
    base = np.array([1e38], "float32")
    a = SparseDelta({"x": VariableDelta.sparse(base, np.array([0]), base * 3)})
    assert (a * 2.0).variables["x"].values.tolist() == [np.inf]
