import numpy as np
import pytest

from keras_bayestune import SparseDelta
from keras_bayestune.diagnostics import negative_log_likelihood
from keras_bayestune.uncertainty import DeltaPosterior, calibrate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3000, 4)).astype("float32")


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_it_finds_the_temperature_that_labels_were_drawn_at(make_tuned, temperature):
    model, _, _, deltas = make_tuned(count=2)
    truth = DeltaPosterior(deltas, temperature=temperature)
    p = truth.predict(model, X, verbose=0).mean
    labels = (p.cumsum(1) > RNG.random((len(p), 1))).argmax(1)
    # What it is set to before does not matter.
    start = DeltaPosterior(deltas, temperature=7.0)
    found = calibrate(start, model, (X, labels), verbose=0)
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    nll = negative_log_likelihood(found.predict(model, X, verbose=0).mean, labels)
    for t in (0.9, 1.1):  # it is a minimum
        other = found.replace(temperature=t * found.temperature)
        q = other.predict(model, X, verbose=0).mean
        assert nll < negative_log_likelihood(q, labels)


def test_it_finds_the_noise_of_a_regression(make_tuned):
    model, _, _, deltas = make_tuned(classes=1)
    posterior = DeltaPosterior(deltas, outputs="values")
    mean, variance = posterior.predict(model, X, verbose=0)
    targets = mean + np.sqrt(variance + 0.3) * RNG.normal(size=mean.shape)
    for y in (targets, targets[:, 0]):
        found = calibrate(posterior, model, (X, y), verbose=0)
        assert found.noise_variance == pytest.approx(0.3, rel=0.2)
    exact = calibrate(
        DeltaPosterior(deltas[:1], outputs="values"),
        model,
        (
            X[:4],
            DeltaPosterior(deltas[:1], outputs="values")
            .predict(model, X[:4], verbose=0)
            .mean,
        ),
        verbose=0,
    )
    assert exact.noise_variance == 0.0


def test_labels_of_sequences(make_tuned):
    # One label for each index, as of a language model.
    import keras

    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(inputs))
    other = keras.Model(inputs, keras.layers.Dense(3, name="head")(inputs))
    delta = SparseDelta.from_checkpoints(model, other)
    x, y = X[:40].reshape(10, 4, 4), RNG.integers(0, 3, (10, 4))
    found = calibrate(DeltaPosterior([delta]), model, (x, y), verbose=0)
    assert found.predict(model, x, verbose=0).mean.shape == (10, 4, 3)
    assert found.temperature > 1


@pytest.mark.parametrize("validation", [None, X, (X,), (X, X, X)])
def test_validation_data_are_needed(make_tuned, validation):
    model, _, _, deltas = make_tuned()
    with pytest.raises(ValueError, match=r"validation data: pass a tuple \(x, y\)"):
        calibrate(DeltaPosterior(deltas), model, validation)


def test_labels_must_fit(make_tuned):
    model, _, _, deltas = make_tuned()
    with pytest.raises(TypeError, match="must be integers"):
        calibrate(DeltaPosterior(deltas), model, (X[:5], np.ones(5)), verbose=0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\)"):
        calibrate(DeltaPosterior(deltas), model, (X[:5], np.full(5, 3)), verbose=0)
    values = DeltaPosterior(deltas, outputs="values")
    with pytest.raises(ValueError, match=r"shape of the outputs, \(5, 3\)"):
        calibrate(values, model, (X[:5], np.ones(5)), verbose=0)
