import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.callbacks import PosteriorDraws
from keras_bayestune.deltas import average_predictions


def build():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.Dense(2, activation="softmax", name="head"),
        ]
    )


def data(rows=48):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def sample(model, steps_per_execution=1, **plan):
    base = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}
    scores = {p: np.arange(1.0 * w.size).reshape(w.shape) for p, w in base.items()}
    mask = kbt.SparseMask.from_scores(scores, 0.25)
    sampler = kbt.BayesTuneSGLD(
        1e-2, effective_size=48, warmup_steps=6, burn_in_steps=6, seed=0
    )
    model.compile(
        kbt.SparseOptimizer(sampler, mask),
        loss="sparse_categorical_crossentropy",
        steps_per_execution=steps_per_execution,
    )
    draws = PosteriorDraws(mask, base, **plan)
    model.fit(*data(), batch_size=8, epochs=3, callbacks=[draws], verbose=0)
    return mask, base, draws.deltas


@pytest.mark.parametrize(
    ("burn_in_steps", "thinning", "count"),
    [(6, 4, 3), (0, 18, 1), (17, 1, 1), (18, 1, 0)],
)
def test_draws_are_taken_after_burn_in(burn_in_steps, thinning, count):
    _, _, deltas = sample(build(), burn_in_steps=burn_in_steps, thinning=thinning)
    assert len(deltas) == count  # of 18 batches


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras allows it elsewhere only"
)
def test_a_draw_is_due_once_when_steps_run_together():
    _, _, deltas = sample(build(), steps_per_execution=3, burn_in_steps=6, thinning=4)
    assert len(deltas) == 3


def test_draws_differ_and_hold_the_selected_scalars_only():
    model = build()
    mask, base, deltas = sample(model, burn_in_steps=6, thinning=4)
    start = [base[v.path] for v in model.weights]
    seen = []
    for delta in deltas:
        model.set_weights(start)
        delta.apply(model)
        for v in model.weights:
            moved = np.flatnonzero(keras.ops.convert_to_numpy(v) != base[v.path])
            assert set(moved) <= set(mask.indices[v.path].tolist())
        seen.append(np.concatenate([w.ravel() for w in model.get_weights()]))
        delta.revert(model)
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_predictions_are_averaged_and_the_model_is_as_before():
    model = build()
    _, base, deltas = sample(model, burn_in_steps=6, thinning=4)
    start = [base[v.path] for v in model.weights]
    model.set_weights(start)
    x = data()[0]
    each = []
    for delta in deltas:
        delta.apply(model)
        each.append(keras.ops.convert_to_numpy(model(x)))
        delta.revert(model)
    found = average_predictions(model, deltas, lambda model: model(x))
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-6)
    for before, now in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)


def test_a_failing_prediction_leaves_the_base():
    model = build()
    _, base, deltas = sample(model, burn_in_steps=6, thinning=4)
    model.set_weights([base[v.path] for v in model.weights])

    def fail(model):
        raise RuntimeError("no prediction")

    with pytest.raises(RuntimeError, match="no prediction"):
        average_predictions(model, deltas, fail)
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        np.testing.assert_array_equal(value, base[variable.path])


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="received no delta"):
        average_predictions(build(), [], lambda model: 0)


def test_arguments_are_checked():
    mask = kbt.SparseMask({"a": [0]}, {"a": (2,)})
    with pytest.raises(TypeError, match="must be a SparseMask. Received: dict"):
        PosteriorDraws({}, {}, 0, 1)
    with pytest.raises(ValueError, match="burn_in_steps=-1"):
        PosteriorDraws(mask, {}, -1, 1)
    with pytest.raises(ValueError, match="thinning=0"):
        PosteriorDraws(mask, {}, 0, 0)
