import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.uncertainty import ensemble

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def tuner(tuned, starts=None):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def tune(seed):
        if starts is not None:
            starts.append([keras.ops.convert_to_numpy(v) for v in tuned.model.weights])
        adam = keras.optimizers.Adam(1e-2)
        tuned.model.compile(kbt.SparseOptimizer(adam, tuned.mask), loss)
        tuned.model.fit(X, Y, batch_size=16, verbose=0)
        return kbt.SparseDelta.from_model(tuned.model, mask=tuned.mask, base=tuned.base)

    return tune


def test_members_start_alike_but_for_the_head(make_tuned, unchanged):
    tuned = make_tuned()
    model, starts = tuned.model, []
    posterior = ensemble(
        model, tuner(tuned, starts), 3, head=["^head/kernel"], outputs="logits"
    )
    unchanged(model, tuned.base)
    assert len(posterior.deltas) == 3
    place = [v.path for v in model.weights].index("head/kernel")
    for k, start in enumerate(starts):
        for i, (variable, values) in enumerate(zip(model.weights, start, strict=True)):
            if i != place:
                np.testing.assert_array_equal(values, tuned.base[variable.path])
        one, first = start[place].ravel(), starts[0][place].ravel()
        assert np.array_equal(one, first) == (k == 0)
        np.testing.assert_array_equal(np.sort(one), np.sort(first))
    path = "hidden/kernel"
    values = [delta.variables[path].values for delta in posterior.deltas]
    assert not np.array_equal(values[0], values[1])
    assert posterior.predict(model, X, verbose=0).mean.shape == (48, 3)


def test_a_seed_repeats_an_ensemble_whose_first_members_are_shared(make_tuned):
    tuned = make_tuned()
    two = ensemble(tuned.model, tuner(tuned), 2, head=["head"], seed=4)
    one = ensemble(tuned.model, tuner(tuned), 1, head=["head"], seed=4)
    assert two.deltas[0] == one.deltas[0]
    assert two.deltas[0] != two.deltas[1]


def test_an_error_gives_the_weights_back(make_tuned, unchanged):
    tuned = make_tuned()
    tune = tuner(tuned)

    def fail(seed):
        tune(seed)
        raise RuntimeError("no member")

    with pytest.raises(RuntimeError, match="no member"):
        ensemble(tuned.model, fail)
    unchanged(tuned.model, tuned.base)


def test_arguments_are_checked(make_tuned):
    tuned = make_tuned()
    with pytest.raises(TypeError, match="must return the SparseDelta.*NoneType"):
        ensemble(tuned.model, lambda seed: None)
    for members in (0, 2.0, True):
        with pytest.raises(ValueError, match=f"Received: members={members}"):
            ensemble(tuned.model, tuner(tuned), members)
    with pytest.raises(ValueError, match="'top' in `head` matches no trainable"):
        ensemble(tuned.model, tuner(tuned), head=["top"])
