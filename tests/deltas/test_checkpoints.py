import numpy as np
import pytest

from keras_bayestune.deltas import SparseDelta


def test_all_changes_reproduce_the_tuned_model(tuned, base, small, tmp_path):
    tuned.model.save(tmp_path / "tuned.keras")
    delta = SparseDelta.from_checkpoints(base, tmp_path / "tuned.keras")
    assert delta == SparseDelta.from_checkpoints(base, tuned.model)
    assert delta.metadata["kept_squared_difference"] == 1.0
    assert delta.metadata["kept_scalars"] == delta.metadata["changed_scalars"]
    before = small.bits(base)
    delta.apply(base)
    assert small.bits(base) == small.bits(tuned.model)
    delta.revert(base)
    assert small.bits(base) == before


def test_head_whole_is_from_model_again(tuned, base, small):
    head = [w.path for w in base.weights if "logits" in w.path]
    delta = SparseDelta.from_checkpoints(base, tuned.model, always=head)
    for stored, other in zip(
        delta.variables.values(), tuned.delta.variables.values(), strict=True
    ):
        assert stored.is_whole == other.is_whole
        np.testing.assert_array_equal(stored.flat_indices, other.flat_indices)
        np.testing.assert_array_equal(stored.values, other.values)
    assert delta.fingerprint == tuned.delta.fingerprint


def test_a_fraction_keeps_the_largest_differences(base, small):
    tuned = small.build()
    rng = np.random.default_rng(0)
    moved = [rng.normal(size=v.shape) * 0.1 for v in tuned.trainable_variables]
    for variable, step in zip(tuned.trainable_variables, moved, strict=True):
        variable.assign(variable + step.astype("float32"))
    delta = SparseDelta.from_checkpoints(base, tuned, fraction=0.1)
    sizes = np.concatenate([np.abs(step).reshape(-1) for step in moved])
    count = int(0.1 * sizes.size)
    assert delta.count == count == delta.metadata["kept_scalars"]
    smallest = np.sort(sizes)[-count]
    kept = np.square(np.sort(sizes)[-count:]).sum() / np.square(sizes).sum()
    assert delta.metadata["kept_squared_difference"] == pytest.approx(kept, rel=1e-4)
    for variable, step in zip(base.trainable_variables, moved, strict=True):
        stored = delta.variables[variable.path]
        chosen = np.flatnonzero(np.abs(step).reshape(-1) >= smallest * (1 - 1e-6))
        np.testing.assert_array_equal(stored.indices, chosen)


def test_fewer_changes_than_the_fraction_allows(tuned, base):
    delta = SparseDelta.from_checkpoints(base, tuned.model, fraction=1.0)
    assert delta.count == SparseDelta.from_checkpoints(base, tuned.model).count


def test_algebra_where_layers_are_frozen(small):
    base, tuned = small.build(), small.build()
    for model in (base, tuned):
        model.layers[1].trainable = False
    logits = tuned.get_layer("logits")
    logits.kernel.assign(logits.kernel + 1.0)
    delta = SparseDelta.from_checkpoints(base, tuned)
    with (delta + delta).applied(base):
        expected = [
            2 * (t - b) + b
            for t, b in zip(
                tuned.get_weights(), small.build().get_weights(), strict=True
            )
        ]
        for now, then in zip(base.get_weights(), expected, strict=True):
            np.testing.assert_allclose(now, then, rtol=1e-6)


def test_no_change(base, small):
    delta = SparseDelta.from_checkpoints(base, small.build(), fraction=0.5)
    assert delta.count == 0
    assert delta.metadata["kept_squared_difference"] == 1.0


def test_refuses(base, small, tmp_path):
    with pytest.raises(ValueError, match="checkpoints are of different models.*shape"):
        SparseDelta.from_checkpoints(base, small.build(width=5))
    with pytest.raises(ValueError, match="variables have another dtype.*float16, not"):
        SparseDelta.from_checkpoints(base, small.build(dtype="float16"))
    with pytest.raises(ValueError, match="paths that the base lacks: .'other'"):
        SparseDelta.from_checkpoints(base, small.build(), always=["other"])
    with pytest.raises(ValueError, match="`.keras` file: .*h5 holds no architecture"):
        SparseDelta.from_checkpoints(base, tmp_path / "model.weights.h5")
    tuned = small.build()
    tuned.weights[0].assign(tuned.weights[0] + 1.0)
    for fraction in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="fraction"):
            SparseDelta.from_checkpoints(base, tuned, fraction=fraction)
