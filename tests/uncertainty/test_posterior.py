import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bayestune import SparseDelta
from keras_bayestune.deltas import swap
from keras_bayestune.uncertainty import DeltaPosterior

X = np.random.default_rng(1).normal(size=(21, 4)).astype("float32")


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def outputs(model, delta, x=X):
    with delta.applied(model):
        return keras.ops.convert_to_numpy(model(x)).astype("float64")


def with_noise(delta, deviation=0.1):
    return {
        path: np.full(len(v.values), deviation)
        for path, v in delta.variables.items()
        if "moving" not in path
    }


def test_an_ensemble_predicts_the_mean_of_the_probabilities(make_tuned, unchanged):
    model, base, _, deltas = make_tuned()
    each = np.stack([softmax(outputs(model, delta)) for delta in deltas])
    posterior = DeltaPosterior(deltas)
    mean, variance = posterior.predict(model, X, batch_size=8, verbose=0)
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, each.var(0), rtol=1e-3, atol=1e-9)
    unchanged(model, base)
    first, _ = posterior.predict(model, X, draws=1, verbose=0)
    np.testing.assert_allclose(first, each[0], rtol=1e-5)


def test_a_temperature_divides_the_logits_of_a_point(make_tuned):
    model, _, _, deltas = make_tuned(count=1)
    mean, variance = DeltaPosterior(deltas, temperature=2.5).predict(
        model, X, verbose=0
    )
    np.testing.assert_allclose(mean, softmax(outputs(model, *deltas) / 2.5), rtol=1e-5)
    np.testing.assert_array_equal(variance, 0)


def test_the_averaged_probabilities_are_tempered_not_the_draws(make_tuned):
    model, _, _, deltas = make_tuned()
    mean = DeltaPosterior(deltas).predict(model, X, verbose=0).mean
    found = DeltaPosterior(deltas, temperature=1.7).predict(model, X, verbose=0).mean
    expected = mean ** (1 / 1.7)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_regression_has_mean_and_variance(make_tuned):
    model, _, _, deltas = make_tuned(classes=2)
    each = np.stack([outputs(model, delta) for delta in deltas])
    posterior = DeltaPosterior(deltas, outputs="values", noise_variance=0.25)
    mean, variance = posterior.predict(model, X, verbose=0)
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, each.var(0) + 0.25, rtol=1e-4)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_one_column_is_a_binary_classifier(make_tuned, kind):
    activation = "sigmoid" if kind == "probabilities" else None
    model, _, _, deltas = make_tuned(classes=1, count=2, activation=activation)
    posterior = DeltaPosterior(deltas, outputs=kind)
    mean, _ = posterior.predict(model, X, verbose=0)
    each = [outputs(model, delta) for delta in deltas]
    if kind == "logits":
        each = [1 / (1 + np.exp(-z)) for z in each]
    right = np.mean(each, 0)
    np.testing.assert_allclose(mean, np.hstack([1 - right, right]), rtol=1e-4)


def test_a_softmax_model_puts_out_probabilities(make_tuned):
    model, _, _, deltas = make_tuned(activation="softmax")
    each = [outputs(model, delta) for delta in deltas]
    posterior = DeltaPosterior(deltas, outputs="probabilities")
    mean, _ = posterior.predict(model, X, verbose=0)
    np.testing.assert_allclose(mean, np.mean(each, 0), rtol=1e-5)


def test_draws_are_plain_deltas_with_the_deviations_asked_for(make_tuned, unchanged):
    model, base, mask, deltas = make_tuned(count=1)
    deviations = with_noise(deltas[0], 0.1)
    posterior = DeltaPosterior(deltas, [deviations])
    draws = posterior.sample(400, seed=3)
    for path, stored in deltas[0].variables.items():
        values = np.stack([draw.variables[path].values for draw in draws])
        if not values.size:
            continue
        expected = 0.1 if path in deviations else 0.0
        spread = np.sqrt(np.mean((values - stored.values) ** 2))
        assert spread == pytest.approx(expected, rel=0.1), path
    with draws[0].applied(model):
        for path, now in {v.path: v.numpy() for v in model.trainable_variables}.items():
            moved = np.flatnonzero(now != base[path])
            assert set(moved) <= set(mask.indices[path].tolist())
    unchanged(model, base)


def test_a_seed_repeats_draws_and_another_one_does_not(make_tuned):
    _, _, _, deltas = make_tuned(count=2)
    posterior = DeltaPosterior(deltas, [with_noise(delta) for delta in deltas])
    one, again = posterior.sample(3, seed=1), posterior.sample(3, seed=1)
    other = posterior.sample(3, seed=2)
    assert one == again
    assert one[0] != other[0] and one[0] != one[2]


def test_deltas_with_deviations_take_turns(make_tuned):
    _, _, _, deltas = make_tuned(count=2)
    tiny = [with_noise(delta, 1e-6) for delta in deltas]
    draws = DeltaPosterior(deltas, tiny).sample(4)
    path = next(p for p in deltas[0].variables if "head" in p)
    for number, draw in enumerate(draws):
        np.testing.assert_allclose(
            draw.variables[path].values,
            deltas[number % 2].variables[path].values,
            atol=1e-4,
        )


def test_the_number_of_draws(make_tuned):
    model, _, _, deltas = make_tuned()
    with pytest.raises(ValueError, match="3 deltas without deviations.*4 draws"):
        DeltaPosterior(deltas).predict(model, X, draws=4, verbose=0)
    for count in (0, 1.5, True):
        message = f"integer >= 1. Received: draws={count!r}"
        with pytest.raises(ValueError, match=message):
            DeltaPosterior(deltas).sample(count)
    noisy = DeltaPosterior(deltas[:1], [with_noise(deltas[0])])
    assert len(list(noisy._draws(noisy._checked_count(None), 0))) == 10


