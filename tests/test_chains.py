"""Several chains of stage 1."""

import keras
import numpy as np
import pytest

import keras_bayestune as kbt
from keras_bayestune.selectors import ScaleSelector
from tests.contracts.tiny import bits
from tests.selectors.network import Batches, chain, new_data, new_model

STEPS = 24  # 10 samples


def selector(chains=3, **arguments):
    plan = {"warmup_steps": 2, "burn_in_steps": 4, "thinning": 2, "seed": 5}
    sampling = kbt.BayesTuneSGLD(1e-2, **{**plan, **arguments})
    return ScaleSelector(sampling, steps=STEPS, chains=chains)


def data():
    return Batches(*new_data(), 10)  # one batch: there is no order


def run(of=None, model=None, **arguments):
    model = model or new_model()
    return kbt.run_chains(
        of or selector(),
        model,
        data(),
        "mse",
        scalars=4,
        verbose=0,
        **arguments,
    )


@pytest.fixture(scope="module")
def chains():
    return run()


def assert_same(one, two):
    assert list(one) == list(two)
    for path, array in one.items():
        np.testing.assert_array_equal(array, two[path])


def test_each_chain_is_a_run_with_the_next_seed(chains):
    assert len(chains.scores) == 3
    for number, found in enumerate(chains.scores):
        alone = selector(chains=1, seed=5 + number)
        assert_same(found, alone.scores(new_model(), data(), "mse"))


def test_the_mean_is_what_the_selector_returns(chains):
    model = new_model()
    before = bits(model.variables)
    found = selector().scores(model, data(), "mse")
    assert bits(model.variables) == before
    for path, score in chains.mean_scores.items():
        expected = np.mean([of_chain[path] for of_chain in chains.scores], axis=0)
        np.testing.assert_array_equal(score, expected)
        np.testing.assert_allclose(found[path], score, rtol=1e-6)


def test_traces_are_the_samples_that_the_scores_are_the_means_of(chains):
    counts = {"body/kernel": 4, "body/bias": 3, "head/kernel": 4, "head/bias": 2}
    for path, trace in chains.traces.items():
        assert trace.shape == (3, 10, counts[path])
        for number, found in enumerate(chains.scores):
            flat = found[path].ravel()
            followed = flat[np.linspace(0, flat.size - 1, counts[path]).astype(int)]
            np.testing.assert_allclose(trace[number].mean(axis=0), followed, rtol=1e-4)
    assert chains.traces.keys() == counts.keys()


def test_what_the_chains_say(chains):
    statistics = chains.statistics()
    assert statistics.keys() == chains.traces.keys()
    for found in statistics.values():
        assert found.r_hat > 0.9 and 0 < found.bulk < 50 and 0 < found.tail < 50
    overlap = chains.overlap(0.25)
    assert overlap.shape == (3, 3) and np.all(np.diag(overlap) == 1)
    probability = chains.selection_probability(0.25)
    total = sum(found.sum() for found in probability.values())
    assert total == pytest.approx(chains.masks(0.25)[0].count)
    assert repr(chains) == "<3 chains of 10 samples>"


def test_a_killed_run_goes_on_with_the_chain_that_is_missing(tmp_path):
    def network():
        model = chain(
            keras.Input((4,)),
            keras.layers.Dense(3, activation="tanh", name="body"),
            keras.layers.Dropout(0.5, seed=3),
            keras.layers.Dense(2, name="head"),
        )
        model.set_weights(new_model().get_weights())
        return model

    class Kill(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if self.batches == STEPS + 7:
                raise KeyboardInterrupt

    # Without noise of its own a chain differs from the others by its dropout.
    of, folder = selector(noise_scale=0.0), tmp_path / "state"
    whole = run(of, network())
    assert not np.array_equal(*(s["body/kernel"] for s in whole.scores[:2]))

    model = network()
    before = bits(model.variables)
    with pytest.raises(KeyboardInterrupt):
        run(of, model, backup_dir=folder, callbacks=[Kill()])
    assert bits(model.variables) == before
    assert [path.name for path in folder.iterdir()] == ["chains.safetensors"]
    with pytest.raises(ValueError, match="run of other chains.*delete it to start"):
        run(selector(), network(), backup_dir=folder)

    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs=None: steps.append(batch)
    )
    found = run(of, network(), backup_dir=folder, callbacks=[count])
    assert len(steps) == 2 * STEPS  # of the second and third
    for one, two in zip(found.scores, whole.scores, strict=True):
        assert_same(one, two)
    assert_same(found.traces, whole.traces)
    assert not folder.exists()


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="must be a ScaleSelector.*Random"):
        run(kbt.selectors.Random(seed=0))
    with pytest.raises(ValueError, match="`scalars` must be an integer >= 1"):
        kbt.run_chains(selector(), new_model(), data(), "mse", scalars=0)
    with pytest.raises(ValueError, match="`chains` must be an integer >= 1"):
        selector(chains=0)