def test_a_model_that_holds_one_of_the_deltas_is_lent_as_well(make_tuned, unchanged):
    model, base, _, deltas = make_tuned()
    expected = DeltaPosterior(deltas).predict(model, X, verbose=0).mean
    deltas[1].apply(model)
    after = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}
    found = DeltaPosterior(deltas).predict(model, X, verbose=0).mean
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    unchanged(model, after)
    deltas[1].revert(model)
    unchanged(model, base)


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_an_error_leaves_the_model_as_it_was(make_tuned, unchanged, tuned, at):
    model, base, _, deltas = make_tuned()
    if tuned:
        deltas[1].apply(model)
        base = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}

    class Data(keras.utils.PyDataset):
        read = 0

        def __len__(self):
            return 2

        def __getitem__(self, index):
            self.read += 1
            if self.read > at:
                raise RuntimeError("no more")
            return (X[:8],)

    with pytest.raises(RuntimeError, match="no more"):
        DeltaPosterior(deltas).predict(model, Data(), verbose=0)
    unchanged(model, base)
    # An input of another shape fails within the model.
    with pytest.raises(Exception, match="shape|dimension|size"):
        DeltaPosterior(deltas).predict(model, X[:, :3], verbose=0)
    unchanged(model, base)


def test_the_base_is_read_once_however_many_draws(make_tuned, monkeypatch):
    model, _, _, deltas = make_tuned(count=1)
    read = []
    whole = swap.variable_checksum
    monkeypatch.setattr(
        swap, "variable_checksum", lambda v: (read.append(v.path), whole(v))[1]
    )
    posterior = DeltaPosterior(deltas, [with_noise(deltas[0])])
    posterior.predict(model, X, draws=30, verbose=0)
    assert sorted(read) == sorted(v.path for v in model.weights)


def test_inputs_of_every_kind(make_tuned):
    model, _, _, deltas = make_tuned()
    posterior = DeltaPosterior(deltas)
    expected = posterior.predict(model, X, verbose=0).mean
    labels = np.zeros(len(X))

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[7 * index : 7 * index + 7], labels[:7]

    for x in (
        keras.ops.convert_to_tensor(X),
        Data(),
        tf.data.Dataset.from_tensor_slices((X, labels)).batch(5),
    ):
        found = posterior.predict(model, x, verbose=0).mean
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="iterator such as a generator"):
        posterior.predict(model, (x for x in [X]), verbose=0)
    with pytest.raises(ValueError, match="no batch"):
        posterior.predict(model, X[:0], verbose=0)


def test_texts_go_through_the_preprocessor_of_a_task(save_tiny_bert, tmp_path):
    models = pytest.importorskip("keras_hub").models
    preset = save_tiny_bert(str(tmp_path / "bert"), ["a", "fine", "film"], 8)
    preprocessor = models.BertTextClassifierPreprocessor.from_preset(
        preset, sequence_length=8
    )
    model, other = (
        models.BertTextClassifier.from_preset(
            preset, num_classes=2, preprocessor=preprocessor
        )
        for _ in range(2)
    )
    start = model.get_weights()
    delta = SparseDelta.from_checkpoints(model, other)
    texts = ["a film", "fine", "a fine film"]
    found = DeltaPosterior([delta]).predict(model, texts, batch_size=2, verbose=0)
    with delta.applied(model):
        expected = softmax(model.predict(texts, verbose=0).astype("float64"))
    np.testing.assert_allclose(found.mean, expected, rtol=1e-4)
    for before, now in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)


def test_one_progress_bar_runs_over_all_batches(make_tuned, capsys):
    model, _, _, deltas = make_tuned()
    DeltaPosterior(deltas).predict(model, X, batch_size=7)
    shown = capsys.readouterr().out
    assert "9/9" in shown
    DeltaPosterior(deltas).predict(model, X, batch_size=7, verbose=0)
    assert not capsys.readouterr().out


def test_another_base_is_an_error(make_tuned):
    model, _, _, deltas = make_tuned()
    other = make_tuned(seed=5)
    with pytest.raises(ValueError, match="not the base that the delta was made from"):
        DeltaPosterior(deltas).predict(other.model, X, verbose=0)
    with pytest.raises(ValueError, match="deltas are of different bases"):
        DeltaPosterior([deltas[0], other.deltas[0]])


def test_a_regression_head_is_not_a_classifier(make_tuned):
    model, _, _, deltas = make_tuned(classes=2)
    with pytest.raises(ValueError, match="outputs are not probabilities"):
        DeltaPosterior(deltas, outputs="probabilities").predict(model, X, verbose=0)


def test_arguments_are_checked(make_tuned):
    _, _, _, deltas = make_tuned(count=2)
    path = next(iter(deltas[0].variables))
    count = len(deltas[0].variables[path].values)
    for arguments, error, message in (
        (([],), ValueError, "at least one delta"),
        ((["a"],), TypeError, "must hold SparseDelta. Received: str"),
        ((deltas, [{}]), ValueError, "Received: 1 for 2 deltas"),
        ((deltas[:1], [{"x": [1.0]}]), ValueError, "path 'x', which the delta lacks"),
        ((deltas[:1], [{path: np.ones(count + 1)}]), ValueError, "must have shape"),
        ((deltas[:1], [{path: np.full(count, -1.0)}]), ValueError, "Received: -1 to"),
        ((deltas[:1], [{path: np.full(count, np.nan)}]), ValueError, "finite numbers"),
    ):
        with pytest.raises(error, match=message):
            DeltaPosterior(*arguments)
    for name, value in (
        ("outputs", "classes"),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("noise_variance", -1.0),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be.*Received: {name}="):
            DeltaPosterior(deltas, **{name: value})
